"""Races between statements, each forced into its bad order by a transaction that is held open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from daemon.db import Database
from daemon.jobs import State, new_id
from daemon.queue import Ended, Queue
from tests.support import eventually


class Bench:
    """A queue, a worker, two sessions and one that watches."""

    def __init__(self, db: Database, sessions: list[asyncpg.Connection], worker: int) -> None:
        self.db, self.worker = db, worker
        self.first, self.second = sessions
        self.queue = Queue(db)

    async def run(self, kind: str = "pack") -> tuple[UUID, int]:
        """A job in the worker's hands; its fence."""
        job = await self.db.pool.fetchval("select listingd.enqueue_job($1)", kind)
        fence = await self.db.pool.fetchval("select fence from listingd.job_states where id = $1", job)
        await self.queue.flush(self.first, [], self.worker, [fence])
        return job, fence

    async def state(self, job: UUID) -> Any:
        return await self.db.pool.fetchrow("select * from listingd.job_states where id = $1", job)

    async def waits_for_a_lock(self, session: asyncpg.Connection) -> None:
        pid = session.get_server_pid()

        async def waiting() -> bool:
            return bool(await self.db.pool.fetchval("select cardinality(pg_blocking_pids($1)) > 0", pid))

        await eventually(waiting)


@pytest.fixture
async def bench(db: Database) -> AsyncIterator[Bench]:
    row = await db.fetchrow("start_worker", "test", 600.0, ["ping"], 4, "{}")
    assert row is not None
    sessions = [await db.dedicated_connection("test") for _ in range(2)]
    yield Bench(db, sessions, row["id"])
    for session in sessions:
        session.terminate()


def spawn(*slots: str) -> str:
    return json.dumps([{"id": str(new_id()), "kind": "ping", "slot": slot, "input": {}} for slot in slots])


async def test_a_child_that_ends_while_its_parent_fans_out_again_is_counted(bench: Bench) -> None:
    """A parent that runs again finds a child still open. While its statement is being committed that child ends:
    counted by neither, the parent would wait for ever.
    """
    parent, fence = await bench.run()
    await bench.db.fetch("fan_out", fence, bench.worker, spawn("main"))
    child = await bench.db.pool.fetchrow("select * from listingd.job_states where parent_id = $1", parent)
    await bench.queue.flush(bench.first, [], bench.worker, [child["fence"]])
    await bench.db.pool.execute(
        "update listingd.job_states set state = 'processing', worker = $2, open_children = 0 where id = $1",
        parent,
        bench.worker,
    )
    again = (await bench.state(parent))["fence"]

    transaction = bench.first.transaction()
    await transaction.start()
    await bench.first.fetch(bench.db.sql["fan_out"], again, bench.worker, spawn("main"))
    ending = asyncio.ensure_future(
        bench.queue.flush(bench.second, [Ended(child["fence"], State.COMPLETED)], bench.worker, [])
    )
    await bench.waits_for_a_lock(bench.second)
    await transaction.commit()
    done = await ending

    assert [parent] == [
        (await bench.db.pool.fetchval("select id from listingd.job_states where fence = $1", row.fence))
        for row in done.ready
    ]
    assert ("pending", 0) == ((row := await bench.state(parent))["state"], row["open_children"])


async def test_a_cancel_that_meets_a_fan_out_reaches_the_children(bench: Bench) -> None:
    parent, fence = await bench.run()

    transaction = bench.first.transaction()
    await transaction.start()
    await bench.first.fetch(bench.db.sql["fan_out"], fence, bench.worker, spawn("main", "angle"))
    cancelling = asyncio.ensure_future(bench.second.fetch(bench.db.sql["cancel_job"], parent, None))
    await bench.waits_for_a_lock(bench.second)
    await transaction.commit()
    await cancelling

    states = await bench.db.pool.fetch("select distinct state from listingd.job_states")
    assert ["cancelled"] == [row["state"] for row in states]


async def test_a_cancelled_parent_fans_out_no_more(bench: Bench) -> None:
    parent, fence = await bench.run()
    await bench.queue.cancel(parent)

    assert await bench.queue.fan_out(fence, bench.worker, json.loads(spawn("main"))) is None
    assert 1 == await bench.db.pool.fetchval("select count(*) from listingd.jobs")


@pytest.mark.parametrize("gives_back", [0, 1])
async def test_a_cancel_is_not_forgotten_when_the_attempt_is_to_be_repeated(
    bench: Bench, gives_back: int
) -> None:
    """The worker had not heard of it yet."""
    job, fence = await bench.run("ping")
    await bench.queue.cancel(job)

    done = await bench.queue.flush(
        bench.first, [Ended(fence, State.PENDING, None, '{"code": "x"}', 5.0, gives_back)], bench.worker, []
    )

    row = await bench.state(job)
    assert ("cancelled", "cancelled") == (row["state"], json.loads(row["error"])["code"])
    assert row["finished_at"] is not None
    assert [] == done.ready
    # It stands in no index of times: a look there would read it for ever.
    assert (None, fence) == (row["run_at"], row["fence"])


async def test_a_cancel_is_not_forgotten_by_a_worker_in_another_language(bench: Bench) -> None:
    job, fence = await bench.run("ping")
    await bench.queue.cancel(job)

    await bench.db.pool.execute("select listingd.mark_job_failed($1, 'x', 'X.')", fence)

    row = await bench.state(job)
    assert ("cancelled", None, fence) == (row["state"], row["run_at"], row["fence"])


async def test_a_child_retried_alone_is_waited_for(bench: Bench) -> None:
    """Its parent still waits for a sister: it must be released after both, once."""
    parent, fence = await bench.run()
    await bench.db.fetch("fan_out", fence, bench.worker, spawn("main", "angle"))
    children = await bench.db.pool.fetch(
        "select id, fence from listingd.job_states where parent_id = $1", parent
    )
    fences = [child["fence"] for child in children]
    await bench.queue.flush(bench.first, [], bench.worker, fences)
    await bench.queue.flush(bench.first, [Ended(fences[0], State.FAILED)], bench.worker, [])

    await bench.queue.retry(children[0]["id"])
    assert ("waiting", 2) == ((row := await bench.state(parent))["state"], row["open_children"])
    await bench.queue.flush(bench.first, [Ended(fences[1], State.COMPLETED)], bench.worker, [])
    assert "waiting" == (await bench.state(parent))["state"]
    again = (await bench.state(children[0]["id"]))["fence"]
    await bench.queue.flush(bench.first, [], bench.worker, [again])
    done = await bench.queue.flush(bench.first, [Ended(again, State.COMPLETED)], bench.worker, [])

    assert 1 == len(done.ready)
    assert "pending" == (await bench.state(parent))["state"]


async def test_before_the_first_job_no_fence_was_drawn(bench: Bench) -> None:
    """A daemon on an empty database once took the first fence for one it had read: that job never started."""
    assert (0, 0) == (await bench.queue.read_mark())[:2]

    await bench.db.pool.execute("select listingd.enqueue_job('ping')")

    assert (0, 1) == (await bench.queue.read_mark())[:2]


async def test_a_rescued_job_that_fails_next_keeps_a_record_of_both(bench: Bench) -> None:
    """The crash was once written under the next attempt's fence: its end then failed the whole flush, for ever."""
    job, fence = await bench.run("ping")
    await bench.db.pool.execute("update listingd.workers set lease_until = now() - interval '1 s'")
    await bench.db.pool.fetch("select * from listingd.rescue_jobs(9, null, 0)")
    row = await bench.db.fetchrow("start_worker", "next", 600.0, ["ping"], 4, "{}")
    assert row is not None
    again = (await bench.state(job))["fence"]
    await bench.queue.flush(bench.first, [], row["id"], [again])

    await bench.queue.flush(bench.first, [Ended(again, State.FAILED, None, '{"code": "x"}')], row["id"], [])

    attempts = await bench.db.pool.fetch("select fence, code from listingd.attempts order by fence")
    assert [(fence, "worker_crashed"), (again, "x")] == [tuple(a) for a in attempts]


async def test_an_end_that_comes_with_the_rescue_counts_once(bench: Bench) -> None:
    """The worker's lease ran out, and its last word arrives while the rescue is being committed."""
    job, fence = await bench.run("ping")
    await bench.db.pool.execute("update listingd.workers set lease_until = now() - interval '1 s'")

    transaction = bench.first.transaction()
    await transaction.start()
    await bench.first.fetch("select * from listingd.rescue_jobs(9, null, 0)")
    ending = asyncio.ensure_future(
        bench.queue.flush(bench.second, [Ended(fence, State.COMPLETED)], bench.worker, [])
    )
    await bench.waits_for_a_lock(bench.second)
    await transaction.commit()
    done = await ending

    assert [fence] == done.lost
    assert ("pending", 1) == ((row := await bench.state(job))["state"], row["rescues"])


async def meet_over_a_key(bench: Bench, *, commits: bool) -> tuple[UUID, list[UUID]]:
    """A job enqueued for a key, and what a batch with that key was given that waited for it."""
    transaction = bench.first.transaction()
    await transaction.start()
    holder = await bench.first.fetchval("select listingd.enqueue_job('ping', unique_key => 'daily')")
    batch = json.dumps([{"kind": "ping", "unique_key": key} for key in (None, "daily", "daily", "other")])
    waiting = asyncio.ensure_future(
        bench.second.fetch("select listingd.enqueue_jobs($1::jsonb) as id", batch)
    )
    await bench.waits_for_a_lock(bench.second)
    await (transaction.commit() if commits else transaction.rollback())
    return holder, [row["id"] for row in await waiting]


async def test_a_batch_that_waited_for_the_holder_of_a_key_is_given_its_id(bench: Bench) -> None:
    """It was once given the id of a job that was never stored."""
    holder, given = await meet_over_a_key(bench, commits=True)

    stored = await bench.db.pool.fetch("select id, unique_key from listingd.job_states")
    assert [holder, holder] == given[1:3]
    assert {given[0]: None, holder: "daily", given[3]: "other"} == dict(map(tuple, stored))
    assert 3 == await bench.db.pool.fetchval("select count(*) from listingd.jobs")


async def test_a_batch_that_waited_for_a_holder_that_came_to_nothing_takes_the_key(bench: Bench) -> None:
    _, given = await meet_over_a_key(bench, commits=False)

    assert given[1] == given[2]
    assert {*given} == {row["id"] for row in await bench.db.pool.fetch("select id from listingd.jobs")}


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_key_that_was_taken_after_the_snapshot_is_a_serialization_failure(
    bench: Bench, isolation: Any
) -> None:
    """What the caller's retry loop understands: the new transaction is given the holder's id."""
    batch = json.dumps([{"kind": "ping", "unique_key": "daily"}])
    for statement, argument in (
        ("select listingd.enqueue_job('ping', unique_key => $1)", "daily"),
        ("select listingd.enqueue_jobs($1::jsonb)", batch),
    ):
        await bench.db.pool.execute("update listingd.job_states set unique_key = null")
        transaction = bench.first.transaction(isolation=isolation)
        await transaction.start()
        await bench.first.fetchval("select count(*) from listingd.job_states")
        holder = await bench.second.fetchval("select listingd.enqueue_job('ping', unique_key => 'daily')")

        with pytest.raises(asyncpg.SerializationError):
            await bench.first.fetchval(statement, argument)

        await transaction.rollback()
        assert holder == await bench.first.fetchval(statement, argument)


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_key_that_became_free_after_the_snapshot_is_its_new_holders(
    bench: Bench, isolation: Any
) -> None:
    """The snapshot shows the ended holder for ever: twins were given its id, and then the batch failed (21000)."""
    batch = json.dumps([{"kind": "ping", "unique_key": "daily"}] * 2)
    old = await bench.db.pool.fetchval("select listingd.enqueue_job('ping', unique_key => 'daily')")
    async with bench.first.transaction(isolation=isolation):
        await bench.first.fetchval("select count(*) from listingd.job_states")
        await bench.second.execute("select listingd.cancel_job($1)", old)

        given = [row[0] for row in await bench.first.fetch("select listingd.enqueue_jobs($1::jsonb)", batch)]
        given += [row[0] for row in await bench.first.fetch("select listingd.enqueue_jobs($1::jsonb)", batch)]
        given += [await bench.first.fetchval("select listingd.enqueue_job('ping', unique_key => 'daily')")]

    active = await bench.db.pool.fetch("select id from listingd.job_states where unique_key = 'daily'")
    assert [row["id"] for row in active] * 5 == given


async def rescue(bench: Bench, allowed: int = 9, instance: str | None = None) -> list[UUID]:
    """The jobs a rescue takes back. One that waited for a lock would fail (lock_timeout)."""
    rows = await bench.db.fetch("rescue_jobs", allowed, instance, 0)
    return [row["id"] for row in rows if row["state"] != "released"]


async def is_stopped(bench: Bench) -> bool:
    stopped: bool = await bench.db.pool.fetchval(
        "select stopped_at is not null from listingd.workers where id = $1", bench.worker
    )
    return stopped


async def test_a_rescue_leaves_a_job_that_a_stranger_has_locked_to_the_next_round(bench: Bench) -> None:
    """A psql left open over one row once kept all of a dead worker's jobs from coming back."""
    locked, _ = await bench.run("ping")
    free, _ = await bench.run("ping")
    await bench.db.pool.execute("update listingd.workers set lease_until = now() - interval '1 s'")

    async with bench.first.transaction():
        await bench.first.execute("select from listingd.job_states where id = $1 for update", locked)
        assert [free] == await rescue(bench)
        assert not await is_stopped(bench)
        assert [] == await rescue(bench)

    assert [locked] == await rescue(bench)
    assert await is_stopped(bench)


async def test_a_rescue_leaves_a_last_word_to_a_locked_parent_to_the_next_round(bench: Bench) -> None:
    """A child that comes back pending has nothing to tell its parent: it need not wait."""
    parent, fence = await bench.run()
    await bench.db.fetch("fan_out", fence, bench.worker, spawn("main", "angle"))
    children = await bench.db.pool.fetch(
        "select id, fence from listingd.job_states where parent_id = $1 order by fence", parent
    )
    await bench.queue.flush(bench.first, [], bench.worker, [child["fence"] for child in children])
    await bench.queue.cancel(children[0]["id"])
    await bench.db.pool.execute("update listingd.workers set lease_until = now() - interval '1 s'")

    async with bench.first.transaction():
        await bench.first.execute("select from listingd.job_states where id = $1 for update", parent)
        assert [children[1]["id"]] == await rescue(bench)
        assert not await is_stopped(bench)

    assert [children[0]["id"]] == await rescue(bench)
    assert await is_stopped(bench)
    assert ("waiting", 1) == ((row := await bench.state(parent))["state"], row["open_children"])


async def test_a_child_whose_parent_is_gone_is_rescued_for_good(bench: Bench) -> None:
    job, _ = await bench.run("ping")
    await bench.db.pool.execute("update listingd.job_states set parent_id = $1", new_id())
    await bench.db.pool.execute("update listingd.workers set lease_until = now() - interval '1 s'")

    assert [job] == await rescue(bench, allowed=1)
    assert await is_stopped(bench)


async def test_a_claim_that_commits_after_its_worker_was_declared_dead_is_rescued(bench: Bench) -> None:
    """Only workers not yet stopped were once looked at: such a job was processing for ever."""
    job = await bench.db.pool.fetchval("select listingd.enqueue_job('ping')")
    fence = (await bench.state(job))["fence"]
    transaction = bench.first.transaction()
    await transaction.start()
    await bench.queue.flush(bench.first, [], bench.worker, [fence])
    await bench.db.pool.execute("update listingd.workers set lease_until = now() - interval '1 s'")
    assert [] == await rescue(bench)
    read = "select stopped_at from listingd.workers where id = $1"
    stopped_at = await bench.db.pool.fetchval(read, bench.worker)
    await transaction.commit()

    assert [job] == await rescue(bench)
    assert stopped_at == await bench.db.pool.fetchval(read, bench.worker) is not None


async def test_a_worker_that_stopped_by_itself_or_long_ago_is_not_looked_at_again(bench: Bench) -> None:
    """Its low mark may lie far back: each look would read what the queue did since."""
    await bench.run("ping")
    await bench.db.pool.execute("update listingd.workers set stopped_at = now(), lease_until = now()")
    assert [] == await rescue(bench)
    await bench.db.pool.execute(
        "update listingd.workers set stopped_at = now() - interval '2 minutes', lease_until = now() - interval '3 minutes'"
    )
    assert [] == await rescue(bench)
