"""One lane for all daemons: calls in flight and a minute, the provider's own delays, empty accounts."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from daemon.db import Database
from daemon.errors import Fate, ProviderError, Retry, Unavailable
from daemon.lanes import Lane, LaneLimits, LaneState, plan_lanes
from daemon.providers.protocols import RateHint
from daemon.settings import Cutout, Gemini, OpenAI, Settings
from daemon.storage import Storage, open_storage
from tests.pg.money_support import Daemon, Provider, claim_job, count_states, kill, read_spend, start_daemon

FAST = LaneLimits("painter:1", "painter", max_in_flight=4, calls_per_minute=60_000)


@pytest.fixture
async def storage(settings: Settings) -> Storage:
    return await open_storage(settings)


@pytest.fixture
async def daemon(db: Database, storage: Storage) -> Daemon:
    return await start_daemon(db, storage, lanes={"painter": FAST})


def error(fate: Fate, *, status: int | None = None, retry_after_s: float | None = None) -> ProviderError:
    return ProviderError(
        "The provider says no.",
        provider="painter",
        fate=fate,
        status=status,
        retry_after_s=retry_after_s,
        code="said_no",
    )


async def use(daemon: Daemon, failure: ProviderError | None = None, rate: RateHint | None = None) -> None:
    """One call in the painter's lane."""
    lane = daemon.lanes.find("painter")
    assert lane is not None
    async with lane.turn() as turn:
        turn.heard(rate)
        if failure is not None:
            raise failure


async def fail(daemon: Daemon, failure: ProviderError) -> None:
    with pytest.raises(ProviderError):
        await use(daemon, failure)


async def is_sent_away(daemon: Daemon) -> Retry:
    with pytest.raises(Retry) as caught:
        await use(daemon)
    assert ("lane_closed", False) == (caught.value.code, caught.value.counts_attempt)
    return caught.value


async def read_lane(daemon: Daemon) -> LaneState:
    (lane,) = await daemon.lanes.read()
    return lane


async def set_lane(daemon: Daemon, assignment: str) -> None:
    await daemon.db.pool.execute(f"update listingd.lanes set {assignment}")
    lane = daemon.lanes.find("painter")
    assert lane is not None
    lane._closed_until = 0.0  # as if the moment for which this process remembers were over


async def warm(daemon: Daemon) -> None:
    await use(daemon)


async def test_calls_in_flight_are_counted_over_all_daemons(daemon: Daemon, storage: Storage) -> None:
    other = await start_daemon(daemon.db, storage, instance="two", lanes={"painter": FAST})
    await warm(daemon)
    one, two = daemon.lanes.find("painter"), other.lanes.find("painter")
    assert one is not None
    assert two is not None

    async with one.turn(), two.turn(), one.turn(), two.turn():
        assert 4 == (await read_lane(daemon)).in_flight
        sent_away = await is_sent_away(other)

    assert "lane_full" == sent_away.data["reason"]
    assert 0 == (await read_lane(daemon)).in_flight
    await use(other)


async def test_a_place_that_becomes_free_is_taken_at_once(daemon: Daemon) -> None:
    await warm(daemon)
    lane = daemon.lanes.find("painter")
    assert lane is not None
    entered = asyncio.Event()

    async def wait_for_a_place() -> None:
        async with lane.turn():
            entered.set()

    async with lane.turn(), lane.turn(), lane.turn():
        async with lane.turn():
            waiting = asyncio.create_task(wait_for_a_place())
            await asyncio.sleep(0)
            assert not entered.is_set()
        await waiting

    assert entered.is_set()


async def test_calls_of_a_dead_process_hold_no_place(daemon: Daemon, storage: Storage) -> None:
    other = await start_daemon(daemon.db, storage, instance="two", lanes={"painter": FAST})
    await warm(daemon)
    lane = daemon.lanes.find("painter")
    assert lane is not None
    async with lane.turn(), lane.turn(), lane.turn(), lane.turn():
        await kill(daemon, other)

        await use(other)

        assert 0 == (await read_lane(other)).in_flight


async def test_no_more_calls_a_minute_than_the_account_allows(db: Database, storage: Storage) -> None:
    slow = LaneLimits("painter:1", "painter", max_in_flight=50, calls_per_minute=5)
    daemons = [
        await start_daemon(db, storage, instance=name, lanes={"painter": slow}) for name in ("one", "two")
    ]

    ends = await asyncio.gather(*(use(daemons[n % 2]) for n in range(20)), return_exceptions=True)

    refusals = [end for end in ends if isinstance(end, Retry)]
    assert (5, 15) == (ends.count(None), len(refusals))
    assert all(refusal.after_s > 5 for refusal in refusals)


async def test_jobs_that_are_sent_away_come_back_one_after_another(db: Database, storage: Storage) -> None:
    """At the account's own pace: a crowd that comes back at once would only be sent away again."""
    slow = LaneLimits("painter:1", "painter", max_in_flight=50, calls_per_minute=60)
    daemon = await start_daemon(db, storage, lanes={"painter": slow})
    await warm(daemon)
    await set_lane(daemon, "used[1:1] = '{60}'")

    ends = await asyncio.gather(*(use(daemon) for _ in range(30)), return_exceptions=True)

    waits = [end.after_s for end in ends if isinstance(end, Retry)]
    assert 30 == len(waits)
    gaps = [later - sooner for sooner, later in itertools.pairwise(waits)]
    assert all(0.5 < gap < 1.5 for gap in gaps)


async def test_a_throttled_call_halves_the_calls_in_flight_for_all(daemon: Daemon, storage: Storage) -> None:
    other = await start_daemon(daemon.db, storage, instance="two", lanes={"painter": FAST})
    await warm(daemon)

    await fail(daemon, error(Fate.RETRY, status=429))

    assert 2 == (await read_lane(other)).allowed
    for _ in range(4):
        await use(other)
    assert 3 == (await read_lane(other)).allowed


async def test_a_burst_of_throttled_calls_halves_only_once(daemon: Daemon) -> None:
    """They say the same thing: all began before the first one was answered."""
    await warm(daemon)
    lane = daemon.lanes.find("painter")
    assert lane is not None

    async def be_throttled(all_in: asyncio.Barrier) -> None:
        async with lane.turn():
            await all_in.wait()
            raise error(Fate.RETRY, status=429)

    barrier = asyncio.Barrier(4)
    await asyncio.gather(*(be_throttled(barrier) for _ in range(4)), return_exceptions=True)

    assert 2 == (await read_lane(daemon)).allowed


@pytest.mark.parametrize(("said_s", "kept_s"), [(7.0, 7.0), (86_400.0, 3600.0)])
async def test_the_providers_own_delay_holds_for_all(
    daemon: Daemon, storage: Storage, said_s: float, kept_s: float
) -> None:
    other = await start_daemon(daemon.db, storage, instance="two", lanes={"painter": FAST})
    await warm(daemon)

    await fail(daemon, error(Fate.RETRY, status=429, retry_after_s=said_s))

    sent_away = await is_sent_away(other)
    assert "lane_throttled" == sent_away.data["reason"]
    assert kept_s - 5 < (await read_lane(other)).wait_s <= kept_s
    assert min(kept_s, 300) - 5 < sent_away.after_s <= min(kept_s, 300) + 1


async def test_an_answer_that_says_nothing_is_left_of_the_window_holds_the_lane(daemon: Daemon) -> None:
    await use(daemon, rate=RateHint(limit=5, remaining=0, reset_s=40.0))

    assert "lane_throttled" == (await is_sent_away(daemon)).data["reason"]


@pytest.mark.parametrize("fate", [Fate.BUDGET, Fate.CONFIG])
async def test_an_empty_account_closes_the_lane_for_all(daemon: Daemon, storage: Storage, fate: Fate) -> None:
    other = await start_daemon(daemon.db, storage, instance="two", lanes={"painter": FAST})

    await fail(daemon, error(fate))

    assert "said_no" == (await is_sent_away(other)).data["reason"]
    lane = await read_lane(other)
    assert (True, "said_no", "The provider says no.") == (lane.is_paused, lane.pause_code, lane.pause_why)
    assert 55 < lane.paused_s <= 60


async def test_pauses_grow_to_a_quarter_of_an_hour(daemon: Daemon) -> None:
    pauses = []
    for _ in range(6):
        await fail(daemon, error(Fate.BUDGET))
        pauses.append(round((await read_lane(daemon)).paused_s / 60))
        await set_lane(daemon, "paused_until = now() - interval '1 s'")

    assert [1, 2, 4, 8, 15, 15] == pauses


async def test_after_a_pause_one_job_probes_alone_and_opens_the_lane(
    daemon: Daemon, storage: Storage
) -> None:
    other = await start_daemon(daemon.db, storage, instance="two", lanes={"painter": FAST})
    await fail(daemon, error(Fate.BUDGET))
    await set_lane(daemon, "paused_until = now() - interval '1 s'")
    lane = daemon.lanes.find("painter")
    assert lane is not None

    async with lane.turn() as turn:
        assert (await read_lane(other)).is_probing
        await is_sent_away(other)
        turn.heard(None)

    await set_lane(other, "pauses = pauses")
    await use(other)
    assert not (await read_lane(other)).is_paused


async def test_a_probe_that_died_with_its_process_is_replaced(daemon: Daemon, storage: Storage) -> None:
    other = await start_daemon(daemon.db, storage, instance="two", lanes={"painter": FAST})
    await fail(daemon, error(Fate.BUDGET))
    await set_lane(daemon, "paused_until = now() - interval '1 s'")
    lane = daemon.lanes.find("painter")
    assert lane is not None
    async with lane.turn():
        await kill(daemon, other)

        await use(other)

        assert not (await read_lane(other)).is_paused


async def test_a_probe_that_called_nothing_proves_nothing(daemon: Daemon) -> None:
    """Its step turned out to be done already, or our own database was away."""
    await fail(daemon, error(Fate.BUDGET))
    await set_lane(daemon, "paused_until = now() - interval '1 s'")
    lane = daemon.lanes.find("painter")
    assert lane is not None

    async with lane.turn():
        pass
    with pytest.raises(Unavailable):
        async with lane.turn():
            raise Unavailable("The database is away.")

    assert (await read_lane(daemon)).is_paused
    await use(daemon)
    assert not (await read_lane(daemon)).is_paused


async def test_a_probe_whose_job_is_cancelled_before_it_hears_of_it_is_given_back(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fail(daemon, error(Fate.BUDGET))
    await set_lane(daemon, "paused_until = now() - interval '1 s'")
    lane = daemon.lanes.find("painter")
    assert lane is not None
    fetchrow, is_granted = daemon.db.fetchrow, asyncio.Event()

    async def answer_late(name: str, *arguments: Any) -> Any:
        row = await fetchrow(name, *arguments)
        if name == "take_turn" and row is not None and row["granted"]:
            is_granted.set()
            await asyncio.sleep(0.05)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(daemon.db, "fetchrow", answer_late)
        asking = asyncio.create_task(use(daemon))
        await is_granted.wait()
        asking.cancel()
        await asyncio.wait({asking})

    assert asking.cancelled()
    assert ((await read_lane(daemon)).is_probing, lane.in_flight) == (False, 0)
    await use(daemon)
    assert not (await read_lane(daemon)).is_paused


@pytest.mark.parametrize("lost", ["take_turn", "end_turn"])
async def test_a_probe_that_was_lost_with_the_connection_is_replaced(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Nobody knows of it here, so nobody would end it: the lane would stay closed for ten minutes."""
    await fail(daemon, error(Fate.BUDGET))
    await set_lane(daemon, "paused_until = now() - interval '1 s'")
    fetchrow = daemon.db.fetchrow

    async def break_off(name: str, *arguments: Any) -> Any:
        if name == lost == "end_turn":
            raise Unavailable("The connection was lost.")
        row = await fetchrow(name, *arguments)
        if name == lost and row["granted"]:
            raise Unavailable("The connection was lost.")
        return row

    with monkeypatch.context() as patch, suppress(Unavailable):
        patch.setattr(daemon.db, "fetchrow", break_off)
        await use(daemon)

    assert (await read_lane(daemon)).is_probing
    await use(daemon)
    assert not (await read_lane(daemon)).is_paused


async def test_a_refused_picture_does_not_close_the_lane(daemon: Daemon) -> None:
    """The provider read it and judged it: the account works."""
    await fail(daemon, error(Fate.BUDGET))
    await set_lane(daemon, "paused_until = now() - interval '1 s'")

    await fail(daemon, error(Fate.PERMANENT, status=400))

    assert not (await read_lane(daemon)).is_paused


async def test_an_operator_opens_a_paused_lane(daemon: Daemon) -> None:
    await fail(daemon, error(Fate.CONFIG))

    assert await daemon.lanes.resume(FAST.name)
    assert not await daemon.lanes.resume(FAST.name)

    await use(daemon)


async def test_a_thousand_jobs_on_an_empty_account_make_at_most_five_calls(
    db: Database, storage: Storage
) -> None:
    """Each minute; none of them loses an attempt, none of them reserves money for long."""
    wide = LaneLimits("painter:1", "painter", max_in_flight=50, calls_per_minute=60_000)
    daemon = await start_daemon(db, storage, lanes={"painter": wide})
    provider = Provider(error=error(Fate.BUDGET))
    jobs = [await claim_job(daemon) for _ in range(20)]

    async def one_minute() -> list[BaseException | object]:
        return await asyncio.gather(
            *(
                daemon.pay(jobs[n % 20], provider, str(n), estimate_usd=Decimal("0.1"), by="painter")
                for n in range(1000)
            ),
            return_exceptions=True,
        )

    ends = await one_minute()
    calls = [provider.calls]
    await set_lane(daemon, "paused_until = now() - interval '1 s'")
    ends += await one_minute()
    calls.append(provider.calls - calls[0])

    assert calls[0] <= 5
    assert 1 == calls[1]
    assert 2000 == len(ends)
    for end in ends:
        assert isinstance(end, (Retry, ProviderError))
        assert isinstance(end, ProviderError) or not end.counts_attempt
    assert (0, 0) == await read_spend(daemon)
    assert {"failed": sum(calls)} == await count_states(daemon)


async def test_a_stored_result_needs_no_open_lane(daemon: Daemon) -> None:
    job = await claim_job(daemon)
    await daemon.pay(job, Provider(), by="painter")
    await fail(daemon, error(Fate.BUDGET))

    value = await daemon.pay(job, Provider(), by="painter")

    assert value.reused


async def test_each_provider_with_a_key_has_a_lane_of_its_own() -> None:
    settings = Settings(
        openai=OpenAI(api_key=SecretStr("one"), images_per_minute=5),
        cutout=Cutout(base_url="http://cutter.example"),
        gemini=Gemini(api_key=SecretStr("two")),
    )
    other_key = Settings(openai=OpenAI(api_key=SecretStr("three")))

    lanes = plan_lanes(settings)

    assert {"openai", "removebg", "gemini"} == set(lanes)
    assert 5 == lanes["openai"].calls_per_minute
    assert lanes["openai"].name != plan_lanes(other_key)["openai"].name
    assert "one" not in lanes["openai"].name.partition(":")[2]
    assert {} == plan_lanes(Settings())


async def test_no_minute_has_more_calls_wherever_it_begins(db: Database, storage: Storage) -> None:
    """A bucket that refills while it is used lets up to twice the limit through in its first minute.

    The database's clock cannot be turned, so the lane's record is moved into the past, second by second.
    """
    limits = LaneLimits("painter:1", "painter", max_in_flight=50, calls_per_minute=7)
    daemon = await start_daemon(db, storage, lanes={"painter": limits})
    clock = asyncio.get_running_loop().time
    began, granted_s = clock(), []
    for second in range(150):
        for _ in range(2):
            try:
                await use(daemon)
            except Retry:
                break
            granted_s.append(second + clock() - began)
        await set_lane(
            daemon,
            "used = used[2:62] || used[1:1], used_at = used_at - 1, started_at = started_at - interval '1 s'",
        )

    assert 7 == max(sum(start <= at < start + 60 for at in granted_s) for start in granted_s)
    assert len(granted_s) >= 14  # and it is no miser


@pytest.mark.parametrize("per_minute", [3, 0.5])
async def test_a_clock_that_is_put_back_does_not_close_the_lane(
    db: Database, storage: Storage, per_minute: float
) -> None:
    """As by a failover to a machine whose clock was wrong. The lane's record is moved into the future instead."""
    limits = LaneLimits("painter:1", "painter", max_in_flight=50, calls_per_minute=per_minute)
    daemon = await start_daemon(db, storage, lanes={"painter": limits})
    with pytest.raises(Retry):
        while True:
            await use(daemon)

    await set_lane(daemon, "used_at = used_at + 3600, started_at = started_at + interval '1 hour'")

    await use(daemon)


async def test_a_costly_call_takes_several_of_a_minute(db: Database, storage: Storage) -> None:
    """remove.bg counts megapixels: a photo of 4 MP leaves 6 of 10."""
    limits = LaneLimits("painter:1", "painter", max_in_flight=50, calls_per_minute=10)
    daemon = await start_daemon(db, storage, lanes={"painter": limits})
    paid = 0
    for number in range(4):
        try:
            await daemon.steps.run(
                await claim_job(daemon), "cutout", provider="painter", identity=(str(number),),
                estimate_usd=Decimal(0), call=Provider().call, rate_cost=4,
            )  # fmt: skip
        except Retry:
            continue
        paid += 1

    assert 2 == paid


async def test_a_cold_lane_has_few_calls_in_flight(daemon: Daemon) -> None:
    """An account that refuses slowly must not be asked once for each slot meanwhile."""
    wide = Lane(daemon.db, replace(FAST, max_in_flight=40), lambda: daemon.worker)

    grants = []
    with pytest.raises(Retry):
        for _ in range(6):
            grants.append(await wide.enter(1.0))

    assert 5 == len(grants)
