"""Feeds the scheduler from the database: what is ready, what becomes due, what was missed.

Walks job_states upwards in the order of `fence` from where it stands, so finished rows and dead versions are
never looked at again. Looks when told (NOTIFY, the end of a fan-out), and every poll_s without being told.

    start:   the mark (nothing below it is ready) -> all pending from there on -> then onwards by fence; and once
             more when every transaction that was open at the start has ended
    onwards: rows above the cursor, and the holes (fences drawn by transactions that had not committed)
    due:     rows whose run_at falls into the next horizon go to the scheduler's timers
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from itertools import chain

from daemon import logs
from daemon.queue import Queue, ReadyGroup
from daemon.scheduler import FenceCursor, Horizon, Scheduler

READ_SIZE = 10_000
HORIZON_S = 30.0
"""run_at within so many seconds is held as a timer; later ones stay in the database."""
TIMER_MARGIN_S = 0.001
"""A timer that fires a hair before the database's clock agrees would lose its claim until the next poll."""
MARK_EVERY_S = 30.0
LOOK_BACK = 1000
"""Fences before the last one that are looked at one by one at a start."""

log = logs.get_logger()


class Feeder:
    """on_ready: called after something was added to the scheduler."""

    def __init__(
        self, queue: Queue, scheduler: Scheduler, *, poll_s: float, on_ready: Callable[[], None]
    ) -> None:
        self._queue = queue
        self._scheduler = scheduler
        self._poll_s = poll_s
        self._on_ready = on_ready
        self._wanted = asyncio.Event()
        self.has_looked = asyncio.Event()  # once what waited at the start is with the scheduler
        self._cursor = FenceCursor()
        self._doubts: set[int] = set()
        self._foreign: set[int] = set()  # pending jobs of kinds that workers in other languages run
        self._recheck = False
        self._due_until: float | None = None  # loop time up to which run_at is held as timers
        self._marked_at = 0.0
        self._first_mark = 0
        self._restart: Horizon | None = None  # of the start, while its stretch must be read again

    def look(self) -> None:
        """Something is ready, or may be."""
        self._wanted.set()

    def doubt(self, fence: int) -> None:
        """A claim came back empty: read that row again before forgetting it."""
        self._doubts.add(fence)

    def recheck(self) -> None:
        """Resolve the doubts now: claims were on their way when the connection was lost."""
        self._recheck = True
        self._wanted.set()

    async def run(self) -> None:
        """Feed for ever. Errors: Unavailable; run again, it starts from the mark."""
        await self._start()
        loop = asyncio.get_running_loop()
        poll_at = loop.time() + self._poll_s
        while True:
            next_due_s = self._scheduler.promote_due()
            self._on_ready()
            timeout_s = poll_at - loop.time()
            if next_due_s is not None:
                timeout_s = min(timeout_s, next_due_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(timeout_s, 0)):
                    await self._wanted.wait()
            self._wanted.clear()
            self._scheduler.promote_due()
            self._on_ready()
            await self._read_onwards()
            await self._refill()
            polled = loop.time() >= poll_at  # also when it was woken all the time
            if polled or self._recheck:
                self._recheck = False
                await self._resolve_doubts()
            if polled:
                await self._read_due()
                await self._raise_mark()
                poll_at = loop.time() + self._poll_s

    async def _start(self) -> None:
        """Everything pending from the mark on. Transactions that are open now may still fill fences below the
        last one: the youngest are watched as holes, and once all have ended the stretch is read a second time.
        """
        mark, last = await self._queue.read_mark()
        self._restart = Horizon(asyncio.get_running_loop().time())
        self._first_mark = mark
        self._cursor = FenceCursor(max(mark - 1, last - LOOK_BACK))
        self._due_until = None
        await self._read_pending(mark, last)
        await self._read_due()
        self._on_ready()
        self.has_looked.set()

    async def _read_pending(self, fence: int, last: int, user_id: str | None = None) -> None:
        """Everything pending without run_at from `fence` to `last`, of one user or of all."""
        while True:
            groups = await self._queue.read_pending_from(fence, user_id, READ_SIZE)
            for group in sorted(groups):
                self._add(group)
            self._on_ready()
            if user_id is not None and self._scheduler.is_spilled(user_id):
                return  # full again
            highest = max((group.fences[-1] for group in groups), default=last)
            if sum(len(group.fences) for group in groups) < READ_SIZE or highest >= last:
                return
            fence = highest + 1

    async def _read_onwards(self) -> None:
        while True:
            holes = sorted(self._cursor.holes)
            before = self._cursor.last
            groups = await self._queue.read_ready(before, holes, READ_SIZE)
            self._cursor.saw_all(sorted(chain.from_iterable(group.fences for group in groups)))
            for group in sorted(groups):
                if group.pending:
                    self._add(group)
            if groups:
                self._on_ready()
            ahead = sum(len(g.fences) - bisect_right(g.fences, before) for g in groups)
            if ahead < READ_SIZE:
                break
        if self._cursor.holes or self._restart is not None:
            oldest, following = await self._queue.read_snapshot()
            now = asyncio.get_running_loop().time()
            self._cursor.settle(oldest, following, now)
            if self._restart is not None and self._restart.is_past(oldest, following, now):
                self._restart = None
                await self._read_pending(self._first_mark, self._cursor.last)

    def _add(self, group: ReadyGroup) -> None:
        wait_s = group.wait_s
        if wait_s is not None and wait_s > HORIZON_S:
            return  # _read_due brings it in time
        if group.kind not in self._scheduler.kinds:
            if wait_s is None:
                self._foreign.update(group.fences)
        elif wait_s is not None and wait_s > 0:
            for fence in group.fences:
                self._scheduler.add(
                    fence, group.kind, group.user_id, group.priority, wait_s=wait_s + TIMER_MARGIN_S
                )
        else:
            self._scheduler.add_many(
                group.fences, group.kind, group.user_id, group.priority, age_s=max(group.age_s, 0.0)
            )

    async def _read_due(self) -> None:
        """Hold what becomes due within the horizon. Overlaps generously: what is held is not added twice."""
        now = asyncio.get_running_loop().time()
        if self._due_until is not None and self._due_until - now > 2 * self._poll_s:
            return
        from_s = None if self._due_until is None else self._due_until - now - 2 * self._poll_s
        while True:
            rows = await self._queue.read_due(from_s, HORIZON_S, READ_SIZE)
            for row in rows:
                self._add(row)
            if len(rows) < READ_SIZE or rows[-1].wait_s is None or rows[-1].wait_s == from_s:
                break
            from_s = rows[-1].wait_s - 0.001
        self._due_until = now + HORIZON_S
        self._on_ready()

    async def _resolve_doubts(self) -> None:
        """Claims that came back empty: usually another process was faster; a row that was only locked for
        a moment is still pending and comes back.
        """
        doubts, self._doubts = self._doubts, set()
        if doubts:
            for group in await self._queue.read_ready(self._cursor.last, sorted(doubts), 0):
                if group.pending:
                    self._add(group)

    async def _refill(self) -> None:
        while (spilled := self._scheduler.spilled()) is not None:
            user_id, fence = spilled
            self._scheduler.begin_refill(user_id)
            await self._read_pending(fence, self._cursor.last, user_id)

    async def _raise_mark(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._marked_at < MARK_EVERY_S or self._restart is not None:
            return
        self._marked_at = now
        if self._foreign:
            rows = await self._queue.read_ready(self._cursor.last, sorted(self._foreign), 0)
            self._foreign = {fence for group in rows if group.pending for fence in group.fences}
        held = self._scheduler.lowest_fence()
        candidates = [f for f in (held, min(self._cursor.holes, default=None)) if f is not None]
        candidates.extend(self._doubts | self._foreign)
        await self._queue.raise_mark(min(candidates, default=self._cursor.last + 1))
