"""Spend never exceeds a budget, whatever races; and a job over budget says so and waits."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import asyncpg
import pytest

from daemon.db import Database
from daemon.errors import BudgetSpent, Fate, ProviderError, Retry
from daemon.jobs import ClaimedJob, new_id
from daemon.ledger import Budget
from daemon.settings import Budgets, Settings
from daemon.storage import Storage, open_storage
from tests.conftest import REPOSITORY
from tests.pg.money_support import Daemon, Provider, claim_job, count_states, read_spend, start_daemon
from tests.support import eventually

ONE = Decimal(1)


@pytest.fixture
async def storage(settings: Settings) -> Storage:
    return await open_storage(settings)


def provider(usd: Decimal = ONE) -> Provider:
    return Provider(cost_usd=usd, data=None)


async def pay_all(daemon: Daemon, jobs: Sequence[ClaimedJob], usd: Decimal = ONE) -> tuple[int, list[Retry]]:
    """(calls made, refusals) of one step of each job at the same time."""
    paid = provider(usd)
    ends = await asyncio.gather(
        *(daemon.pay(job, paid, str(job.id), estimate_usd=usd) for job in jobs),
        return_exceptions=True,
    )
    refusals = [end for end in ends if isinstance(end, Retry)]
    assert len(jobs) == paid.calls + len(refusals), ends
    return paid.calls, refusals


async def test_fifty_steps_race_for_ten_and_ten_are_paid(db: Database, storage: Storage) -> None:
    daemon = await start_daemon(db, storage, budgets=Budgets(user_usd_per_day=Decimal(10)))
    jobs = [await claim_job(daemon) for _ in range(50)]

    calls, refusals = await pay_all(daemon, jobs)

    assert (10, 40) == (calls, len(refusals))
    assert (0, 10) == await read_spend(daemon, "user")


async def test_two_processes_race_for_ten_and_ten_are_paid(
    db: Database, storage: Storage, database: str, tmp_path: Path
) -> None:
    daemon = await start_daemon(db, storage)
    ids = [str(await db.pool.fetchval("select listingd.enqueue_job('ping', '{}', 'ada')")) for _ in range(50)]
    payers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.pg.payer", database, str(tmp_path / "payer"), "10", *own,
            cwd=REPOSITORY, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for own in (ids[:25], ids[25:])
    ]  # fmt: skip
    for payer in payers:
        assert payer.stdout is not None
        assert b"ready\n" == await payer.stdout.readline()
    outs = await asyncio.gather(*(payer.communicate(b"") for payer in payers))
    reports = [json.loads(out.splitlines()[-1]) for out, _ in outs]

    assert [[], []] == [report["errors"] for report in reports]
    assert 10 == sum(report["calls"] for report in reports)
    assert {"done": 10} == await count_states(daemon)
    assert (0, 10) == await read_spend(daemon, "user")


@pytest.mark.parametrize("seed", range(3))
async def test_overlapping_budgets_are_never_overshot(db: Database, storage: Storage, seed: int) -> None:
    """Total, two users, two projects, day and month, prices of all sizes, failures among them."""
    roll = random.Random(seed)
    budgets = Budgets(
        total_usd_per_day=Decimal("9.99"),
        total_usd_per_month=Decimal("8.50"),
        user_usd_per_day=Decimal("5.05"),
        project_usd_per_month=Decimal("3.33"),
    )
    daemon = await start_daemon(db, storage, budgets=budgets)
    projects = [new_id(), new_id(), None]
    runs = []
    for number in range(60):
        job = await claim_job(daemon, user_id=roll.choice(["ada", "bob"]), project_id=roll.choice(projects))
        usd = Decimal(roll.randint(1, 120)) / 100
        paid = provider(usd - Decimal("0.005"))
        if roll.random() < 0.2:
            paid.error = ProviderError("No.", provider="painter", fate=Fate.RETRY)
        runs.append(daemon.pay(job, paid, str(number), estimate_usd=usd))

    async with asyncio.TaskGroup() as group:
        all_runs = group.create_task(_gather(runs))
        while not all_runs.done():
            row = await _read_most(db)
            assert (row["total"] or 0) <= Decimal("8.50")
            assert (row["one"] or 0) <= Decimal("5.05")
            assert (row["project"] or 0) <= Decimal("3.33")

    actual = await db.pool.fetchval("select sum(actual_usd) from listingd.steps")
    assert (0, actual) == await read_spend(daemon)
    refused = [done for done in all_runs.result() if isinstance(done, Retry)]
    assert any("budget_spent" == error.code for error in refused), "there was enough for all"

    # What was refused or failed holds nothing back: a single user can still spend up to the nearest limit.
    quarter = Decimal("0.25")
    with pytest.raises(Retry):
        for number in range(60, 100):
            job = await claim_job(daemon, user_id="ada")
            await daemon.pay(job, provider(quarter), str(number), estimate_usd=quarter)
    row = await _read_most(db)
    assert Decimal("8.50") >= row["total"]
    assert Decimal("5.05") >= row["one"]
    assert row["total"] > Decimal("8.50") - quarter or row["one"] > Decimal("5.05") - quarter


async def _read_most(db: Database) -> asyncpg.Record:
    """The largest sums, spent or reserved, in all, of a user in a day, and of a project."""
    return await db.pool.fetchrow(
        "select max(reserved_usd + spent_usd) filter (where scope = 'total') as total, "
        "max(reserved_usd + spent_usd) filter (where scope = 'user' and period = 'day') as one, "
        "max(reserved_usd + spent_usd) filter (where scope = 'project') as project from listingd.spend"
    )


async def _gather(runs: Sequence[Awaitable[object]]) -> list[object]:
    return await asyncio.gather(*runs, return_exceptions=True)


async def test_two_that_book_several_calls_each_never_wait_for_each_other(db: Database) -> None:
    """A call that is begun may end another's first, and abandoned ones are ended many at a time: of any projects."""
    book = "select listingd.move_spend($1, $2, '2026-11-27', 1, 0)"
    ours, theirs = new_id(), new_id()
    first, second = [await db.dedicated_connection("test") for _ in range(2)]
    try:
        async with first.transaction():
            await first.fetch(book, "a", ours)
            waiting = asyncio.create_task(second.fetch(book, "b", theirs))
            await eventually(lambda: is_waiting(db, second))

            await first.fetch(book, "c", theirs)

        await waiting
    finally:
        first.terminate()
        second.terminate()


async def is_waiting(db: Database, connection: asyncpg.Connection) -> bool:
    """Whether a session waits for a lock."""
    waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1"
    return bool(await db.pool.fetchval(waits, connection.get_server_pid()))


async def test_a_job_over_budget_waits_without_losing_an_attempt(db: Database, storage: Storage) -> None:
    daemon = await start_daemon(db, storage, budgets=Budgets(user_usd_per_month=Decimal("0.50")))
    job = await claim_job(daemon)

    with pytest.raises(Retry) as caught:
        await daemon.pay(job, provider(), estimate_usd=ONE)

    error = caught.value
    assert ("budget_spent", False) == (error.code, error.counts_attempt)
    assert 0 < error.after_s <= 300
    assert "0.50 USD a month" in error.message
    assert ("user", "month") == (error.data["scope"], error.data["period"])
    assert {} == await count_states(daemon)


async def test_a_set_budget_beats_the_default_until_it_is_dropped(db: Database, storage: Storage) -> None:
    daemon = await start_daemon(db, storage, budgets=Budgets(user_usd_per_day=ONE))
    await daemon.ledger.set_budget("user", "ada", "day", Decimal(2))
    await daemon.ledger.set_budget("user", "eve", "day", None)

    paid = [
        (await pay_all(daemon, [await claim_job(daemon, user_id=user) for _ in range(4)]))[0]
        for user in ("ada", "bob", "eve")
    ]
    await daemon.ledger.drop_budget("user", "eve", "day")
    after = (await pay_all(daemon, [await claim_job(daemon, user_id="eve")]))[0]

    assert ([2, 1, 4], 0) == (paid, after)


async def test_budgets_are_shown_with_what_is_spent(db: Database, storage: Storage) -> None:
    daemon = await start_daemon(db, storage, budgets=Budgets(user_usd_per_day=Decimal(7)))
    await daemon.ledger.set_budget("total", "", "month", Decimal(100))
    await pay_all(daemon, [await claim_job(daemon)])

    shown = {(b.scope, b.subject, b.period): b for b in await daemon.ledger.read_budgets()}

    assert (True, Decimal(100), ONE) == _facts(shown["total", "", "month"])
    assert (False, Decimal(7), ONE) == _facts(shown["user", "ada", "day"])
    assert [("user", "ada")] * 2 == [
        (b.scope, b.subject) for b in await daemon.ledger.read_budgets("user", "ada")
    ]


def _facts(budget: Budget) -> tuple[object, ...]:
    return budget.is_set, budget.limit_usd, budget.spent_usd


async def test_a_look_before_creating_says_that_the_money_is_gone(db: Database, storage: Storage) -> None:
    daemon = await start_daemon(db, storage, budgets=Budgets(project_usd_per_day=ONE))
    project = new_id()
    await pay_all(daemon, [await claim_job(daemon, project_id=project)])

    await daemon.ledger.check_budget("ada", None, ONE)
    with pytest.raises(BudgetSpent) as caught:
        await daemon.ledger.check_budget("ada", project, Decimal("0.01"))

    assert 0 < caught.value.data["retry_after_s"] <= 86_400


async def test_a_budget_that_is_just_spent_refuses_new_jobs(db: Database, storage: Storage) -> None:
    daemon = await start_daemon(db, storage, budgets=Budgets(user_usd_per_day=ONE))
    await daemon.ledger.check_budget("ada", None)
    await pay_all(daemon, [await claim_job(daemon)])

    with pytest.raises(BudgetSpent):
        await daemon.ledger.check_budget("ada", None)


async def test_a_spent_budget_is_told_once_and_again_when_it_was_raised(
    db: Database, storage: Storage
) -> None:
    """budget.exhausted: to the user whose budget it is, and to the service; not for every waiting job."""
    daemon = await start_daemon(db, storage, budgets=Budgets(user_usd_per_day=ONE))
    for user in ("", "ada", "bob"):
        await db.pool.execute(
            "insert into listingd.webhook_endpoints (id, user_id, url) values ($1, $2, 'https://x.example')",
            new_id(), user,
        )  # fmt: skip

    await pay_all(daemon, [await claim_job(daemon) for _ in range(5)])
    told_first = await _read_deliveries(db)
    await daemon.ledger.set_budget("user", "ada", "day", Decimal(2))
    await pay_all(daemon, [await claim_job(daemon) for _ in range(5)])

    assert [("", "1"), ("ada", "1")] == sorted(told_first)
    assert [("", "2"), ("ada", "2")] == sorted((await _read_deliveries(db))[2:])


async def _read_deliveries(db: Database) -> list[tuple[str, str]]:
    """(receiver, limit) of each budget.exhausted, oldest first."""
    rows = await db.pool.fetch(
        "select user_id, input ->> 'body' as body from listingd.jobs"
        " where kind = 'webhook' and input ->> 'type' = 'budget.exhausted' order by id"
    )
    budgets = [(row["user_id"], json.loads(row["body"])["data"]["budget"]) for row in rows]
    assert all(("user", "ada", "day") == (b["scope"], b["subject"], b["period"]) for _, b in budgets)
    return [(user, budget["limit_usd"]) for user, budget in budgets]


async def test_the_total_is_told_to_the_service_alone(db: Database, storage: Storage) -> None:
    """A user must not learn what all others spend."""
    daemon = await start_daemon(db, storage, budgets=Budgets(total_usd_per_month=ONE))
    await db.pool.execute(
        "insert into listingd.webhook_endpoints (id, user_id, url) values ($1, 'ada', 'https://x.example')",
        new_id(),
    )

    await pay_all(daemon, [await claim_job(daemon) for _ in range(2)])

    assert [] == await _read_deliveries(db)


async def test_a_new_day_and_a_new_month_begin_at_zero(db: Database, storage: Storage) -> None:
    daemon = await start_daemon(db, storage)
    await pay_all(daemon, [await claim_job(daemon)])
    today = datetime.now(UTC).date()
    limits = [ONE, None, None, None, None, None]

    async def find_full(day: date) -> object:
        return await db.pool.fetchrow(
            "select * from listingd.find_full_budget('ada', null, $1, 0.01, $2)", day, limits
        )

    assert await find_full(today) is not None
    assert await find_full(today + timedelta(days=1)) is None


async def test_a_month_lasts_until_the_first_of_the_next(db: Database) -> None:
    rows = await db.pool.fetch(
        "select period, starts, ends from listingd.spend_keys('ada', null, '2026-12-31') where scope = 'total'"
    )

    assert {
        ("day", date(2026, 12, 31), date(2027, 1, 1)),
        ("month", date(2026, 12, 1), date(2027, 1, 1)),
    } == {tuple(row) for row in rows}


async def test_free_steps_need_no_budget(db: Database, storage: Storage) -> None:
    daemon = await start_daemon(db, storage, budgets=Budgets(total_usd_per_day=Decimal(0)))
    job = await claim_job(daemon)

    value = await daemon.pay(job, provider(Decimal(0)), estimate_usd=Decimal(0))

    assert not value.reused
