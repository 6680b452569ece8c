"""The watchdog names who holds back vacuum; the gauges say how many jobs wait."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
import structlog

from daemon import metrics
from daemon.db import Database, open_pool
from daemon.migrate import migrate
from daemon.settings import Settings
from daemon.vitals import Vitals
from tests.conftest import temporary_postgres

KINDS = ("image", "ping")


@pytest.fixture
async def session(db: Database) -> AsyncIterator[asyncpg.Connection]:
    """Somebody's shell."""
    connection = await asyncpg.connect(db.dsn, server_settings={"application_name": "psql"})
    yield connection
    await connection.close()


async def test_a_forgotten_transaction_is_named(db: Database, session: asyncpg.Connection) -> None:
    await session.execute("begin isolation level repeatable read; select 1")

    (holder,) = await Vitals(db, kinds=KINDS, hold_s=0).find_holders()
    patient = await Vitals(db, kinds=KINDS, hold_s=3600).find_holders()

    assert ("session", session.get_server_pid(), "psql", "idle in transaction") == (
        holder.held_by, holder.pid, holder.application, holder.state,
    )  # fmt: skip
    assert holder.query_start is not None
    assert 0 <= holder.age_s < 600
    assert [] == patient


async def test_it_is_told_once_and_the_metric_follows(db: Database, session: asyncpg.Connection) -> None:
    vitals = Vitals(db, kinds=KINDS, hold_s=0)
    await session.execute("begin isolation level repeatable read; select 1")

    with structlog.testing.capture_logs() as lines:
        vitals._tell(await vitals.find_holders())
        vitals._tell(await vitals.find_holders())
        held_s = metrics.VACUUM_HELD._value.get()
        await session.execute("rollback")
        vitals._tell(await vitals.find_holders())

    assert [("database.vacuum_held", session.get_server_pid())] == [
        (line["event"], line["pid"]) for line in lines
    ]
    assert held_s > 0
    assert 0 == metrics.VACUUM_HELD._value.get()


async def test_an_idle_session_holds_nothing(db: Database, session: asyncpg.Connection) -> None:
    await session.execute("begin; select 1")

    assert [] == await Vitals(db, kinds=KINDS, hold_s=0).find_holders()


async def test_a_session_of_another_database_holds_nothing_here(db: Database, postgres_dsn: str) -> None:
    other = await asyncpg.connect(postgres_dsn)
    await other.execute("begin isolation level repeatable read; select 1")
    try:
        assert [] == await Vitals(db, kinds=KINDS, hold_s=0).find_holders()
    finally:
        await other.close()


async def test_a_slot_is_told_once_it_stands_still_for_too_long(db: Database) -> None:
    """Postgres keeps no time for slots: their age counts from when this horizon was seen first."""
    slot = (
        "select 'replication slot' as held_by, 'standby' as name, null::int as pid, 'physical' as application,"
        " 'inactive' as state, null::float8 as age_s, null::timestamptz as query_start, '{}' as horizon"
    )
    vitals = Vitals(db, kinds=KINDS, hold_s=0.000001)

    found = []
    for horizon in ("700", "700", "800"):
        db.sql = {**db.sql, "find_vacuum_holders": slot.replace("{}", horizon)}
        found.append([holder.name for holder in await vitals.find_holders()])

    assert [[], ["standby"], []] == found


@pytest.fixture(scope="module")
def two_phase_server() -> Iterator[str]:
    with temporary_postgres(options={"max_prepared_transactions": "2"}) as dsn:
        yield dsn


async def test_a_forgotten_prepared_transaction_is_named(two_phase_server: str, settings: Settings) -> None:
    """It outlives its session and even a restart: nothing in pg_stat_activity shows it."""
    await migrate(two_phase_server)
    shell = await asyncpg.connect(two_phase_server)
    await shell.execute(
        "begin; select listingd.new_id(); create table forgotten (id int); prepare transaction 'lost'"
    )
    await shell.close()

    async with await open_pool(settings, dsn=two_phase_server) as db:
        (holder,) = await Vitals(db, kinds=KINDS, hold_s=0).find_holders()
        await db.pool.execute("rollback prepared 'lost'")

    assert ("prepared transaction", "lost", None) == (holder.held_by, holder.name, holder.pid)


async def test_the_gauges_show_what_waits(db: Database) -> None:
    """Kinds that nobody knows share one label: it must stay a small set."""
    await db.pool.execute(
        "select listingd.enqueue_job('ping'), listingd.enqueue_job('ping'), listingd.enqueue_job('odd')"
    )

    await Vitals(db, kinds=KINDS, hold_s=600).count_jobs()

    def gauge(kind: str) -> float:
        return metrics.QUEUE_DEPTH.labels(kind, "pending")._value.get()

    assert (2, 0, 1) == (gauge("ping"), gauge("image"), gauge("other"))


async def test_every_busy_table_is_vacuumed_early(db: Database) -> None:
    """Postgres' own threshold (a fifth of the table) would let a million dead rows pile up before the first vacuum."""
    rows = await db.pool.fetch(
        "select c.relname, c.reloptions from pg_class as c where c.relnamespace = 'listingd'::regnamespace"
        " and c.relname = 'job_states'"
    )
    options = dict(option.split("=") for option in rows[0]["reloptions"])

    assert float(options["autovacuum_vacuum_scale_factor"]) <= 0.05
    assert int(options["autovacuum_vacuum_threshold"]) <= 5000
    assert float(options["autovacuum_vacuum_insert_scale_factor"]) <= 0.2
    assert int(options["fillfactor"]) <= 70
    small = await db.pool.fetch(
        "select c.relname from pg_class as c where c.relnamespace = 'listingd'::regnamespace"
        " and c.relname in ('workers', 'queue_mark', 'spend', 'lanes', 'lane_turns')"
        " and coalesce(c.reloptions::text, '') not like '%fillfactor%'"
    )
    assert [] == small, "rows that are updated for ever need room for their next version on the page"
