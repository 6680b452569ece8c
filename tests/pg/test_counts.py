"""Counts for dashboards: right while they can be, near while very many wait, and never by reading the whole queue."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from daemon.db import Database

Counts = dict[tuple[str, str], tuple[int, bool]]


@pytest.fixture
async def connection(db: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await db.dedicated_connection("test")
    yield connection
    connection.terminate()


async def store(
    connection: asyncpg.Connection, kind: str, jobs: int, *, due_in_s: float | None = None
) -> None:
    await connection.execute(
        "select listingd.enqueue_jobs((select jsonb_agg(jsonb_build_object('kind', $1::text, 'run_at',"
        " now() + make_interval(secs => $3::float8))) from generate_series(1, $2::int)))",
        kind, jobs, due_in_s,
    )  # fmt: skip


async def count(connection: asyncpg.Connection, *, window: int = 1500, samples: int = 800) -> Counts:
    rows = await connection.fetch("select * from listingd.count_queues($1, $2)", window, samples)
    return {(row["kind"], row["state"]): (row["jobs"], row["is_estimate"]) for row in rows}


async def move_mark(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "update listingd.queue_mark set fence = (select last_value + 1 from listingd.fences)"
    )


async def test_an_empty_queue_has_no_counts(connection: asyncpg.Connection) -> None:
    assert {} == await count(connection)


async def test_counts_are_exact_for_ordinary_queues(connection: asyncpg.Connection) -> None:
    await store(connection, "image", 30)
    await store(connection, "pack", 7)
    await connection.execute(
        "select listingd.mark_jobs_processing('w', array(select fence from listingd.job_states where kind = 'image' limit 5))"
    )

    assert {
        ("image", "pending"): (25, False),
        ("image", "processing"): (5, False),
        ("pack", "pending"): (7, False),
    } == await count(connection)


async def test_what_is_due_later_counts_below_the_mark_too(connection: asyncpg.Connection) -> None:
    """The mark has passed a job that waits for its time, and one that is overdue because its kind is paused."""
    await store(connection, "image", 3, due_in_s=3600)
    await store(connection, "aplus", 2, due_in_s=-60)
    await move_mark(connection)
    await store(connection, "pack", 1)

    assert {
        ("aplus", "pending"): (2, False),
        ("image", "pending"): (3, False),
        ("pack", "pending"): (1, False),
    } == await count(connection)


async def test_a_deep_queue_is_estimated_and_says_so(connection: asyncpg.Connection) -> None:
    """A tenth of it counted, the rest sampled: within a few percent, and the few at either end are exact."""
    await store(connection, "aplus", 3)
    for _ in range(5):
        await store(connection, "image", 2000)
        await store(connection, "pack", 1000)
    await store(connection, "ping", 4)

    counts = await count(connection, window=500, samples=1000)

    assert (3, True) == counts["aplus", "pending"]
    assert (4, True) == counts["ping", "pending"]
    assert 10_000 == pytest.approx(counts["image", "pending"][0], rel=0.15)
    assert 5_000 == pytest.approx(counts["pack", "pending"][0], rel=0.25)


async def test_the_age_is_that_of_the_job_that_was_ready_first(connection: asyncpg.Connection) -> None:
    await store(connection, "image", 2)

    (row,) = await connection.fetch("select * from listingd.count_queues()")

    assert -1 < row["oldest_s"] < 60
