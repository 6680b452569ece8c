"""Which jobs this process has just changed: hints for whoever watches them. Memory only, never waits.

    queue, workers --mark(ids)--> Changes --wait()--> the feed behind the event streams (api/feed.py)

A hint saves waiting for the next poll. It may be lost or come twice: the database is the truth, and changes
of other processes are found by polling alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from uuid import UUID


class Changes:
    """One reader (`wait`), any number of writers (`mark`), all on one event loop."""

    def __init__(self) -> None:
        self._watched: Counter[UUID] = Counter()
        self._changed: set[UUID] = set()
        self._woken = asyncio.Event()
        self.watches_all = False  # somebody follows jobs that are not known yet

    def mark(self, job_ids: Iterable[UUID]) -> None:
        """Say, after the commit, that these jobs have changed. Almost free when nobody watches."""
        if not self._watched and not self.watches_all:
            return
        changed = job_ids if self.watches_all else [job_id for job_id in job_ids if job_id in self._watched]
        if changed:
            self._changed.update(changed)
            self._woken.set()

    def watch(self, job_id: UUID) -> None:
        """Take marks of this job, until `unwatch` has been called as often."""
        self._watched[job_id] += 1

    def unwatch(self, job_id: UUID) -> None:
        self._watched[job_id] -= 1
        if self._watched[job_id] <= 0:
            del self._watched[job_id]

    async def wait(self, timeout_s: float) -> set[UUID]:
        """The jobs marked since the last call, as soon as there are any; empty after `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()
        changed, self._changed = self._changed, set()
        return changed
