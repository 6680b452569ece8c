"""The low-water mark: whatever makes a job ready, and whenever, a daemon that starts from the mark finds it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from daemon import feeder as feeder_module
from daemon import scheduler as scheduler_module
from daemon.db import Database
from daemon.feeder import Feeder
from daemon.jobs import ClaimedJob, State, new_id
from daemon.lanes import Lanes
from daemon.queue import Ended, Queue, Seen
from daemon.scheduler import Scheduler
from tests.support import eventually


class Site:
    """A queue with a worker, a feeder that raises the mark at every poll, and what it holds."""

    def __init__(self, db: Database, worker: int) -> None:
        self.db, self.worker = db, worker
        self.queue = Queue(db)
        self.scheduler = Scheduler(["ping", "pack"])
        self.feeder = Feeder(self.queue, self.scheduler, poll_s=0.02, on_ready=lambda: None)

    async def add(self, kind: str = "ping") -> UUID:
        job: UUID = await self.db.pool.fetchval("select listingd.enqueue_job($1)", kind)
        return job

    async def fence(self, job: UUID) -> int:
        return int(await self.db.pool.fetchval("select fence from listingd.job_states where id = $1", job))

    async def mark(self) -> int:
        return (await self.queue.read_mark())[0]

    async def claim(self, *jobs: UUID) -> list[int]:
        """Claim as the flusher does: out of the scheduler's hands first."""
        fences = [await self.fence(job) for job in jobs]
        await eventually(lambda: set(fences) <= set(self.scheduler.known))
        for fence in self.scheduler.take(len(self.scheduler.known)):
            self.scheduler.known.pop(fence)
        await self.flush([], fences)
        return fences

    async def flush(self, ended: list[Ended], claims: list[int]) -> None:
        async with self.db.acquire() as connection:
            await self.queue.flush(connection, ended, self.worker, claims)

    async def pass_by(self) -> int:
        """Let the mark rise above every job there is; where it stands then."""
        last = await self.fence(await self.add("image"))  # of another's kind: it holds the mark
        await eventually(lambda: self._has_risen_to(last))
        await self.db.pool.execute(
            "update listingd.job_states set state = 'cancelled' where fence = $1", last
        )
        await eventually(lambda: self._has_risen_to(last + 1))
        return await self.mark()

    async def _has_risen_to(self, fence: int) -> bool:
        self.feeder.look()
        return await self.mark() >= fence


@pytest.fixture
async def site(db: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(feeder_module, "MARK_EVERY_S", 0.0)
    monkeypatch.setattr(scheduler_module, "NUMBERED_AFTER_S", 0.1)  # no transaction of a test is that slow
    worker = await db.fetchval("start_worker", "test", 600.0, ["ping", "pack"], 4, "{}")
    made = Site(db, worker)
    running = asyncio.create_task(made.feeder.run())
    await made.pass_by()  # its start is over: nothing is read twice any more
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def starting(site: Site, poll_s: float = 60.0) -> AsyncIterator[tuple[Scheduler, Feeder]]:
    """A daemon that starts now: it knows the mark and nothing else."""
    scheduler = Scheduler(["ping", "pack"])
    feeder = Feeder(site.queue, scheduler, poll_s=poll_s, on_ready=lambda: None)
    running = asyncio.create_task(feeder.run())
    try:
        yield scheduler, feeder
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def restarted(site: Site) -> AsyncIterator[Scheduler]:
    """What such a daemon holds."""
    async with starting(site, poll_s=0.02) as (scheduler, _):
        yield scheduler


async def requeue(site: Site, job: UUID, fence: int) -> None:
    await site.flush([Ended(fence, State.PENDING, gives_back=1)], [])


async def retry_by_hand(site: Site, job: UUID, fence: int) -> None:
    await site.flush([Ended(fence, State.FAILED, error_text='{"code": "x"}')], [])
    await site.pass_by()
    await site.queue.retry(job)


async def rescue(site: Site, job: UUID, fence: int) -> None:
    other = await site.db.fetchval("start_worker", "other", 600.0, ["ping"], 4, "{}")
    await site.db.pool.execute("update listingd.workers set lease_until = now(), low_fence = $2 where id = $1",
                               site.worker, fence)  # fmt: skip
    await site.queue.rescue(allowed_rescues=2, dead_instance=None, own_worker=other)


async def release_parent(site: Site, job: UUID, fence: int) -> None:
    child = {"id": str(new_id()), "kind": "ping", "slot": "main", "input": {}}
    assert await site.queue.fan_out(fence, site.worker, [child]) is not None
    [child_fence] = await site.claim(UUID(child["id"]))
    await site.pass_by()
    await site.flush([Ended(child_fence, State.COMPLETED)], [])


async def recall(site: Site, job: UUID, fence: int) -> None:
    error = json.dumps({"code": "lane_closed", "lane": "openai:1"})
    await site.flush([Ended(fence, State.PENDING, error_text=error, delay_s=240.0, gives_back=1)], [])
    await site.db.pool.execute(
        "insert into listingd.lanes (name, provider, max_in_flight, allowed, paused_until) "
        "values ('openai:1', 'openai', 1, 1, now() + interval '1 hour')"
    )
    await site.pass_by()
    assert await Lanes(site.db, {}, lambda: None).resume("openai:1")


@pytest.mark.parametrize("make_ready", [requeue, retry_by_hand, rescue, release_parent, recall])
async def test_what_becomes_ready_again_stands_above_the_mark(
    site: Site, make_ready: Callable[[Site, UUID, int], Awaitable[None]]
) -> None:
    job = await site.add("pack" if make_ready is release_parent else "ping")
    [fence] = await site.claim(job)
    before = await site.pass_by()

    await make_ready(site, job, fence)
    again = await site.fence(job)

    assert again >= before > fence
    async with restarted(site) as scheduler:
        await eventually(lambda: again in scheduler.known)


async def test_a_lower_fence_that_commits_late_holds_the_mark(site: Site) -> None:
    async with site.db.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        late = await slow.fetchval("select listingd.enqueue_job('ping')")
        fence = await slow.fetchval("select fence from listingd.job_states where id = $1", late)
        await site.claim(await site.add())
        site.feeder.look()
        async with restarted(site) as scheduler:  # also one that starts while it is not committed
            await site.claim(await site.add())
            assert await site.mark() <= fence
            await transaction.commit()
            await eventually(lambda: fence in site.scheduler.known)
            await eventually(lambda: fence in scheduler.known)

    async with restarted(site) as scheduler:
        await eventually(lambda: fence in scheduler.known)


async def test_a_due_time_is_found_below_the_mark(site: Site) -> None:
    job = await site.db.pool.fetchval(
        "select listingd.enqueue_job('ping', run_at => now() + interval '20 seconds')"
    )
    fence = await site.fence(job)

    assert await site.pass_by() > fence
    async with restarted(site) as scheduler:
        await eventually(lambda: fence in [entry[1] for entry in scheduler.timers])


async def test_a_claim_in_flight_holds_the_mark(site: Site) -> None:
    """P1: killed before the claim is committed, only a scan from the mark would find the job."""
    fence = await site.fence(await site.add())
    await eventually(lambda: fence in site.scheduler.known)
    site.scheduler.claiming = set(site.scheduler.take(1))
    site.scheduler.known.pop(fence)
    for _ in range(3):
        await site.add()
    last = await site.fence(await site.add())
    await eventually(lambda: last in site.scheduler.known)

    await site.feeder._raise_mark()

    assert await site.mark() <= fence


async def test_a_job_of_a_kind_run_elsewhere_holds_the_mark_until_it_is_claimed(site: Site) -> None:
    fence = await site.fence(await site.add("image"))
    await site.claim(await site.add())
    await eventually(lambda: site._has_risen_to(fence))
    assert fence == await site.mark()

    await site.db.pool.fetch("select * from listingd.mark_jobs_processing('rust', $1)", [fence])

    await eventually(lambda: site._has_risen_to(fence + 1))


async def test_a_row_that_commits_just_after_a_read_is_not_taken_for_rolled_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The horizon that forgets a hole is that of the read which looked for it, not of a moment later."""
    monkeypatch.setattr(scheduler_module, "NUMBERED_AFTER_S", 0.0)
    async with site.db.acquire() as slow:
        transaction = slow.transaction()
        await transaction.start()
        late = await slow.fetchval("select listingd.enqueue_job('ping')")
        fence = await slow.fetchval("select fence from listingd.job_states where id = $1", late)
        await site.claim(await site.add())
        await eventually(lambda: fence in site.feeder._cursor.holes)
        looks: list[int] = []
        read = site.queue.read_ready

        async def read_then_commit(*arguments: Any) -> Seen:
            seen = await read(*arguments)
            looks.append(1)
            if len(looks) == 3:  # its horizon is known by then
                await transaction.commit()
            return seen

        monkeypatch.setattr(site.queue, "read_ready", read_then_commit)

        await eventually(lambda: fence in site.scheduler.known)


class Slots:
    """A pool that runs nothing: what it was given to run."""

    def __init__(self, worker: int, slots: int) -> None:
        self.worker_id, self.slots = worker, slots
        self.taken: list[int] = []
        self.promised = 0

    def promise(self, most: int, after: int) -> int:
        self.promised = min(most, self.slots)
        return self.promised

    def take_up(self, promised: int, claimed: Sequence[ClaimedJob]) -> None:
        assert promised == self.promised
        self.promised = 0
        self.taken += [job.fence for job in claimed]

    def adopt_soon(self) -> None: ...

    def held_fences(self) -> set[int]:
        return set(self.taken)


@asynccontextmanager
async def claiming(site: Site, slots: int = 4) -> AsyncIterator[tuple[Scheduler, Feeder, Slots]]:
    """A daemon that claims at sight and has taken up its start; nobody takes what it leaves to the scheduler."""
    scheduler, pool = Scheduler(["ping", "pack"], user_limit=8), Slots(site.worker, slots)
    feeder = Feeder(site.queue, scheduler, poll_s=0.02, on_ready=lambda: None, pool=pool)
    running = asyncio.create_task(feeder.run())
    try:
        await eventually(lambda: feeder._walked and feeder._restart is None)
        yield scheduler, feeder, pool
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def enqueue(site: Site, count: int, **more: Any) -> list[int]:
    """Their fences; all are committed at once."""
    jobs = [{"kind": "ping"} | more for _ in range(count)]
    ids = await site.db.pool.fetchval(
        "select array_agg(j) from listingd.enqueue_jobs($1) as j", json.dumps(jobs)
    )
    return [await site.fence(job) for job in ids]


async def read_state(site: Site, fence: int) -> str:
    return str(await site.db.pool.fetchval("select state from listingd.job_states where fence = $1", fence))


async def test_new_jobs_are_claimed_by_the_statement_that_finds_them(site: Site) -> None:
    async with claiming(site) as (scheduler, _, pool):
        fences = await enqueue(site, 3)

        await eventually(lambda: pool.taken == fences)

        assert {"processing"} == {await read_state(site, fence) for fence in fences}
        assert not scheduler.known


async def test_a_claim_that_the_server_forgot_is_made_again_once_its_attempt_is_over(site: Site) -> None:
    """P5: both attempts would write with the same fence and worker."""
    async with claiming(site) as (scheduler, feeder, pool):
        [fence, other] = await enqueue(site, 2)
        await eventually(lambda: pool.taken == [fence, other])
        await site.db.pool.execute(
            "update listingd.job_states set state = 'pending', worker = null, attempt = 0 where fence = any($1)",
            [fence, other],
        )
        pool.taken.remove(other)
        feeder.doubt(fence)
        feeder.doubt(other)
        feeder.recheck()
        await eventually(lambda: other in scheduler.known)
        assert fence not in scheduler.known

        pool.taken.remove(fence)

        await eventually(lambda: fence in scheduler.known)


async def test_more_new_jobs_than_slots_are_left_to_the_scheduler(site: Site) -> None:
    """Whose turn it is matters as soon as not all can start."""
    async with claiming(site, slots=2) as (scheduler, _, pool):
        fences = await enqueue(site, 3)

        await eventually(lambda: set(fences) <= set(scheduler.known))

        assert [] == pool.taken


async def test_a_new_job_does_not_start_before_one_that_waits(site: Site) -> None:
    async with claiming(site, slots=2) as (scheduler, _, pool):
        waiting = await enqueue(site, 3)
        await eventually(lambda: set(waiting) <= set(scheduler.known))

        [fence] = await enqueue(site, 1)
        await eventually(lambda: fence in scheduler.known)

        assert [] == pool.taken


async def test_jobs_on_hold_limited_or_not_yet_due_are_not_claimed_at_sight(site: Site) -> None:
    async with claiming(site) as (scheduler, _, pool):
        scheduler.configure_users({}, frozenset({"held"}))
        scheduler.configure_kind("pack", limit=None, paused=False, shared_limit=4)
        [held] = await enqueue(site, 1, user_id="held")
        [later] = await enqueue(site, 1, run_at=str(datetime.now(UTC) + timedelta(seconds=20)))
        [foreign] = await enqueue(site, 1, kind="image")
        [fence] = await enqueue(site, 1)
        await eventually(lambda: pool.taken == [fence])
        [shared] = await enqueue(
            site, 1, kind="pack"
        )  # whether there is a place is asked before it is claimed

        await eventually(lambda: {held, shared, later} == set(scheduler.known))
        assert pool.taken == [fence]

        assert "pending" == await read_state(site, foreign)


async def test_a_backlog_is_taken_up_piece_by_piece(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder_module, "PIECE", 2)
    fences = await enqueue(site, 7)
    mine = await site.mark()

    async with restarted(site) as scheduler:
        await eventually(lambda: set(fences) <= set(scheduler.known))

    assert mine <= fences[0]


async def test_a_backlog_among_jobs_run_elsewhere_is_found_stretch_by_stretch(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder_module, "PIECE", 3)
    monkeypatch.setattr(feeder_module, "STRETCH", 10)
    monkeypatch.setattr(feeder_module, "LOOK_BACK", 0)
    await enqueue(site, 25, kind="image")
    own = await enqueue(site, 7)
    await enqueue(site, 12, kind="image")
    own += await enqueue(site, 1)

    async with restarted(site) as scheduler:
        await eventually(lambda: set(own) == set(scheduler.known))


async def test_a_start_sees_its_oldest_jobs_first_beside_200_000_that_are_run_elsewhere(site: Site) -> None:
    """Else what came last is found by the first look, and runs before what has waited longest."""
    await enqueue(site, 1, kind="image")
    await site.db.pool.execute("select setval('listingd.fences', nextval('listingd.fences') + 200000)")
    oldest = await enqueue(site, 2)
    await site.db.pool.execute(
        "select setval('listingd.fences', nextval('listingd.fences') + $1)", feeder_module.STRETCH
    )
    await enqueue(site, 2)
    scheduler = Scheduler(["ping"])

    await Feeder(site.queue, scheduler, poll_s=60, on_ready=lambda: None)._start()

    assert oldest == list(scheduler.known)


async def test_a_walk_that_pauses_goes_on_when_little_is_left(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause is there for what runs: it must not keep the slots empty."""
    monkeypatch.setattr(feeder_module, "PIECE", 4)
    monkeypatch.setattr(feeder_module, "ENOUGH", 6)
    monkeypatch.setattr(feeder_module, "LOOK_BACK", 0)
    monkeypatch.setattr(feeder_module, "PAUSES", 1_000_000)  # for ever
    own = await enqueue(site, 16)

    async with starting(site) as (scheduler, feeder):
        await eventually(lambda: 8 == scheduler.ready)
        scheduler.take(5)
        feeder.count_ready()

        await eventually(lambda: set(own[:12]) == set(scheduler.known))
        assert not feeder._walked


async def test_many_jobs_due_at_one_moment_are_all_held(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next piece begins after the last job, not after its run_at."""
    monkeypatch.setattr(feeder_module, "PIECE", 2)
    fences = await enqueue(site, 7, run_at=str(datetime.now(UTC) + timedelta(seconds=20)))
    await site.pass_by()

    async with restarted(site) as scheduler:
        await eventually(lambda: set(fences) <= set(scheduler.known))


async def test_what_did_not_wait_for_the_disk_is_brought_there(db: Database) -> None:
    """P11: a claim that was seen and then forgotten by a crash of the server would repeat a version number."""
    queue = Queue(db)
    connection = await queue.connect_feeder()
    await connection.execute("select listingd.enqueue_job('ping')")
    written = await connection.fetchval("select pg_current_wal_insert_lsn()")

    await queue.make_lasting()

    assert written <= await connection.fetchval("select pg_current_wal_flush_lsn()")
    assert "off" == await connection.fetchval("show synchronous_commit")
    connection.terminate()


async def test_a_claim_at_sight_is_followed_to_the_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_at_sync: list[list[int]] = []

    async def note() -> None:
        taken_at_sync.append(list(pool.taken))

    monkeypatch.setattr(site.queue, "make_lasting", note)
    async with claiming(site) as (_, _, pool):
        assert [] == taken_at_sync

        [fence] = await enqueue(site, 1)

        await eventually(lambda: [[fence]] == taken_at_sync)


async def test_a_job_that_becomes_due_while_its_user_holds_too_much_is_not_forgotten(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its timer is gone then, and there is no room for it: the refill must bring it, although it has a run_at."""
    monkeypatch.setattr(scheduler_module, "MIN_SHARE", 4)
    monkeypatch.setattr(scheduler_module, "MAX_HEADERS", 4)
    due = await site.db.pool.fetchval(
        "select listingd.enqueue_job('ping', run_at => now() + interval '0.3 s')"
    )
    wanted = await site.fence(due)
    for _ in range(10):
        await site.add()
    site.feeder.look()
    await eventually(lambda: site.scheduler.is_spilled(""))
    await eventually(lambda: wanted in site.scheduler.known)
    await eventually(lambda: wanted not in site.scheduler.known)  # due, and spilled
    taken: list[int] = []

    async def take() -> bool:
        for fence in site.scheduler.take(2):
            site.scheduler.known.pop(fence)
            taken.append(fence)
            await site.flush([], [fence])
            site.scheduler.ended("ping", "")
        site.feeder.look()
        return wanted in taken

    await eventually(take)
    await eventually(lambda: 11 == len(taken) or take())
