"""Writes how attempts ended and claims the next jobs, together in one statement (sql/queries/queue.sql, flush).

    scheduler.take --> flush --> pool.begin          pool: attempts end --> end() --+
         ^               ^                                                          |
         +---------------+----------------------------------------------------------+

One flush is in flight at a time; while it is, the next batch gathers and the pool runs what the last one
claimed. So an idle daemon answers within one round trip, and a busy one pays one commit for hundreds of jobs.

One job must not hold back the others: an end that the database cannot hold becomes a failure, and one whose
row somebody else's open transaction has locked (an app that cancels inside its own) waits aside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol
from uuid import UUID

import asyncpg

from daemon import db as database
from daemon import logs, metrics, outcomes
from daemon.changes import Changes
from daemon.errors import Unavailable
from daemon.feeder import Feeder
from daemon.jobs import ClaimedJob
from daemon.lease import Lease
from daemon.places import Owner, Places
from daemon.queue import Ended, Flushed, Queue
from daemon.scheduler import Scheduler

SMALL_FLUSH = 64
"""Jobs below which a commit costs more than waiting for it."""

ASIDE_S = 1.0
"""An end whose row is locked is tried again after so many seconds."""

End = tuple[Ended, ClaimedJob]

log = logs.get_logger()


class Pool(Protocol):
    """Where claimed jobs run (workers.py)."""

    concurrency: int

    @property
    def worker_id(self) -> int | None: ...

    def claimable(self) -> int:
        """Slots to claim for; 0 while stopping or without a safe lease."""
        ...

    def begin(self, job: ClaimedJob) -> None: ...

    def adopt_soon(self) -> None:
        """A claim may have been committed without our knowing."""
        ...


class Flusher:
    """The one writer of ends and claims in a process. `run` must be running; feeder: set once it exists."""

    def __init__(
        self,
        pool: Pool,
        queue: Queue,
        db: database.Database,
        scheduler: Scheduler,
        lease: Lease,
        changes: Changes,
    ) -> None:
        self._pool = pool
        self._queue = queue
        self._db = db
        self._scheduler = scheduler
        self._lease = lease
        self._changes = changes
        self.places = Places(db, scheduler)
        self.feeder: Feeder | None = None
        self.claiming = 0  # slots promised to claims in flight
        self._ended: list[End] = []
        self._aside: list[End] = []
        self._aside_until = 0.0
        # Half of the slots at once: the database works on one half while the pool runs the other.
        self._most = max(SMALL_FLUSH, pool.concurrency // 2)
        self._wanted = asyncio.Event()
        self._flushing = asyncio.Lock()  # a stop's last flush waits for the one in flight

    # -- what the pool tells ------------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to claim."""
        self._wanted.set()

    def look(self) -> None:
        """Something is ready that only the database knows in full."""
        if self.feeder is not None:
            self.feeder.look()

    def end(self, ended: Ended, job: ClaimedJob) -> None:
        """Have an end written with the next flush."""
        self._ended.append((ended, job))
        self._wanted.set()

    @property
    def backlog(self) -> int:
        """Ends that wait for the next flush."""
        return len(self._ended)

    def unwritten(self) -> set[int]:
        """Fences of attempts that have ended here and not yet in the database."""
        return {end.fence for end, _ in (*self._ended, *self._aside)}

    # -- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Finish and claim for ever. Errors: Unavailable; run it again, nothing is forgotten."""
        connection = await self._connect()
        connection.add_termination_listener(lambda _: self._wanted.set())
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                if connection.is_closed():
                    raise Unavailable("The flusher's connection was closed.")
                while await self._flush(connection):
                    pass
        finally:
            connection.terminate()
            self._wanted.set()

    async def flush_rest(self, within_s: float = 2.0) -> None:
        """The last flush of a stop, after the one in flight: the ends that are not written yet."""
        try:
            async with asyncio.timeout(within_s):
                connection = await self._connect()
                try:
                    while await self._flush(connection):
                        pass
                finally:
                    connection.terminate()
        except (Unavailable, TimeoutError):
            pass
        if unwritten := len(self.unwritten()):
            log.error("job.unflushed", count=unwritten)

    async def _connect(self) -> database.Connection:
        connection = await self._db.dedicated_connection("flusher")
        if not self._db.pooled:  # behind a transaction pooler the settings would leak to strangers
            with database.translate_errors():
                await connection.fetch(self._db.sql["set_flusher"])
        return connection

    # -- one flush ------------------------------------------------------------------------------------------

    async def _flush(self, connection: database.Connection) -> bool:
        """One statement, when there is anything to end or to claim; whether there was."""
        async with self._flushing:
            if self._aside and asyncio.get_running_loop().time() >= self._aside_until:
                await self._take_up_again(connection)
            return await self._flush_once(connection)

    async def _flush_once(self, connection: database.Connection) -> bool:
        worker = self._pool.worker_id
        assert worker is not None  # the lease starts before the flusher
        ended, self._ended = self._ended[: self._most], self._ended[self._most :]
        slots = min(self._pool.claimable(), self._most)
        claims = self._scheduler.take(slots) if slots > 0 else []
        if self._scheduler.spilled() is not None:
            self.look()
        if not ended and not claims:
            return False
        owners = [self._scheduler.known.pop(fence) for fence in claims]
        self.claiming += len(claims)
        self._scheduler.claiming = claims
        limited = self.places.is_needed()
        freed = self.places.pick((end.fence, job.kind) for end, job in ended) if limited else []
        try:
            if claims and limited:
                asked = len(claims)
                claims, owners, taken = await self.places.reserve(connection, worker, claims, owners, freed)
                self.claiming -= asked - len(claims)
                self._doubt(taken)
                if not ended and not claims:
                    return bool(taken)
            if claims:
                await self._lower_mark(connection, worker, min(claims))
            done = await self._queue.flush(connection, [end for end, _ in ended], worker, claims)
        except asyncpg.DataError:
            self._give_up(claims, owners)
            await self._end_one_by_one(connection, ended, worker)
            return True
        except BaseException as exc:
            # Perhaps it was committed: ends are written again (then they are lost, harmlessly), and claims
            # that were ours without our knowing are adopted later.
            self._ended = ended + self._ended
            self._give_up(claims, owners)
            if isinstance(exc.__cause__, asyncpg.LockNotAvailableError):
                await self._put_aside(connection)  # nothing was committed
                return True
            self._pool.adopt_soon()
            raise
        finally:
            self._scheduler.claiming = ()  # claimed, or in doubt: the feeder looks after those
        self.claiming -= len(claims)
        if ended:
            metrics.FLUSH_BATCH.observe(len(ended))
        if done.claimed:
            metrics.CLAIM_BATCH.observe(len(done.claimed))
        missed = self._doubt_missed(claims, owners, done) if len(done.claimed) < len(claims) else []
        for job in done.claimed:
            self._pool.begin(job)
        await self._offer_ready(done)
        if limited:
            await self.places.drop(worker, self.places.pick(missed))
            if self._queue.rivals:
                await self.places.tell_others(freed)
        if done.lost:
            self._tell_lost(ended, done.lost)
        self._mark(ended, done.claimed)
        return True

    def _doubt_missed(
        self, claims: Sequence[int], owners: Sequence[Owner], done: Flushed
    ) -> list[tuple[int, str]]:
        """(fence, kind) of claims that came back empty; the feeder reads their rows again."""
        got = {job.fence for job in done.claimed}
        missed = [(f, owner) for f, owner in zip(claims, owners, strict=True) if f not in got]
        self._doubt(missed)
        return [(fence, kind) for fence, (kind, _) in missed]

    def _doubt(self, missed: Iterable[tuple[int, Owner]]) -> None:
        """Jobs that another process has, or is about to have."""
        for fence, (kind, user_id) in missed:
            self._scheduler.ended(kind, user_id)
            if self.feeder is not None:
                self.feeder.doubt(fence)

    async def _offer_ready(self, done: Flushed) -> None:
        """Retries and released parents go back to the scheduler, and other processes hear of them."""
        for row in done.ready:
            self._scheduler.add(row.fence, row.kind, row.user_id, row.priority, wait_s=row.wait_s)
            if row.wait_s:
                self.look()  # its timer may be the next
        if done.ready and self._queue.rivals:
            await self._db.fetch("notify_jobs")

    @staticmethod
    def _tell_lost(ended: Sequence[End], fences: Sequence[int]) -> None:
        lost = set(fences)
        for end, job in ended:
            if end.fence in lost:
                metrics.JOBS_LOST.inc()
                log.warning("job.lost", job_id=job.id, kind=job.kind, attempt=job.attempt, what="end")

    def _mark(self, ended: Sequence[End], claimed: Sequence[ClaimedJob]) -> None:
        """Hints for the event streams; parents show their children, so they changed too."""
        changed: list[UUID] = []
        for job in (*(job for _, job in ended), *claimed):
            changed.append(job.id)
            if job.parent_id is not None:
                changed.append(job.parent_id)
        self._changes.mark(changed)

    def _give_up(self, claims: Sequence[int], owners: Sequence[Owner]) -> None:
        self.claiming -= len(claims)
        for fence, (kind, user_id) in zip(claims, owners, strict=True):
            self._scheduler.ended(kind, user_id)
            if self.feeder is not None:
                self.feeder.doubt(fence)
        if claims and self.feeder is not None:
            self.feeder.recheck()

    async def _lower_mark(self, connection: database.Connection, worker: int, fence: int) -> None:
        """Rescue looks for our jobs from this fence on: it must never lie above one of them."""
        if fence < self._lease.low_fence:
            with database.translate_errors():
                await connection.fetch(self._db.sql["lower_fence_mark"], worker, fence)
            self._lease.low_fence = fence

    # -- ends that cannot be written ------------------------------------------------------------------------

    async def _end_one_by_one(
        self, connection: database.Connection, ended: Sequence[End], worker: int
    ) -> None:
        """One of these results is nothing that the database can hold. None of them was written yet."""
        self._ended = [*ended, *self._ended]
        for end, job in ended:
            try:
                await self._queue.flush(connection, [end], worker, [])
            except asyncpg.DataError as exc:
                log.error("job.crashed", job_id=job.id, kind=job.kind, attempt=job.attempt, exc_info=exc)
                await self._queue.flush(connection, [outcomes.not_storable(job, exc)], worker, [])
            self._ended.remove((end, job))
            self._mark([(end, job)], ())
        self.look()  # parents that were released

    async def _put_aside(self, connection: database.Connection) -> None:
        """Take out the ends whose rows, or whose parents' rows, another transaction has locked."""
        free = await self._find_free(connection, self._ended)
        locked = [(end, job) for end, job in self._ended if end.fence not in free]
        self._ended = [(end, job) for end, job in self._ended if end.fence in free]
        self._aside += locked
        loop = asyncio.get_running_loop()
        self._aside_until = loop.time() + ASIDE_S
        loop.call_later(ASIDE_S, self._wanted.set)
        for _, job in locked:
            log.warning("job.locked", job_id=job.id, kind=job.kind, again_in_s=ASIDE_S)

    async def _take_up_again(self, connection: database.Connection) -> None:
        self._ended = self._aside + self._ended
        self._aside = []
        await self._put_aside(connection)

    async def _find_free(self, connection: database.Connection, ends: Sequence[End]) -> set[int]:
        """Fences of ends that can be written now, and of those that are no longer ours."""
        fences = [end.fence for end, _ in ends]
        with database.translate_errors():
            rows = await connection.fetch(self._db.sql["find_locked"], fences)
        return set(fences).difference(row["fence"] for row in rows)
