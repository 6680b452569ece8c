"""Limits of a kind over all daemons: never exceeded, whoever claims, ends, crashes; and no place is ever lost."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from daemon.db import Database

SQL_CLAIM = "select fence from listingd.mark_jobs_processing($1, $2)"


class Line:
    """Jobs of a limited kind and the workers that want them."""

    def __init__(self, db: Database, connection: asyncpg.Connection) -> None:
        self.db, self.connection = db, connection

    async def set_limit(self, limit: int | None, kind: str = "ping") -> None:
        await self.db.fetchrow("set_queue", kind, None, "", True, limit)

    async def add(self, count: int, kind: str = "ping") -> list[int]:
        await self.connection.fetch(
            "select listingd.enqueue_job($2) from generate_series(1, $1::int)", count, kind
        )
        rows = await self.connection.fetch(
            "select fence from listingd.job_states where state = 'pending' and kind = $1 order by fence", kind
        )
        return [row["fence"] for row in rows]

    async def start_worker(self) -> int:
        return int(await self.db.fetchval("start_worker", f"w{random.random()}", 60.0, ["ping"], 8, "{}"))

    async def reserve(self, worker: int, wanted: list[int], ended: list[int] | None = None) -> list[int]:
        """The fences granted."""
        rows = await self.connection.fetch(self.db.sql["reserve_places"], worker, wanted, ended or [])
        refused = {row["fence"] for row in rows}
        return [fence for fence in wanted if fence not in refused]

    async def flush(self, worker: int, claims: list[int], ended: list[int] | None = None) -> list[int]:
        """The fences claimed."""
        done = ended or []
        rows = await self.connection.fetch(
            self.db.sql["flush"], done, ["completed"] * len(done), [None] * len(done), [None] * len(done),
            [0.0] * len(done), [0] * len(done), worker, claims,
        )  # fmt: skip
        return [row["fence"] for row in rows if row["fence"] is not None and row["id"] is not None]

    async def running(self, kind: str = "ping") -> list[int]:
        rows = await self.connection.fetch(
            "select fence from listingd.job_states where state = 'processing' and kind = $1 order by fence",
            kind,
        )
        return [row["fence"] for row in rows]

    async def kill(self, worker: int) -> None:
        """The worker's process is gone for longer than its lease."""
        await self.connection.execute(
            "update listingd.workers set lease_until = now() - interval '1 minute' where id = $1", worker
        )

    async def rescue(self, by: int) -> None:
        await self.db.fetch("rescue_jobs", 100, None, by)


@pytest.fixture
async def line(db: Database) -> AsyncIterator[Line]:
    connection = await db.dedicated_connection("test")
    yield Line(db, connection)
    connection.terminate()


async def test_no_more_are_granted_than_there_are_places(line: Line) -> None:
    await line.set_limit(3)
    first, second = await line.start_worker(), await line.start_worker()
    fences = await line.add(10)

    granted = await line.reserve(first, fences[:2])
    more = await line.reserve(second, fences[2:])

    assert fences[:2] == granted
    assert fences[2:3] == more, "places count from the moment they are granted, before the claim is written"


async def test_other_kinds_need_no_place(line: Line) -> None:
    await line.set_limit(0)
    worker = await line.start_worker()
    fences = await line.add(3, "image")

    assert fences == await line.reserve(worker, fences)


async def test_an_end_hands_its_place_on_in_the_same_statement(line: Line) -> None:
    await line.set_limit(1)
    worker = await line.start_worker()
    fences = await line.add(3)
    await line.flush(worker, await line.reserve(worker, fences))

    granted = await line.reserve(worker, fences[1:], ended=fences[:1])
    claimed = await line.flush(worker, granted, ended=fences[:1])

    assert (fences[1:2], fences[1:2]) == (granted, claimed)
    assert fences[1:2] == await line.running()


async def test_an_end_that_is_not_written_yet_frees_nothing_for_others(line: Line) -> None:
    await line.set_limit(1)
    first, second = await line.start_worker(), await line.start_worker()
    fences = await line.add(3)
    await line.flush(first, await line.reserve(first, fences[:1]))

    await line.reserve(first, [], ended=fences[:1])

    assert [] == await line.reserve(second, fences[1:])


async def test_one_of_two_that_want_the_same_job_gets_the_place(line: Line) -> None:
    await line.set_limit(1)
    first, second = await line.start_worker(), await line.start_worker()
    fences = await line.add(2)
    granted = await line.reserve(first, fences[:1])
    assert [] == await line.reserve(second, fences[:1])

    await line.flush(first, granted)
    await line.db.fetch("drop_places", second, fences[:1])

    assert [] == await line.reserve(second, fences[1:])


async def test_a_place_that_was_handed_on_is_nobody_elses(line: Line) -> None:
    """Another that claimed its job would run beside the one whose end is not written yet."""
    await line.set_limit(1)
    first, second = await line.start_worker(), await line.start_worker()
    fences = await line.add(2)
    await line.flush(first, await line.reserve(first, fences[:1]))
    granted = await line.reserve(first, fences[1:], ended=fences[:1])

    rows = await line.connection.fetch(line.db.sql["reserve_places"], second, fences[1:], [])

    assert fences[1:] == granted
    assert [(fences[1], True)] == [tuple(row) for row in rows], "taken, not full: the next job may be tried"


async def test_the_place_of_a_crashed_worker_is_free_after_its_rescue(line: Line) -> None:
    await line.set_limit(2)
    dead, live = await line.start_worker(), await line.start_worker()
    fences = await line.add(4)
    await line.flush(dead, await line.reserve(dead, fences[:1]))
    await line.reserve(dead, fences[1:2])  # granted, and dies before the claim
    await line.kill(dead)

    while_running = await line.reserve(live, fences[2:])
    await line.rescue(live)
    after = await line.reserve(live, fences[2:])

    assert 1 == len(while_running), "the job in a dead worker's hands counts until it is rescued"
    assert 2 == len(after)


async def test_a_dead_worker_that_wakes_cannot_use_its_place(line: Line) -> None:
    """P5: a claim needs a live lease, so a place whose worker is gone is really free."""
    await line.set_limit(1)
    dead, live = await line.start_worker(), await line.start_worker()
    fences = await line.add(2)
    granted = await line.reserve(dead, fences[:1])
    await line.kill(dead)

    taken = await line.flush(live, await line.reserve(live, fences[1:]))
    late = await line.flush(dead, granted)

    assert (fences[1:], []) == (taken, late)


async def test_a_lowered_limit_is_reached_by_ends_alone(line: Line) -> None:
    await line.set_limit(3)
    worker = await line.start_worker()
    fences = await line.add(6)
    await line.flush(worker, await line.reserve(worker, fences[:3]))
    await line.set_limit(1)

    at_once = await line.reserve(worker, fences[3:], ended=fences[:1])
    await line.flush(worker, at_once, ended=fences[:1])
    later = await line.reserve(worker, fences[3:], ended=fences[1:3])

    assert ([], 1) == (at_once, len(later))


async def test_what_runs_when_the_limit_comes_counts(line: Line) -> None:
    worker = await line.start_worker()
    fences = await line.add(4)
    await line.flush(worker, fences[:2])
    await line.set_limit(3)
    await line.db.fetch("hold_running_places", "ping")

    assert fences[2:3] == await line.reserve(worker, fences[2:])


async def test_workers_in_other_languages_keep_the_limit(line: Line) -> None:
    await line.set_limit(2)
    fences = await line.add(5)

    first = await line.connection.fetch(SQL_CLAIM, "a", fences[:1])
    second = await line.connection.fetch(SQL_CLAIM, "b", fences)

    assert (1, 1) == (len(first), len(second))
    assert 2 == len(await line.running())


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_worker_that_cannot_see_the_others_places_is_refused(line: Line, isolation: Any) -> None:
    """Its snapshot may be older than their claims: it once started jobs beyond the limit. Trying again would not help."""
    await line.set_limit(1)
    first, second = await line.add(2)
    async with line.db.pool.acquire() as late, late.transaction(isolation=isolation):
        await late.fetchval("select count(*) from listingd.job_states")
        await line.connection.fetch(SQL_CLAIM, "a", [first])

        with pytest.raises(asyncpg.FeatureNotSupportedError) as refused:
            await late.fetch(SQL_CLAIM, "b", [second])

    assert "read committed" in (refused.value.hint or "")
    assert [first] == await line.running()


async def test_a_kind_without_a_limit_is_claimed_under_any_isolation(line: Line) -> None:
    fences = await line.add(1)
    async with line.connection.transaction(isolation="serializable"):
        claimed = await line.connection.fetch(SQL_CLAIM, "a", fences)

    assert fences == [row["fence"] for row in claimed]


async def test_workers_in_other_languages_heed_pauses(line: Line) -> None:
    fences = await line.add(1) + await line.add(1, "image")
    await line.connection.execute("insert into listingd.queues (kind, paused_at) values ('ping', now())")
    shown = await line.connection.fetch("select kind from listingd.get_next_jobs('{ping,image}', 10)")
    claimed = await line.connection.fetch(SQL_CLAIM, "a", fences)
    await line.connection.execute("insert into listingd.user_shares (user_id, paused_at) values ('', now())")
    await line.add(1, "image")

    assert ["image"] == [row["kind"] for row in shown]
    assert 1 == len(claimed)
    assert [] == await line.connection.fetch("select * from listingd.get_next_jobs('{ping,image}', 10)")


async def test_a_stranger_that_holds_the_kind_stops_nobody_for_long(line: Line) -> None:
    await line.set_limit(2)
    worker = await line.start_worker()
    fences = await line.add(1)
    async with line.db.transaction() as stranger:
        await stranger.execute("select pg_advisory_xact_lock(hashtextextended('listingd.kind.ping', 0))")
        held = await line.reserve(worker, fences)

    assert ([], fences) == (held, await line.reserve(worker, fences))


@pytest.mark.parametrize("seed", range(8))
async def test_the_limit_holds_whatever_happens(line: Line, seed: int) -> None:
    """Claims, ends, handed-on places, crashes between grant and claim, rescues, changed limits, in random order."""
    rng = random.Random(seed)
    limit = rng.randint(1, 4)
    await line.set_limit(limit)
    workers = [await line.start_worker() for _ in range(3)]
    granted: dict[int, list[int]] = {worker: [] for worker in workers}
    written_late: dict[int, list[int]] = {}
    most = limit
    for _ in range(120):
        worker = rng.choice(workers)
        own = [f for f in await line.running() if f in await _held_by(line, worker)]
        ended = rng.sample(own, rng.randint(0, len(own)))
        pending = await line.add(rng.randint(0, 2))
        wanted = rng.sample(pending, min(len(pending), rng.randint(0, 3)))
        match rng.randrange(6):
            case 0 | 1:
                await line.flush(worker, await line.reserve(worker, wanted, ended), ended)
            case 2 if not granted[worker]:
                granted[worker] = await line.reserve(worker, wanted, ended)
                written_late[worker] = ended
            case 3:
                late, granted[worker] = granted[worker], []
                claimed = await line.flush(worker, late, written_late.pop(worker, []))
                await line.db.fetch("drop_places", worker, [f for f in late if f not in claimed])
            case 4 if rng.random() < 0.3:
                await line.kill(worker)
                workers[workers.index(worker)] = fresh = await line.start_worker()
                granted[fresh] = []
                await line.rescue(fresh)
            case _:
                await line.flush(worker, [], ended)
        assert len(await line.running()) <= most, f"seed {seed}"

    for worker in workers:  # nothing leaked: everything that is left can run
        await line.flush(worker, [], await _held_by(line, worker))
        await line.db.fetch("drop_places", worker, granted[worker])
    while pending := await line.add(0):
        claimed = await line.flush(workers[0], await line.reserve(workers[0], pending[:5]))
        assert 1 <= len(claimed) <= most
        await line.flush(workers[0], [], claimed)


async def _held_by(line: Line, worker: int) -> list[int]:
    rows: list[Any] = await line.connection.fetch(
        "select fence from listingd.job_states where state = 'processing' and worker = $1", worker
    )
    return [row["fence"] for row in rows]
