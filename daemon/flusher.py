"""Writes how attempts ended and claims the next jobs, together in one statement (sql/queries/queue.sql, flush).

    scheduler.take --> flush --> pool.begin          pool: attempts end --> end() --+
         ^               ^                                                          |
         +---------------+----------------------------------------------------------+

While a flush is in flight the next batch gathers and the pool runs what the last one claimed. So an idle daemon
answers within one round trip, and a busy one pays one commit for hundreds of jobs. A second flush takes off
while the first is in flight once enough has gathered: Postgres works on one while the other waits for the disk
or for Python. The two never hold the same row, and lock the parents of what ended in one order.

One job must not hold back the others: an end that the database cannot hold becomes a failure, and one whose
row somebody else's open transaction has locked (an app that cancels inside its own) waits aside.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from daemon import db as database
from daemon import logs, metrics, outcomes
from daemon.changes import Changes
from daemon.errors import Unavailable
from daemon.feeder import Feeder
from daemon.jobs import ClaimedJob, State, Took
from daemon.lease import Lease
from daemon.places import Owner, Places
from daemon.queue import Ended, Flushed, Queue
from daemon.scheduler import Scheduler

SMALL_FLUSH = 64
"""Jobs below which a commit costs more than waiting for it."""

ASIDE_S = 1.0
"""An end whose row is locked is tried again after so many seconds."""

FLIGHTS = 2
"""Flushes that may be in flight at once, each on a connection of its own."""

End = tuple[Ended, ClaimedJob, float, Took | None]
"""How an attempt ended, its job, for how many seconds it ran, and what it took."""

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
    """The one writer of ends and claims in a process. feeder: set once it exists. tells: the log shows every end,
    not only failures (a line that nobody sees costs 2 us).

    `run` must be running, FLIGHTS times.
    """

    def __init__(
        self,
        pool: Pool,
        queue: Queue,
        db: database.Database,
        scheduler: Scheduler,
        lease: Lease,
        changes: Changes,
        *,
        tells: bool,
    ) -> None:
        self._tells = tells
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
        # Of what was claimed and has not ended yet, while every end is told.
        self._waits_s: dict[int, float] = {}
        self._flying: list[list[End]] = []  # the ends of each flush in flight
        self._aside: list[End] = []
        self._aside_until = 0.0
        # A share of the slots at once: the pool runs one share while the database works on the others.
        self._most = max(SMALL_FLUSH, pool.concurrency // (FLIGHTS + 1))
        self._wanted = asyncio.Event()
        self._landed = asyncio.Event()
        self._lowering = asyncio.Lock()
        self._is_reserving = False  # places in limited kinds, whose limits may go meanwhile

    # -- what the pool tells ------------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to claim."""
        self._wanted.set()

    def look(self) -> None:
        """Something is ready that only the database knows in full."""
        if self.feeder is not None:
            self.feeder.look()

    def end(self, ended: Ended, job: ClaimedJob, run_s: float, took: Took | None = None) -> None:
        """Have an end written with the next flush, and told once it is."""
        self._ended.append((ended, job, run_s, took))
        self._wanted.set()

    def let_go(self, job: ClaimedJob) -> None:
        """An attempt is over and ends without a word here: it waits for its children, or is no longer ours."""
        self._waits_s.pop(job.fence, None)
        self._wanted.set()  # for the slot

    @property
    def backlog(self) -> int:
        """Ends that wait for the next flush."""
        return len(self._ended)

    def unwritten(self) -> set[int]:
        """Fences of attempts that have ended here and not yet in the database."""
        return {end.fence for end, *_ in chain(self._ended, self._aside, *self._flying)}

    # -- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Finish and claim for ever, on one connection. Errors: Unavailable; run it again, nothing is forgotten."""
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
        """The last flush of a stop: the ends that are not written yet, those in flight among them."""
        try:
            async with asyncio.timeout(within_s):
                connection = await self._connect()
                try:
                    while await self._flush(connection) or self._flying:
                        self._landed.clear()
                        if self._flying:
                            await self._landed.wait()
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
        if self._flying and not self._is_second_worth_it():
            return False  # whoever lands goes on with it
        ends: list[End] = []
        self._flying.append(ends)
        try:
            if self._aside and asyncio.get_running_loop().time() >= self._aside_until:
                await self._take_up_again(connection)
            return await self._fly(connection, ends)
        finally:
            self._flying = [other for other in self._flying if other is not ends]
            self._ended = ends + self._ended  # what could not be written; harmless, should it have been
            self._landed.set()

    def _is_second_worth_it(self) -> bool:
        if self._is_reserving or self.places.is_needed():
            return False  # refused places are put back to the take before: one at a time
        return max(len(self._ended), min(self._pool.claimable(), self._scheduler.ready)) >= SMALL_FLUSH

    async def _fly(self, connection: database.Connection, ends: list[End]) -> bool:
        """ends: takes up what is being written, and is left with what has not been."""
        worker = self._pool.worker_id
        assert worker is not None  # the lease starts before the flusher
        ends[:], self._ended = self._ended[: self._most], self._ended[self._most :]
        slots = min(self._pool.claimable(), self._most)
        claims = self._scheduler.take(slots) if slots > 0 else []
        if self.feeder is not None:
            self.feeder.count_ready()
        if self._scheduler.spilled() is not None:
            self.look()
        if not ends and not claims:
            return False
        owners = [self._scheduler.known.pop(fence) for fence in claims]
        waits_s: dict[int, float] = {}
        if self._tells:
            kinds = [kind for kind, _ in owners]
            waits_s = dict(zip(claims, self._scheduler.last_waits_s(kinds), strict=True))
        self.claiming += len(claims)
        self._scheduler.claiming.update(claims)
        limited = self.places.is_needed()
        freed = self.places.pick((end.fence, job.kind) for end, job, *_ in ends) if limited else []
        try:
            if claims and limited:
                asked, self._is_reserving = claims, True
                try:
                    claims, owners, taken = await self.places.reserve(
                        connection, worker, claims, owners, freed
                    )
                finally:
                    self._is_reserving = False
                self._claim_no_more(set(asked).difference(claims))
                self._doubt(taken)
                if not ends and not claims:
                    return True  # what was ended or came meanwhile has found a flight under way
            if claims:
                await self._lower_mark(connection, worker, min(claims))
            done = await self._queue.flush(connection, [end for end, *_ in ends], worker, claims)
        except asyncpg.DataError:
            self._give_up(claims, owners)
            await self._end_one_by_one(connection, ends, worker)
            return True
        except BaseException as exc:
            # Perhaps it was committed: ends are written again (then they are lost, harmlessly), and claims
            # that were ours without our knowing are adopted later.
            self._give_up(claims, owners)
            if isinstance(exc.__cause__, asyncpg.LockNotAvailableError):
                await self._put_aside(connection, ends)  # nothing was committed
                return True
            self._pool.adopt_soon()
            raise
        self._claim_no_more(claims)
        written, ends[:] = tuple(ends), ()
        if written:
            metrics.FLUSH_BATCH.observe(len(written))
        if done.claimed:
            metrics.CLAIM_BATCH.observe(len(done.claimed))
        missed = self._doubt_missed(claims, owners, done) if len(done.claimed) < len(claims) else []
        if self._tells:
            self._waits_s.update((job.fence, waits_s[job.fence]) for job in done.claimed)
        for job in done.claimed:
            self._pool.begin(job)
        self._tell_all(written, done)
        self._mark(written, done.claimed)
        await self._offer_ready(done)  # what follows may find the database gone
        if limited:
            await self.places.drop(worker, self.places.pick(missed))
            if self._queue.rivals:
                await self.places.tell_others(freed)
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

    def _tell_all(self, written: Sequence[End], done: Flushed) -> None:
        """The canonical line of each attempt, now that its end stands in the database; those that came too late."""
        lost, cancelled = set(done.lost), set(done.cancelled)
        if not lost and not self._tells and all(end.state is not State.FAILED for end, *_ in written):
            return
        for end, job, run_s, took in written:
            # What was born running, or claimed at sight, has not waited.
            wait_s = self._waits_s.pop(job.fence, 0.0) if self._tells else None
            if end.fence in lost:
                metrics.JOBS_LOST.inc()
                # Or written before, by a flush whose answer never came: how it ended is told in any case.
                log.warning(
                    "job.lost", job_id=job.id, kind=job.kind, attempt=job.attempt, what="end", state=end.state,
                    duration_s=round(run_s, 4),
                )  # fmt: skip
            elif self._tells or end.state is State.FAILED:
                # Perhaps instead of a repetition.
                stopped = end._replace(state=State.CANCELLED, delay_s=0.0) if end.fence in cancelled else end
                _tell(stopped, job, run_s, took, wait_s)

    def _mark(self, ended: Sequence[End], claimed: Sequence[ClaimedJob]) -> None:
        """Hints for the event streams; parents show their children, so they changed too."""
        changed: list[UUID] = []
        for job in (*(job for _, job, *_ in ended), *claimed):
            changed.append(job.id)
            if job.parent_id is not None:
                changed.append(job.parent_id)
        self._changes.mark(changed)

    def _claim_no_more(self, claims: Collection[int]) -> None:
        """These are claimed, refused, or in doubt; from here on the feeder may bring them again."""
        self.claiming -= len(claims)
        self._scheduler.claiming.difference_update(claims)

    def _give_up(self, claims: Sequence[int], owners: Sequence[Owner]) -> None:
        self._claim_no_more(claims)
        for fence, (kind, user_id) in zip(claims, owners, strict=True):
            self._scheduler.ended(kind, user_id)
            if self.feeder is not None:
                self.feeder.doubt(fence)
        if claims and self.feeder is not None:
            self.feeder.recheck()

    async def _lower_mark(self, connection: database.Connection, worker: int, fence: int) -> None:
        """Rescue looks for our jobs from this fence on: it must never lie above one of them.

        One flight at a time: of two that lower it at once, the higher might reach the database last.
        """
        async with self._lowering:
            if fence < self._lease.low_fence:
                with database.translate_errors():
                    await connection.fetch(self._db.sql["lower_fence_mark"], worker, fence)
                self._lease.low_fence = fence

    # -- ends that cannot be written ------------------------------------------------------------------------

    async def _end_one_by_one(self, connection: database.Connection, ends: list[End], worker: int) -> None:
        """One of these results is nothing that the database can hold. None of them was written yet."""
        while ends:
            end, job, run_s, took = ends[0]
            try:
                done = await self._queue.flush(connection, [end], worker, [])
            except asyncpg.DataError as exc:
                log.error("job.crashed", job_id=job.id, kind=job.kind, attempt=job.attempt, exc_info=exc)
                end = outcomes.not_storable(job, exc)
                done = await self._queue.flush(connection, [end], worker, [])
            self._tell_all([(end, job, run_s, took)], done)
            self._mark(ends[:1], ())
            del ends[0]
        self.look()  # parents that were released

    async def _put_aside(self, connection: database.Connection, ends: list[End]) -> None:
        """Take out the ends whose rows, or whose parents' rows, another transaction has locked."""
        locked = await self._find_locked(connection, ends)
        self._aside += [ended for ended in ends if ended[0].fence in locked]
        ends[:] = [ended for ended in ends if ended[0].fence not in locked]
        loop = asyncio.get_running_loop()
        self._aside_until = loop.time() + ASIDE_S
        loop.call_later(ASIDE_S, self._wanted.set)
        for end, job, *_ in self._aside:
            if end.fence in locked:
                log.warning("job.locked", job_id=job.id, kind=job.kind, again_in_s=ASIDE_S)

    async def _take_up_again(self, connection: database.Connection) -> None:
        """Let those that can be written now go with the next flush."""
        ends, self._aside = self._aside, []
        self._flying.append(ends)
        try:
            await self._put_aside(connection, ends)
        finally:
            self._flying = [other for other in self._flying if other is not ends]
            self._ended = ends + self._ended

    async def _find_locked(self, connection: database.Connection, ends: Sequence[End]) -> set[int]:
        """Fences of ends that cannot be written now."""
        with database.translate_errors():
            rows = await connection.fetch(self._db.sql["find_locked"], [end.fence for end, *_ in ends])
        return {row["fence"] for row in rows}


def _tell(end: Ended, job: ClaimedJob, run_s: float, took: Took | None, wait_s: float | None) -> None:
    """The canonical line of one attempt. wait_s: seconds from when it was due to its claim, where they were kept."""
    facts: dict[str, Any] = {
        "job_id": job.id, "kind": job.kind, "user_id": job.user_id, "attempt": job.attempt,
    }  # fmt: skip
    if end.error_text is not None:
        facts["error"] = json.loads(end.error_text)
    if wait_s is not None:
        facts["wait_s"] = round(wait_s, 4)
    if took is not None and took.provider_s:
        facts |= {"provider_s": round(took.provider_s, 3), "cost_usd": str(took.cost_usd)}
    if took is not None and took.bytes:
        facts["bytes"] = took.bytes
    if end.delay_s:
        facts["delay_s"] = round(end.delay_s, 3)
    match end.state:
        case State.COMPLETED:
            tell, event = log.info, "job.completed"
        case State.FAILED:
            tell, event = log.warning, "job.failed"
        case State.CANCELLED:
            tell, event = log.info, "job.cancelled"
        case _ if end.gives_back:
            tell, event = log.info, "job.released"
        case _:
            tell, event = log.warning, "job.retry_scheduled"
    tell(event, duration_s=round(run_s, 4), **facts)
