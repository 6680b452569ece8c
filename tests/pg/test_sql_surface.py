"""The SQL functions as apps meet them: named, described, closed, pinned, and the old names on top of the new ones."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from uuid import RFC_4122

import asyncpg
import pytest

from daemon.db import Database, sql_dir

# With the owner's rights: what an app, a browser's role or a confined read may do and tables would show too much for.
DEFINERS = {"enqueue_job", "enqueue_jobs", "count_ahead"}


@pytest.fixture
async def connection(db: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await db.dedicated_connection("test")
    yield connection
    connection.terminate()


async def test_every_function_is_described_pinned_and_closed(connection: asyncpg.Connection) -> None:
    rows = await connection.fetch(
        """
        select
            p.proname as name, p.prosecdef as is_definer, p.proconfig as settings, p.prosqlbody is not null as is_bound,
            obj_description(p.oid, 'pg_proc') as comment,
            has_function_privilege('public', p.oid, 'execute') as is_open,
            exists (
                select from unnest(coalesce(p.proargnames, '{}')) as a (name) where a.name = ''
            ) or cardinality(coalesce(p.proargnames, '{}')) < p.pronargs as has_nameless
        from pg_proc as p
        where p.pronamespace = 'listingd'::regnamespace
        """
    )

    assert len(rows) > 20
    for row in rows:
        assert row["comment"], row["name"]
        assert row["is_bound"] or "search_path=pg_catalog, pg_temp" in (row["settings"] or ()), row["name"]
        assert not row["is_open"], row["name"]
        assert not row["has_nameless"], row["name"]
    assert {row["name"] for row in rows if row["is_definer"]} == DEFINERS


def test_every_function_stands_in_a_file_of_its_name() -> None:
    for path in (sql_dir() / "functions").glob("*.sql"):
        made = re.findall(r"create or replace function listingd\.(\w+)", path.read_text())
        assert [path.stem] == made


async def test_no_function_has_two_forms(connection: asyncpg.Connection) -> None:
    """An overloaded function is ambiguous for callers with named arguments, PostgREST among them."""
    rows = await connection.fetch(
        "select p.proname from pg_proc as p where p.pronamespace = 'listingd'::regnamespace group by 1 having count(*) > 1"
    )

    assert [] == rows


async def test_ids_of_one_call_are_uuids_of_version_7_in_their_order(connection: asyncpg.Connection) -> None:
    before_ms = int(await connection.fetchval("select extract(epoch from clock_timestamp()) * 1000"))
    ids = [row[0] for row in await connection.fetch("select listingd.new_ids(5000)")]
    single = await connection.fetchval("select listingd.new_id()")

    assert sorted({*ids, single}) == [*ids, single] or ids[-1].bytes[:6] == single.bytes[:6]
    assert 5000 == len(set(ids))
    for made in (ids[0], ids[-1], single):
        assert (7, RFC_4122) == (made.version, made.variant)
        assert 0 <= int.from_bytes(made.bytes[:6]) - before_ms < 60_000


async def test_a_batch_keeps_its_order_whoever_has_a_unique_key(connection: asyncpg.Connection) -> None:
    jobs = [{"kind": "ping", "unique_key": f"k{n}"} if n % 3 else {"kind": "ping"} for n in range(30)]

    ids = [
        row[0] for row in await connection.fetch("select listingd.enqueue_jobs($1::jsonb)", json.dumps(jobs))
    ]

    assert ids == [
        row[0] for row in await connection.fetch("select id from listingd.job_states order by fence")
    ]
    assert ids == [row[0] for row in await connection.fetch("select id from listingd.jobs order by id")]


async def test_arguments_are_named_and_have_defaults(connection: asyncpg.Connection) -> None:
    job = await connection.fetchval("select listingd.enqueue_job('ping')")
    other = await connection.fetchval(
        "select listingd.enqueue_job(priority => 7, kind => 'ping', tags => null, metadata => null, input => null)"
    )

    rows = await connection.fetch("select id, priority, tags, input::text from listingd.jobs order by id")
    assert [(job, 0, [], "{}"), (other, 7, [], "{}")] == [tuple(row) for row in rows]


async def test_a_caller_cannot_slip_a_table_under_a_function(connection: asyncpg.Connection) -> None:
    """A definer function that looked into the caller's search_path would run the caller's code as the owner."""
    await connection.execute("create temp table jobs (id uuid, kind text)")
    await connection.execute("create function pg_temp.coalesce_trap() returns int language sql as 'select 1'")
    await connection.execute("set search_path = pg_temp, listingd")

    await connection.fetchval("select listingd.enqueue_job('ping')")

    assert 0 == await connection.fetchval("select count(*) from pg_temp.jobs")
    assert 1 == await connection.fetchval("select count(*) from listingd.jobs")


async def test_the_old_names_work_one_job_and_are_fenced(connection: asyncpg.Connection) -> None:
    job = await connection.fetchval("select listingd.enqueue_job('image', user_id => 'u')")

    seen = await connection.fetchrow("select * from listingd.get_next_job()")
    claimed = await connection.fetchrow("select * from listingd.mark_job_processing($1)", seen["id"])
    twice = await connection.fetch("select * from listingd.mark_job_processing($1)", seen["id"])
    await connection.execute("update listingd.workers set lease_until = now()")
    await connection.execute("select listingd.rescue_jobs(5, null, 0)")
    second = await connection.fetchrow("select * from listingd.mark_job_processing($1)", job)
    late = await connection.fetchval("select listingd.mark_job_completed($1, '1')", claimed["fence"])
    late_failure = await connection.fetchval(
        "select listingd.mark_job_failed($1, 'late', 'Late.')", claimed["fence"]
    )
    done = await connection.fetchval("select listingd.mark_job_completed($1, '2')", second["fence"])

    assert (job, job) == (seen["id"], claimed["id"])
    assert [] == twice
    assert second["fence"] > claimed["fence"]
    assert (None, None, job) == (late, late_failure, done)
    assert 2 == json.loads(
        await connection.fetchval("select result from listingd.job_states where id = $1", job)
    )


async def test_a_claims_own_lease_ends_with_it(connection: asyncpg.Connection) -> None:
    """Rescue walks the queue for each lease that runs out: thousands of ended claims would keep it from those that matter."""
    jobs = [
        row[0]
        for row in await connection.fetch(
            'select listingd.enqueue_jobs(\'[{"kind":"ping"}, {"kind":"ping"}]\')'
        )
    ]
    done, failed = [
        (await connection.fetchrow("select * from listingd.mark_job_processing($1)", job))["fence"]
        for job in jobs
    ]

    await connection.fetch("select listingd.mark_job_completed($1)", done)
    await connection.fetch("select listingd.mark_job_failed($1, 'busy', 'Busy.')", failed)

    leases = await connection.fetch(
        "select stopped_at = lease_until as ended_by_itself from listingd.workers"
    )
    assert [True, True] == [row[0] for row in leases]


async def test_a_fence_that_has_passed_claims_nothing(connection: asyncpg.Connection) -> None:
    job = await connection.fetchval("select listingd.enqueue_job('image')")

    assert [] == await connection.fetch("select * from listingd.mark_job_processing($1, 1000000)", job)
    assert [] == await connection.fetch("select * from listingd.get_next_job('{pack}')")
    assert "pending" == await connection.fetchval("select state from listingd.job_states where id = $1", job)


@pytest.mark.parametrize("column", ["run_at", "expires_at"])
@pytest.mark.parametrize(
    "time", ["infinity", "-infinity", "0044-03-15 BC", "1999-12-31 23:59Z", "2201-01-01 00:00Z"]
)
async def test_a_time_that_could_stop_the_queue_is_refused(
    connection: asyncpg.Connection, column: str, time: str
) -> None:
    """Python cannot hold some of them, and PostgreSQL 16 cannot subtract from others: every look at the queue would fail."""
    for call in (
        f"select listingd.enqueue_job('ping', {column} => $1::text::timestamptz)",
        f"select listingd.enqueue_jobs(jsonb_build_array(jsonb_build_object('kind', 'ping', '{column}', $1::text)))",
    ):
        with pytest.raises(asyncpg.CheckViolationError, match=f"jobs_{column}_check"):
            await connection.fetch(call, time)

    assert 0 == await connection.fetchval("select count(*) from listingd.job_states")


@pytest.mark.parametrize("later", ["0 s", "1 h"])
async def test_a_job_that_would_expire_before_it_may_run_is_refused(
    connection: asyncpg.Connection, later: str
) -> None:
    for call in (
        "select listingd.enqueue_job('ping', run_at => now() + $1::text::interval, expires_at => now())",
        """
        select listingd.enqueue_jobs(
            jsonb_build_array(jsonb_build_object('kind', 'ping', 'run_at', now() + $1::text::interval, 'expires_at', now()))
        )
        """,
    ):
        with pytest.raises(asyncpg.CheckViolationError, match=r"expires_at .* must be later than run_at"):
            await connection.fetch(call, later)

    assert 0 == await connection.fetchval("select count(*) from listingd.job_states")


@pytest.mark.parametrize("delay_s", [1e13, -1e13, float("inf"), float("nan")])
async def test_a_failed_attempt_is_put_off_for_a_year_at_most(
    connection: asyncpg.Connection, delay_s: float
) -> None:
    """A worker may hand on what a provider said, and some say milliseconds since 1970."""
    job = await connection.fetchval("select listingd.enqueue_job('ping')")
    claimed = await connection.fetchrow("select * from listingd.mark_job_processing($1)", job)

    state = await connection.fetchval(
        "select listingd.mark_job_failed($1, 'busy', 'Busy.', delay_s => $2)", claimed["fence"], delay_s
    )

    assert "pending" == state
    assert await connection.fetchval(
        "select run_at between now() - interval '1 minute' and now() + interval '366 days' from listingd.job_states"
    )


async def test_a_job_that_completes_after_a_failed_attempt_has_no_error(
    connection: asyncpg.Connection,
) -> None:
    """Webhooks and the views show error as it stands."""
    job = await connection.fetchval("select listingd.enqueue_job('ping')")
    first = await connection.fetchrow("select * from listingd.mark_job_processing($1)", job)
    await connection.fetchval(
        "select listingd.mark_job_failed($1, 'busy', 'Busy.', delay_s => 0)", first["fence"]
    )
    second = await connection.fetchrow("select * from listingd.mark_job_processing($1)", job)

    assert job == await connection.fetchval("select listingd.mark_job_completed($1, '1')", second["fence"])

    assert await connection.fetchval("select error is null from listingd.job_states")


@pytest.mark.parametrize(
    "webhook", ['"https://shop.example/hook"', '["https://shop.example/hook"]', "{}", '{"url": 1}']
)
async def test_a_webhook_that_could_go_nowhere_is_refused(
    connection: asyncpg.Connection, webhook: str
) -> None:
    """Nobody would ever hear of the job, nor of the mistake."""
    for call in (
        "select listingd.enqueue_job('ping', webhook => $1::jsonb)",
        "select listingd.enqueue_jobs(jsonb_build_array(jsonb_build_object('kind', 'ping', 'webhook', $1::jsonb)))",
    ):
        with pytest.raises(asyncpg.CheckViolationError, match="jobs_webhook_check"):
            await connection.fetch(call, webhook)


async def test_no_webhook_may_be_written_as_null(connection: asyncpg.Connection) -> None:
    await connection.fetch("select listingd.enqueue_job('ping', webhook => 'null')")
    await connection.fetch("""select listingd.enqueue_jobs('[{"kind": "ping", "webhook": null}]')""")

    assert 2 == await connection.fetchval("select count(*) from listingd.jobs where webhook is null")
