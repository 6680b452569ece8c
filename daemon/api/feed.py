"""Live views of jobs for streams and long polls: one reader for all who watch.

    Changes (hints of this process) --+
    versions by id, every 250 ms -----+--> ids that moved --one query--> Job --> every Watch on it

A Watch keeps the newest view of each of its jobs and nothing else: a reader that is slow finds one newer
view, not a queue of old ones, so that memory is bounded by what is watched, however fast it changes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

from daemon import logs
from daemon.changes import Changes
from daemon.errors import Unavailable
from daemon.views import Job, JobFilter, Views

POLL_S = 0.25
POLL_REST = 20
"""Polling takes at most this part (1/20) of the time, however much is watched: local changes need no poll."""
GATHER_S = 0.02  # what changes within this time is read by one query
DISCOVER_S = 1.0
READ_SIZE = 200
MAX_FOLLOWED = 500
"""Jobs that one watch follows; the oldest are let go, and only their end is looked for."""
MAX_ENDED = 1000  # as many as a look for ends walks through, so that none of them is told twice

_SLACK = timedelta(seconds=5)  # created_at is the start of a transaction that may commit later

log = logs.get_logger()


class Watch:
    """One reader's jobs. `followed` maps each to the version the reader has been given."""

    def __init__(self, subject: JobFilter | None = None) -> None:
        self.subject = subject
        self.followed: dict[UUID, int] = {}
        self.closed = False
        self.is_partial = False  # jobs that it does not follow may be open
        self._opened_at = datetime.now(UTC)
        self._ended: dict[UUID, int] = {}
        self._fresh: dict[UUID, Job | None] = {}
        self._woken = asyncio.Event()

    async def next(self, timeout_s: float) -> dict[UUID, Job | None]:
        """The newest view of each job that moved, None for one that is gone; empty after `timeout_s` seconds."""
        if not self._fresh and not self.closed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._woken.wait()
            except TimeoutError:
                return {}
        self._woken.clear()
        fresh, self._fresh = self._fresh, {}
        return fresh

    def put(self, job_id: UUID, job: Job | None) -> None:
        """Hand over a view, unless the reader has it already."""
        if job is not None:
            if self.followed.get(job_id, 0) >= job.version:
                return
            self.followed[job_id] = job.version
        self._fresh[job_id] = job
        self._woken.set()

    def note_end(self, job: Job) -> None:
        """The reader has seen this job's end: it comes again only with a later version (a retry)."""
        self._ended[job.id] = job.version
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def knows(self, job_id: UUID) -> bool:
        """Whether the reader follows the job or has seen its end."""
        return job_id in self.followed or job_id in self._ended

    def wants(self, job: Job) -> bool:
        """Whether a job that is not followed is new to the reader and its subject."""
        if (
            job.id in self.followed
            or self._ended.get(job.id, 0) >= job.version
            or not _matches(self.subject, job)
        ):
            return False
        # What had ended before the stream was opened is no news, unless it was retried since.
        return job.finished_at is None or job.finished_at >= self._opened_at or job.id in self._ended

    def close(self) -> None:
        """Tell the reader that the process stops."""
        self.closed = True
        self._woken.set()


class Feed:
    """The shared reader. `run` must be running."""

    def __init__(self, views: Views, changes: Changes) -> None:
        self._views = views
        self._changes = changes
        self._watches: dict[UUID, set[Watch]] = {}
        self._wide: set[Watch] = set()
        self._parents: dict[UUID, UUID] = {}  # item -> watched parent
        self._items: dict[UUID, tuple[UUID, ...]] = {}
        self._discover_at = 0.0
        self._since = datetime.now(UTC)

    @contextmanager
    def watch(self, job_ids: Iterable[UUID] = (), *, subject: JobFilter | None = None) -> Iterator[Watch]:
        """Watch jobs, and with a subject also those that will come and match it, for the length of the block."""
        watch = Watch(subject)
        for job_id in job_ids:
            self.follow(watch, job_id, 0)
        if subject is not None:
            self._wide.add(watch)
            self._changes.watches_all = True
        try:
            yield watch
        finally:
            self._wide.discard(watch)
            self._changes.watches_all = bool(self._wide)
            for job_id in list(watch.followed):
                self.drop(watch, job_id)

    def follow(self, watch: Watch, job_id: UUID, version: int) -> None:
        """Add a job to a watch whose reader has its `version` already."""
        while len(watch.followed) >= MAX_FOLLOWED:
            self.drop(watch, next(iter(watch.followed)))
            watch.is_partial = True
        watch.followed[job_id] = version
        watches = self._watches.get(job_id)
        if watches is None:
            self._watches[job_id] = watches = set()
            self._changes.watch(job_id)
        watches.add(watch)

    def drop(self, watch: Watch, job_id: UUID) -> None:
        """Take a job from a watch."""
        watch.followed.pop(job_id, None)
        watches = self._watches.get(job_id)
        if watches is None:
            return
        watches.discard(watch)
        if not watches:
            del self._watches[job_id]
            self._changes.unwatch(job_id)
            self._note_items(job_id, ())

    def close(self) -> None:
        """End every watch: the process stops."""
        for watch in {watch for watches in self._watches.values() for watch in watches} | self._wide:
            watch.close()

    async def run(self) -> None:
        """Read what moves, for ever. A database that is away is waited for: the streams stay open."""
        poll_at = 0.0
        while True:
            changed = await self._changes.wait(POLL_S)
            now = time.monotonic()
            moved = {self._parents.get(job_id, job_id) for job_id in changed}
            try:
                if self._wide and now >= self._discover_at:
                    self._discover_at = now + DISCOVER_S
                    await self._discover()
                if now >= poll_at:
                    moved |= await self._find_moved()
                    took_s = time.monotonic() - now
                    poll_at = now + max(POLL_S, took_s * POLL_REST)
                if moved:
                    await self._read(moved)
            except Unavailable as exc:
                log.debug("http.feed_waits", error=exc.code)
                await asyncio.sleep(POLL_S)
            except Exception as exc:
                # One row that cannot be shown must not end everybody's streams. The next poll looks again.
                log.error(
                    "http.failed", method="GET", path="events", route="feed", error=str(exc), exc_info=exc
                )
                await asyncio.sleep(POLL_S)
            if changed:
                await asyncio.sleep(GATHER_S)

    async def _find_moved(self) -> set[UUID]:
        """Watched jobs whose version is not the one their readers have; those that are gone too."""
        ids = list(self._watches)
        moved: set[UUID] = set()
        for start in range(0, len(ids), 5000):
            part = ids[start : start + 5000]
            versions = await self._views.read_versions(part)
            for job_id in part:
                version = versions.get(job_id)
                readers = self._watches.get(job_id, ())
                if version is None or any(watch.followed.get(job_id, 0) < version for watch in readers):
                    moved.add(job_id)
        return moved

    async def _read(self, moved: set[UUID]) -> None:
        ids = list(moved)
        for start in range(0, len(ids), READ_SIZE):
            part = ids[start : start + READ_SIZE]
            found = {job.id: job for job in await self._views.read_jobs(part, None)}
            for job_id in part:
                self._hand_out(job_id, found.get(job_id))

    def _hand_out(self, job_id: UUID, job: Job | None) -> None:
        if job is not None:
            for watch in self._wide:
                if watch.wants(job):
                    self.follow(watch, job_id, 0)
        readers = self._watches.get(job_id)
        if not readers:
            return
        self._note_items(job_id, job.item_ids if job else ())
        for watch in readers:
            watch.put(job_id, job)

    def _note_items(self, parent: UUID, items: tuple[UUID, ...]) -> None:
        """Let a mark of an item wake the readers of its parent."""
        before = self._items.pop(parent, ())
        if items:
            self._items[parent] = items
        if before == items:
            return
        for item in before:
            self._changes.unwatch(item)
            self._parents.pop(item, None)
        for item in items:
            self._changes.watch(item)
            self._parents[item] = parent

    async def _discover(self) -> None:
        """Find new jobs, and ends of jobs not followed, of other processes: one query for each distinct subject."""
        looked_at = datetime.now(UTC)
        for subject in {watch.subject for watch in self._wide if watch.subject is not None}:
            watches = [watch for watch in self._wide if watch.subject == subject]
            ids = await self._views.list_new(
                subject,
                since=self._since - _SLACK,
                ends_of_old=any(watch.is_partial for watch in watches),
                limit=MAX_FOLLOWED,
            )
            unknown = {job_id for job_id in ids if any(not watch.knows(job_id) for watch in watches)}
            if unknown:
                await self._read(unknown)
        self._since = looked_at


def _matches(subject: JobFilter | None, job: Job) -> bool:
    return (
        subject is not None
        and job.fields["parent_id"] == "null"
        and subject.user_id in (None, job.user_id)
        and subject.kind in (None, job.kind)
        and subject.project_id in (None, job.project_id)
        and (subject.tag is None or f'"{subject.tag}"' in job.fields["tags"])
    )
