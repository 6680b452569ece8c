"""Feeds the scheduler from the database: what is ready, what becomes due, what was missed.

Walks job_states upwards in the order of `fence` from where it stands, so finished rows and dead versions are
never looked at again. Looks when told (NOTIFY, the end of a fan-out), and every poll_s without being told.

    start:   the mark (nothing below it is ready) -> all pending from there on -> then onwards by fence; and once
             more when every transaction that was open at the start has ended
    onwards: rows above the cursor, and the holes (fences drawn by transactions that had not committed)
    due:     rows whose run_at falls into the next horizon go to the scheduler's timers

A look never waits for a walk through the backlog, nor a timer for either: each has a task. When nothing waits for
its turn, the statement that finds new jobs claims them as well: one round trip from the notification to the
handler, and the disk is waited for while it runs.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import chain
from typing import Protocol

from daemon import db as database
from daemon import logs
from daemon.errors import Unavailable
from daemon.jobs import ClaimedJob
from daemon.queue import Queue, ReadyGroup
from daemon.scheduler import FenceCursor, Horizon, Scheduler

READ_SIZE = 10_000
PIECE = 2000
"""Jobs of a backlog that are read at a time: the loop is held for as long as it takes to add them."""
ENOUGH = 2 * PIECE
"""So many that are known last for as long as the next piece takes to come."""
STRETCH = 250_000
"""Fences that are looked through at a time for a piece; most may have ended, or be others' to run. A tenth of a second
of the server: a start sees the head of its backlog before the new jobs at its end."""
PAUSES = 9
"""The walk through the backlog of a start pauses so many times as long as a piece of it took while enough is ready:
the jobs at its head run as if it were short."""
SECOND_STRETCH = 25_000
SECOND_PAUSES = 29
"""The second walk rarely finds anything. It looks through less at a time and always pauses, so many times as long as
that took: it takes a thirtieth of a server's core."""
CLAIM_AT_SIGHT = 32
"""So many new jobs at most are claimed by the statement that finds them; more go through the scheduler."""
HORIZON_S = 30.0
"""run_at within so many seconds is held as a timer; later ones stay in the database."""
TIMER_MARGIN_S = 0.001
"""A timer that fires a hair before the database's clock agrees would lose its claim until the next poll."""
MARK_EVERY_S = 30.0
LOOK_BACK = 1000
"""Fences before the last one that are looked at one by one at a start."""

log = logs.get_logger()


class Pool(Protocol):
    """Where jobs that are claimed at sight run (workers.py)."""

    @property
    def worker_id(self) -> int | None: ...

    def promise(self, most: int, after: int) -> int:
        """Keep slots, `most` at most, for jobs above a fence; how many."""
        ...

    def take_up(self, promised: int, claimed: Sequence[ClaimedJob]) -> None:
        """Give the promised slots back and run what was claimed."""
        ...

    def adopt_soon(self) -> None:
        """A claim may have been committed without our knowing."""
        ...

    def held_fences(self) -> set[int]:
        """All that is in the pool's hands."""
        ...


class Feeder:
    """on_ready: called after something was added to the scheduler. pool: without one nothing is claimed here."""

    def __init__(
        self,
        queue: Queue,
        scheduler: Scheduler,
        *,
        poll_s: float,
        on_ready: Callable[[], None],
        pool: Pool | None = None,
    ) -> None:
        self._queue = queue
        self._scheduler = scheduler
        self._poll_s = poll_s
        self._on_ready = on_ready
        self._pool = pool
        self._wanted = asyncio.Event()
        self._timed = asyncio.Event()  # the next timer may be another one
        self._low = asyncio.Event()  # a walk shall go on
        self._behind = asyncio.Event()  # there is something to do besides looking
        self._claimed = asyncio.Event()  # a claim may not be on the disk yet
        self.has_looked = asyncio.Event()  # once what waited at the start is with the scheduler
        self._cursor = FenceCursor()
        self._doubts: set[int] = set()
        self._foreign: tuple[int, int] | None = None  # (first, last) fence of pending jobs that others run
        self._recheck = False
        self._due_until: float | None = None  # loop time up to which run_at is held as timers
        self._marked_at = 0.0
        self._walked = False  # the backlog of the start is known
        self._start_at = (0, 0, 0)  # mark, last fence and oldest transaction at the start
        self._restart: Horizon | None = None  # of the start, while transactions of then are open
        self._settled = asyncio.Event()  # they have ended: the stretch of the start can be read again
        self._is_read_twice = False

    @property
    def seen_until(self) -> int:
        """The highest fence that was seen."""
        return self._cursor.last

    def look(self) -> None:
        """Something is ready, or may be."""
        self._wanted.set()

    def count_ready(self) -> None:
        """Jobs were taken: is enough left that is known?"""
        if self._scheduler.ready < ENOUGH:
            self._low.set()

    def doubt(self, fence: int) -> None:
        """A claim came back empty: read that row again before forgetting it."""
        self._doubts.add(fence)

    def recheck(self) -> None:
        """Resolve the doubts now: claims were on their way when the connection was lost."""
        self._recheck = True
        self._behind.set()

    async def run(self) -> None:
        """Feed for ever. Errors: Unavailable; run again, it starts from the mark."""
        connection = await self._queue.connect_feeder()
        connection.add_termination_listener(lambda _: self._wanted.set())
        try:
            fence = await self._start()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._run_looks(connection), name="feeder-looks")
                tasks.create_task(self._run_syncs(), name="feeder-syncs")
                tasks.create_task(self._run_timers(), name="feeder-timers")
                tasks.create_task(self._run_walks(fence), name="feeder-walks")
                tasks.create_task(self._run_second_read(), name="feeder-second-read")
        except ExceptionGroup as group:
            _, bugs = group.split(Unavailable)
            error = (bugs or group).exceptions[0]
            raise error from error.__cause__
        finally:
            connection.terminate()

    async def _start(self) -> int | None:
        """The head of what is pending from the mark on; where to read on. Transactions that are open now may still
        fill fences below the last one: the youngest are watched as holes, and once all have ended the stretch is
        read a second time.
        """
        mark, last, oldest = await self._queue.read_mark()
        self._start_at = (mark, last, oldest)
        self._restart = Horizon(asyncio.get_running_loop().time())
        self._cursor = FenceCursor(max(mark - 1, last - LOOK_BACK))
        self._foreign = (mark, last)
        self._due_until = None
        self._walked = False
        self._settled.clear()
        self._is_read_twice = False
        return await self._read_backlog(mark, last)

    # -- looks ----------------------------------------------------------------------------------------------

    async def _run_looks(self, connection: database.Connection) -> None:
        while True:
            self._wanted.clear()
            if not await self._claim_fresh(connection) or self._cursor.holes or self._restart is not None:
                await self._read_onwards(connection)
            if self._scheduler.spilled() is not None:
                self._behind.set()
            self._timed.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._wanted.wait()

    async def _claim_fresh(self, connection: database.Connection) -> bool:
        """Claim what is new, when it may start at once; whether all that is above the cursor was seen."""
        pool, after = self._pool, self._cursor.last
        if pool is None or pool.worker_id is None or not self._walked:
            return False
        most, kinds = self._scheduler.find_room(CLAIM_AT_SIGHT)
        promised = pool.promise(most, after) if kinds else 0
        if not promised:
            return False
        claimed: Sequence[ClaimedJob] = ()
        try:
            fresh = await self._queue.claim_fresh(
                connection, after, limit=promised, kinds=kinds,
                waiting_users=self._scheduler.waiting_users(), worker=pool.worker_id,
            )  # fmt: skip
            claimed = fresh.claimed
        except BaseException:
            pool.adopt_soon()
            raise
        finally:
            pool.take_up(promised, claimed)
            if claimed:
                self._claimed.set()
        if len(fresh.fences) > promised:
            return False
        self._cursor.saw_all(fresh.fences)
        self._add_all(fresh.others)
        return True

    async def _run_syncs(self) -> None:
        """Bring claims at sight to the disk while their jobs run already."""
        while True:
            await self._claimed.wait()
            self._claimed.clear()
            await self._queue.make_lasting()

    async def _read_onwards(self, connection: database.Connection) -> None:
        while True:
            before = self._cursor.last
            seen = await self._queue.read_ready(before, sorted(self._cursor.holes), READ_SIZE, connection)
            self._cursor.saw_all(sorted(chain.from_iterable(group.fences for group in seen.groups)))
            self._add_all(seen.groups)
            ahead = sum(len(g.fences) - bisect_right(g.fences, before) for g in seen.groups)
            if ahead < READ_SIZE:
                break
        now = asyncio.get_running_loop().time()
        self._cursor.settle(seen.oldest, seen.following, now)
        if self._restart is not None and self._restart.is_past(seen.oldest, seen.following, now):
            self._restart = None
            self._settled.set()

    def _add_all(self, groups: Sequence[ReadyGroup]) -> None:
        pending = sorted(group for group in groups if group.pending)
        if not pending:
            return
        # Pending there and running here: read before its claim, or the server has crashed and forgotten it. It must
        # not be claimed again as long as the attempt goes on: with the same fence and worker that could still write.
        held = self._pool.held_fences() if self._pool is not None else set()
        for group in pending:
            if held.isdisjoint(group.fences):
                self._add(group)
            else:
                self._doubts.update(held.intersection(group.fences))
                if rest := [fence for fence in group.fences if fence not in held]:
                    self._add(group._replace(fences=rest))
        self._on_ready()

    def _add(self, group: ReadyGroup) -> None:
        wait_s = group.wait_s
        if wait_s is not None and wait_s > HORIZON_S:
            return  # _read_due brings it in time
        if group.kind not in self._scheduler.kinds:
            if wait_s is None:
                first, last = self._foreign or (group.fences[0], group.fences[-1])
                self._foreign = min(first, group.fences[0]), max(last, group.fences[-1])
        elif wait_s is not None and wait_s > 0:
            for fence in group.fences:
                self._scheduler.add(
                    fence, group.kind, group.user_id, group.priority, wait_s=wait_s + TIMER_MARGIN_S
                )
        else:
            self._scheduler.add_many(
                group.fences, group.kind, group.user_id, group.priority, age_s=max(group.age_s, 0.0)
            )

    # -- timers ---------------------------------------------------------------------------------------------

    async def _run_timers(self) -> None:
        while True:
            self._timed.clear()
            timers = len(self._scheduler.timers)
            next_due_s = self._scheduler.promote_due()
            if len(self._scheduler.timers) < timers:
                self._on_ready()
            with suppress(TimeoutError):
                async with asyncio.timeout(next_due_s):
                    await self._timed.wait()

    # -- walks through the backlog, and what is due from time to time -------------------------------------------

    async def _run_walks(self, fence: int | None) -> None:
        _, last, _ = self._start_at
        loop = asyncio.get_running_loop()
        while fence is not None:
            began = loop.time()
            fence = await self._read_backlog(fence, last)
            self._low.clear()
            if self._scheduler.ready >= ENOUGH:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PAUSES * (loop.time() - began)):
                        await self._low.wait()
        self._walked = True
        await self._read_due()
        self.has_looked.set()
        poll_at = loop.time() + self._poll_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(poll_at):
                    await self._behind.wait()
            self._behind.clear()
            await self._refill()
            polled = loop.time() >= poll_at  # also when it was woken all the time
            if polled or self._recheck:
                self._recheck = False
                await self._resolve_doubts()
            if polled:
                await self._read_due()
                if self._is_read_twice:
                    await self._raise_mark()
                self._on_ready()
                poll_at = loop.time() + self._poll_s

    async def _read_backlog(self, fence: int, last: int, oldest: int | None = None) -> int | None:
        """A piece of what is pending without run_at, `fence` to `last`; where to read on, None at the end."""
        stretch = STRETCH if oldest is None else SECOND_STRETCH
        until = min(fence + stretch - 1, last)
        groups = await self._queue.read_backlog(fence, until, list(self._scheduler.kinds), oldest, PIECE)
        self._add_all(groups)
        if sum(len(group.fences) for group in groups) == PIECE:
            until = max(group.fences[-1] for group in groups)
        return None if until >= last else until + 1

    async def _run_second_read(self) -> None:
        """What was written, at or below the last fence of the start, by transactions that were open then."""
        await self.has_looked.wait()
        await self._settled.wait()
        loop = asyncio.get_running_loop()
        mark, last, oldest = self._start_at
        fence: int | None = mark
        while fence is not None:
            began = loop.time()
            fence = await self._read_backlog(fence, last, oldest)
            if self._scheduler.spilled() is not None:
                self._behind.set()
            await asyncio.sleep(SECOND_PAUSES * (loop.time() - began))
        self._is_read_twice = True

    async def _refill(self) -> None:
        while (spilled := self._scheduler.spilled()) is not None:
            user_id, fence = spilled
            last = self._cursor.last
            self._scheduler.begin_refill(user_id)
            while fence <= last:
                groups = await self._queue.read_user_pending(user_id, fence, PIECE)
                self._add_all(groups)
                if self._scheduler.is_spilled(user_id) or sum(len(group.fences) for group in groups) < PIECE:
                    break
                fence = max(group.fences[-1] for group in groups) + 1

    async def _read_due(self) -> None:
        """Hold what becomes due within the horizon. Overlaps generously: what is held is not added twice."""
        now = asyncio.get_running_loop().time()
        if self._due_until is not None and self._due_until - now > 2 * self._poll_s:
            return
        from_s = None if self._due_until is None else self._due_until - now - 2 * self._poll_s
        after: tuple[datetime, int] | None = None
        while True:
            groups, after = await self._queue.read_due(from_s, HORIZON_S, after, PIECE)
            self._add_all(groups)
            self._timed.set()
            if after is None:
                break
        self._due_until = now + HORIZON_S

    async def _resolve_doubts(self) -> None:
        """Claims that came back empty: usually another process was faster; a row that was only locked for
        a moment is still pending and comes back.
        """
        doubts, self._doubts = self._doubts, set()
        if doubts:
            seen = await self._queue.read_ready(self._cursor.last, sorted(doubts), 0)
            self._add_all(seen.groups)

    async def _raise_mark(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._marked_at < MARK_EVERY_S:
            return
        self._marked_at = now
        held = self._scheduler.lowest_fence()
        candidates = [f for f in (held, min(self._cursor.holes, default=None)) if f is not None]
        mark = min(chain(candidates, self._doubts), default=self._cursor.last + 1)
        await self._queue.raise_mark(await self._find_foreign(mark))

    async def _find_foreign(self, mark: int) -> int:
        """The first pending job below `mark` of a kind that others run; `mark` without one."""
        if self._foreign is None or self._foreign[0] >= mark:
            return mark
        first, last = self._foreign
        found = await self._queue.find_foreign(first, mark, list(self._scheduler.kinds))
        first = mark if found is None else found
        last = max(last, self._foreign[1])  # looks went on meanwhile
        self._foreign = (first, last) if first <= last else None
        return first
