"""Retention: what goes with a job that ended long ago, and what of its money stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from daemon.db import Database
from daemon.jobs import new_id


@pytest.fixture
async def connection(db: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await db.dedicated_connection("test")
    yield connection
    connection.terminate()


async def end_job(
    connection: asyncpg.Connection, *, days_ago: int, state: str = "completed", parent: UUID | None = None
) -> UUID:
    """A job that was made and ended so many days ago; its id says so too."""
    made = await connection.fetchval("select listingd.enqueue_job('ping', user_id => 'u')")
    job_id = UUID(int=made.int - (days_ago * 86_400_000 << 80))
    await connection.execute(
        "update listingd.jobs set id = $2, parent_id = $3 where id = $1", made, job_id, parent
    )
    await connection.execute(
        "update listingd.job_states set id = $4, parent_id = $5, state = $2,"
        " finished_at = now() - make_interval(days => $3) where id = $1",
        made, state, days_ago, job_id, parent,
    )  # fmt: skip
    return job_id


async def add_step(
    connection: asyncpg.Connection, job_id: UUID, sha256: str | None, *, usd: str = "0", state: str = "done"
) -> UUID:
    step = new_id()
    await connection.execute(
        "insert into listingd.steps (id, user_id, identity, job_id, kind, name, provider, state, worker, fence,"
        " estimated_usd, actual_usd, reserved_on, content_sha256, document)"
        " values ($1, 'u', $1::uuid::text, $2, 'ping', 'paint', 'p', $3, 1, 1, $4::text::numeric,"
        " case when $3 = 'done' then $4::text::numeric end, current_date, $5, '{}')",
        step, job_id, state, usd, sha256,
    )  # fmt: skip
    return step


async def add_asset(connection: asyncpg.Connection, job_id: UUID, sha256: str) -> None:
    await connection.execute(
        "insert into listingd.assets (id, job_id, role, content_type, size_bytes, sha256, version)"
        " values ($1, $2, 'image', 'image/png', 1, $3, 2)",
        new_id(), job_id, sha256,
    )  # fmt: skip


async def prune(db: Database, *states: str, limit: int = 100) -> asyncpg.Record:
    row = await db.fetchrow("prune_jobs", states or ["completed"], 86_400.0, limit, None)
    assert row is not None
    return row


async def test_a_pruned_jobs_results_go_and_its_money_stays(
    db: Database, connection: asyncpg.Connection
) -> None:
    old = await end_job(connection, days_ago=2)
    paid = await add_step(connection, old, "paid", usd="0.25")
    unknown = await add_step(connection, old, None, usd="0.10", state="unknown")
    await add_step(connection, old, "free")
    await add_asset(connection, old, "picture")

    row = await prune(db)

    assert 1 == row["jobs"]
    assert ["free", "paid", "picture"] == sorted(row["sha256s"])
    left = await connection.fetch(
        "select id, job_id, identity, content_sha256, document, coalesce(actual_usd, estimated_usd)::float8"
        " from listingd.steps order by id"
    )
    assert sorted([(paid, old, None, None, None, 0.25), (unknown, old, None, None, None, 0.1)]) == [
        tuple(step) for step in left
    ]


async def test_a_young_job_keeps_its_steps(db: Database, connection: asyncpg.Connection) -> None:
    young = await end_job(connection, days_ago=0)
    await add_step(connection, young, "kept", usd="0.25")

    row = await prune(db)

    assert (0, None) == (row["jobs"], row["sha256s"])
    assert "kept" == await connection.fetchval("select content_sha256 from listingd.steps")


async def test_a_file_that_another_step_names_is_in_use(db: Database, connection: asyncpg.Connection) -> None:
    """Two jobs with the same picture: the younger one's checkpoint must not lose its file."""
    await add_step(connection, await end_job(connection, days_ago=2), "shared", usd="0.25")
    await add_step(connection, await end_job(connection, days_ago=0), "shared", usd="0.25")

    row = await prune(db)

    assert ["shared"] == row["sha256s"]
    assert ["shared"] == [row["sha256"] for row in await db.fetch("find_owned", ["shared", "nobody's"])]


async def test_a_job_made_long_ago_that_ended_just_now_is_kept(
    db: Database, connection: asyncpg.Connection
) -> None:
    late = await end_job(connection, days_ago=2)
    await connection.execute("update listingd.job_states set finished_at = now() where id = $1", late)

    assert 0 == (await prune(db))["jobs"]


async def test_retention_looks_at_old_jobs_alone(db: Database, connection: asyncpg.Connection) -> None:
    """It runs every minute: reading a million young jobs each time would be a scan."""
    old = await end_job(connection, days_ago=2, state="failed")
    await end_job(connection, days_ago=0)

    row = await prune(db)

    assert (0, old) == (row["jobs"], row["last_id"])


async def test_a_child_goes_with_its_parent_whatever_its_own_state(
    db: Database, connection: asyncpg.Connection
) -> None:
    """The finished images of a failed pack were once erased with the completed jobs, months before the pack."""
    pack = await end_job(connection, days_ago=3, state="failed")
    for state in ("completed", "completed", "failed"):
        await end_job(connection, days_ago=2, state=state, parent=pack)

    assert 0 == (await prune(db))["jobs"]
    row = await prune(db, "failed", "cancelled", limit=1)

    assert (4, pack) == (row["jobs"], row["last_id"])


async def test_a_child_outlives_a_parent_too_young_and_goes_alone_when_it_is_gone(
    db: Database, connection: asyncpg.Connection
) -> None:
    pack = await end_job(connection, days_ago=0)
    await end_job(connection, days_ago=2, parent=pack)

    assert 0 == (await prune(db))["jobs"]
    await connection.execute("delete from listingd.job_states where id = $1", pack)

    assert 1 == (await prune(db))["jobs"]


async def test_a_child_that_runs_again_stays_when_its_parent_goes(
    db: Database, connection: asyncpg.Connection
) -> None:
    pack = await end_job(connection, days_ago=2, state="failed")
    child = await end_job(connection, days_ago=2, state="failed", parent=pack)
    await db.fetchrow("retry_job", child, None)

    assert 1 == (await prune(db, "failed"))["jobs"]
    assert child == await connection.fetchval("select id from listingd.job_states where state = 'pending'")


async def test_a_job_that_is_retried_at_this_moment_is_kept(
    db: Database, connection: asyncpg.Connection
) -> None:
    """It was once chosen before the retry and erased after it."""
    job = await end_job(connection, days_ago=2, state="failed")
    other = await end_job(connection, days_ago=2, state="failed")
    transaction = connection.transaction()
    await transaction.start()
    await connection.fetch(db.sql["retry_job"], job, None)

    row = await prune(db, "failed")
    await transaction.commit()

    assert (1, max(job, other)) == (row["jobs"], row["last_id"])
    assert [(job, "pending")] == [
        tuple(left) for left in await connection.fetch("select id, state from listingd.job_states")
    ]
