"""Every statement of the hot paths over 200 000 jobs: no scan of the queue, and few rows touched.

Each runs for real, in a transaction that is rolled back, on a session set as in production and often enough for
Postgres to choose a generic plan. What it touched is what Postgres counted, statements inside functions included.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from daemon.db import load_queries
from daemon.jobs import first_id, new_id
from tests.conftest import _run_on, with_database
from tests.pg.seeding import seed_jobs

JOBS, PENDING = 200_000, 50_000
USER = "user-10"
KINDS = ["image", "pack", "aplus", "ping", "webhook"]

SQL = load_queries()

# Rows a statement may touch: a few for each job it is about, and never a number that grows with the queue.
TOUCHED = """
select
    coalesce(sum(seq_scan) filter (where relname in ('jobs', 'job_states')), 0)::int as scans,
    coalesce(sum(idx_tup_fetch + seq_tup_read), 0)::int as rows
from pg_stat_xact_user_tables
where schemaname = 'listingd' and relname in ('jobs', 'job_states', 'assets', 'steps', 'attempts')
"""


@dataclass(frozen=True)
class Queue:
    """Some jobs of the seeded queue."""

    dsn: str
    mark: int
    pending: list[int]
    last: int
    running: list[int]
    worker: int
    failed: UUID
    completed: UUID
    due_pending: UUID
    project: UUID
    oldest: UUID


@pytest.fixture(scope="module")
def queue(postgres_dsn: str, template_database: str) -> Iterator[Queue]:
    name = f"ld_plans_{new_id().hex[-12:]}"
    asyncio.run(_run_on(postgres_dsn, f"create database {name} template {template_database}"))
    yield asyncio.run(_prepare(with_database(postgres_dsn, name)))
    asyncio.run(_run_on(postgres_dsn, f"drop database {name} with (force)"))


async def _prepare(dsn: str) -> Queue:
    c = await asyncpg.connect(dsn)
    try:
        await seed_jobs(c, JOBS, pending=PENDING)
        mark = await c.fetchval("select fence from listingd.queue_mark")
        worker = await c.fetchval(
            "insert into listingd.workers (instance, lease_until, low_fence)"
            " values ('one', now() + interval '1 hour', $1) returning id",
            mark,
        )
        fences = [
            row[0]
            for row in await c.fetch(
                "select fence from listingd.job_states where state = 'pending' and run_at is null order by fence limit 600"
            )
        ]
        running, pending = fences[:200], fences[200:]
        await c.execute(
            "update listingd.job_states set state = 'processing', worker = $2, attempt = 1, started_at = now()"
            " where fence = any($1)",
            running, worker,
        )  # fmt: skip
        ids = await c.fetchrow(
            "select (select max(fence) from listingd.job_states) as last,"
            " (select id from listingd.job_states where state = 'failed' limit 1) as failed,"
            " (select id from listingd.job_states where state = 'completed' and kind = 'image' limit 1) as completed,"
            " (select id from listingd.job_states where fence = $1) as due_pending,"
            " (select project_id from listingd.jobs where user_id = $2 and project_id is not null limit 1) as project,"
            " (select id from listingd.jobs order by id limit 1) as oldest",
            fences[-1], USER,
        )  # fmt: skip
        return Queue(dsn, mark, pending, running=running, worker=worker, **dict(ids))
    finally:
        await c.close()


@pytest.fixture
async def connection(queue: Queue) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(queue.dsn)
    await connection.fetchrow(SQL["set_session"], "15000ms", "3000ms", "10000ms")
    await connection.execute("set max_parallel_workers_per_gather = 0")  # a worker's counts come too late
    yield connection
    await connection.close()


def created(jobs: int) -> list[Any]:
    """The arguments of create_jobs."""
    job = {"kind": "image", "user_id": USER, "priority": 0, "max_attempts": 4, "input": {}, "born": False}
    return [json.dumps([job | {"id": str(new_id())} for _ in range(jobs)]), 1, False, 60.0]


Arguments = Callable[[Queue], list[Any]]

# name: (arguments, rows it may touch)
FLUSHER: dict[str, tuple[Arguments, int]] = {
    "create_jobs": (lambda q: created(100), 300),
    "flush": (
        lambda q: [q.running[:100], ["completed"] * 100, ["{}"] * 100, [None] * 100, [0.0] * 100, [0] * 100, q.worker, q.pending[:100]],
        1500,
    ),
    "read_ready": (lambda q: [q.mark + 1000, q.pending[:50], 500], 1000),
    "claim_fresh": (lambda q: [q.last - 20, 32, ["image", "ping"], [], q.worker], 150),
}  # fmt: skip
DAEMON: dict[str, tuple[Arguments, int]] = {
    "read_ready": (lambda q: [q.mark + 1000, q.pending[:50], 500], 1000),
    "read_backlog": (lambda q: [q.pending[0], q.mark + 10_000, KINDS, None, 500], 600),
    "read_user_pending": (lambda q: [USER, q.mark, 5], 3000),  # every 500th is theirs
    "find_foreign": (lambda q: [q.mark, q.mark + 500, ["image"]], 600),
    "read_due": (lambda q: [None, 7200.0, None, None, 500], 600),
    "read_mark": (lambda q: [], 10),
    "read_children": (lambda q: [q.completed], 20),
    "report_progress": (lambda q: [q.running[:50], ['{"done": 1}'] * 50, q.worker], 300),
    "find_asset": (lambda q: [q.completed, "image", None], 20),
    "read_cancels": (lambda q: [q.running, q.worker], 600),
    # After a lost answer only: what became ready since this worker's oldest job.
    "read_own_claims": (lambda q: [q.worker, q.running[-20], 0.0], PENDING + 1000),
    "stop_worker": (lambda q: [q.worker], 1000),  # up to the first job in its hands
    "expire_jobs": (lambda q: [500], 1200),
    "cancel_job": (lambda q: [q.due_pending, None], 30),
    "retry_job": (lambda q: [q.failed, None], 30),
    "erase_job": (lambda q: [q.completed, None], 60),
    "prune_jobs": (lambda q: [["completed"], 0.0, 1000, None], 12_000),
    "read_queue_loads": (lambda q: [], 8000),
    "read_run_times": (lambda q: ["image"], 13_000),
    "find_vacuum_holders": (lambda q: [], 10),
}


def newest() -> list[Any]:
    """since, limit and the lowest id for what lists new jobs."""
    since = datetime.now(UTC) - timedelta(minutes=30)
    return [since, 100, first_id(since.timestamp() - 60)]


READS: dict[str, tuple[Arguments, int]] = {
    "read_jobs": (lambda q: [[q.completed, q.due_pending, q.failed], None, True, ""], 2200),
    "read_versions": (lambda q: [[q.completed, q.failed]], 20),
    "list_user_jobs": (lambda q: [USER, 21, None, None, None, None, None, None], 100),
    "list_all_jobs": (lambda q: [None, 21, None, None, None, None, None, None], 100),
    "list_project_jobs": (lambda q: [USER, 21, None, None, None, None, None, None, None, q.project], 200),
    "list_child_jobs": (lambda q: [USER, 21, None, None, None, None, None, None, None, q.completed, None], 100),
    "list_open_user_jobs": (lambda q: [USER, None, None, None, None, 100], 2500),
    "list_open_jobs": (lambda q: [None, None, None, None, None, 100], 2500),
    "list_new_user_jobs": (lambda q: [USER, None, None, None, *newest()], 100),
    "list_new_jobs": (lambda q: [None, None, None, None, *newest()], 1000),
    "count_open_jobs": (lambda q: [USER, 100], 600),
    "read_asset": (lambda q: [q.completed, USER], 20),
    "read_job_assets": (lambda q: [q.completed, USER], 20),
    "find_owner": (lambda q: [q.completed, USER], 10),
    "read_project": (lambda q: [q.project, USER], 300),
    "find_photo": (lambda q: [USER, q.completed, q.completed], 10),
    "find_owned": (lambda q: [["nobody's"]], 10),
}  # fmt: skip
# With the reader's role, behind row level security.
CONFINED = (
    "read_jobs", "list_user_jobs", "list_project_jobs", "list_child_jobs", "list_open_user_jobs", "list_new_user_jobs",
    "read_asset", "read_job_assets", "find_owner", "read_project",
)  # fmt: skip


async def measure(connection: asyncpg.Connection, name: str, arguments: list[Any]) -> tuple[int, int]:
    """(scans of the queue's two tables, rows touched)."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        before = await connection.fetchrow(TOUCHED)
        await connection.fetch(SQL[name], *arguments)
        after = await connection.fetchrow(TOUCHED)
        return after["scans"] - before["scans"], after["rows"] - before["rows"]
    finally:
        await transaction.rollback()


async def check(connection: asyncpg.Connection, name: str, arguments: list[Any], bound: int) -> None:
    """Postgres plans five times for the parameters, then may settle on a generic plan: all seven must be good."""
    for run in range(7):
        scans, rows = await measure(connection, name, arguments)
        assert 0 == scans, f"{name} reads the whole queue in run {run}"
        assert rows <= bound, f"{name} touches {rows} rows in run {run}"


@pytest.mark.parametrize("name", FLUSHER)
async def test_the_flusher_walks_by_index(queue: Queue, connection: asyncpg.Connection, name: str) -> None:
    arguments, bound = FLUSHER[name]
    await connection.fetchrow(SQL["set_flusher"])

    scans, rows = await measure(connection, name, arguments(queue))

    assert 0 == scans, f"{name} reads a whole table"
    assert rows <= bound, f"{name} touches {rows} rows"


@pytest.mark.parametrize("name", DAEMON)
async def test_the_daemon_reads_few_rows(queue: Queue, connection: asyncpg.Connection, name: str) -> None:
    arguments, bound = DAEMON[name]
    await check(connection, name, arguments(queue), bound)


@pytest.mark.parametrize("name", READS)
async def test_the_api_reads_few_rows(queue: Queue, connection: asyncpg.Connection, name: str) -> None:
    arguments, bound = READS[name]
    await check(connection, name, arguments(queue), bound)


@pytest.mark.parametrize("name", CONFINED)
async def test_the_second_wall_scans_nothing(queue: Queue, connection: asyncpg.Connection, name: str) -> None:
    """Behind row level security an expression in a condition keeps the planner from the index."""
    arguments, bound = READS[name]
    await connection.execute(f"set listingd.user_id = '{USER}'; set role listingd_reader")
    await check(connection, name, arguments(queue), bound)


@pytest.mark.parametrize("name", ["list_new_user_jobs", "list_new_jobs"])
async def test_a_look_for_ends_of_old_jobs_walks_the_newest_alone(
    queue: Queue, connection: asyncpg.Connection, name: str
) -> None:
    """There is no index on finished_at: it would end the HOT updates of the queue."""
    user = USER if name == "list_new_user_jobs" else None
    since, limit, _ = newest()
    await check(connection, name, [user, None, None, None, since, limit, first_id(0)], 2500)


async def test_a_deep_page_costs_no_more_than_the_first(queue: Queue, connection: asyncpg.Connection) -> None:
    """The cursor is a place in the index, also in a generic plan."""
    row = await connection.fetchrow(
        "select id from listingd.jobs where user_id = $1 order by id limit 1 offset 30",
        USER,
    )
    await check(connection, "list_user_jobs", [USER, 21, *[None] * 5, row["id"]], 100)


async def test_rescue_reads_from_the_dead_workers_mark(queue: Queue, connection: asyncpg.Connection) -> None:
    """The low mark of a worker that held its jobs at the head of the queue: not the finished ones behind it."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        before = await connection.fetchrow(TOUCHED)
        await connection.execute("update listingd.workers set lease_until = now() - interval '1 s'")
        rescued = await connection.fetch(SQL["rescue_jobs"], 5, None, 0)
        row = await connection.fetchrow(TOUCHED)
    finally:
        await transaction.rollback()

    assert len(queue.running) == len(rescued)
    assert before["scans"] == row["scans"]
    assert row["rows"] - before["rows"] <= PENDING + 2000


async def test_expiry_looks_at_what_still_waits_alone(queue: Queue, connection: asyncpg.Connection) -> None:
    """A claim takes a job out of both time indexes: clients that set expires_at on every job leave nothing behind."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(
            "update listingd.job_states set expires_at = now() + interval '1 hour', run_at = now() - interval '1 s'"
            " where fence = any($1)",
            queue.pending[:50],
        )
        flushed = await connection.fetch(
            SQL["flush"], [], [], [], [], [], [], queue.worker, queue.pending[:50]
        )
        left = await connection.fetchval(
            "select count(*) from listingd.job_states where fence = any($1) and (run_at is not null or expires_at is not null)",
            queue.pending[:50],
        )
    finally:
        await transaction.rollback()

    assert 50 == len(flushed) - 1
    assert 0 == left
    assert json.loads(flushed[-1]["input_text"])["lost"] == []
