"""What keeps the queue healthy besides running jobs: rescue, expiry, settings kept in tables, retention.

A part of the daemon's loop, never a job: a full or paused queue must not stop it.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

from daemon import db as database
from daemon import logs, metrics
from daemon.changes import Changes
from daemon.feeder import Feeder
from daemon.lease import Lease
from daemon.queue import Queue
from daemon.scheduler import Scheduler
from daemon.settings import Settings
from daemon.storage import Storage
from daemon.workers import Workers

DAY_S = 86_400.0

log = logs.get_logger()


class Housekeeper:
    """Earlier runs of this instance are dead: a lock on the state dir and the lease's start prove it."""

    def __init__(
        self,
        *,
        db: database.Database,
        queue: Queue,
        scheduler: Scheduler,
        workers: Workers,
        feeder: Feeder,
        lease: Lease,
        changes: Changes,
        storage: Storage,
        settings: Settings,
    ) -> None:
        self._db = db
        self._queue = queue
        self._scheduler = scheduler
        self._workers = workers
        self._feeder = feeder
        self._lease = lease
        self._changes = changes
        self._storage = storage
        self._settings = settings
        self.live_workers = 1

    async def run(self) -> None:
        """Rescue, expire and read the tables' settings at every heartbeat. Errors: Unavailable."""
        while True:
            if self._lease.gone and not self._workers.running:
                await (
                    self._lease.start()
                )  # declared dead while we were stopped: begin anew, with nothing in hand
            await self.rescue()
            await self._expire()
            await self._read_settings()
            await asyncio.sleep(self._settings.heartbeat_s)

    async def rescue(self) -> None:
        """Take back the jobs of processes whose lease ran out, and of this instance's earlier runs."""
        if self._lease.worker_id is None or self._lease.gone:
            return
        rows = await self._queue.rescue(
            allowed_rescues=self._settings.queue.max_rescues + 1,
            dead_instance=self._settings.instance,
            own_worker=self._lease.worker_id,
        )
        for row in rows:
            if row["state"] != "released":
                metrics.JOBS_RESCUED.inc()
                log.warning(
                    "job.rescued",
                    job_id=row["id"],
                    kind=row["kind"],
                    state=row["state"],
                    from_worker=row["worker"],
                )
        if rows:
            self._changes.mark([row["id"] for row in rows])
            self._feeder.look()

    async def _expire(self) -> None:
        expired = await self._queue.expire()
        for job_id in expired:
            log.warning("job.expired", job_id=job_id)
        if expired:
            self._changes.mark(expired)

    async def _read_settings(self) -> None:
        live = await self._db.fetch("read_live_workers")
        self.live_workers = len(live)
        self._queue.rivals = any(row["id"] != self._lease.worker_id for row in live)
        limits = dict(self._settings.queue.kind_limits)
        paused: set[str] = set()
        for row in await self._db.fetch("read_queues"):
            if row["concurrency"] is not None:
                limits[row["kind"]] = row["concurrency"]
            if row["paused"]:
                paused.add(row["kind"])
        for kind in self._scheduler.kinds:
            self._scheduler.configure_kind(kind, limit=limits.get(kind), paused=kind in paused)
        shares = await self._db.fetch("read_user_shares")
        self._scheduler.configure_users(
            {row["user_id"]: row["weight"] for row in shares},
            frozenset(row["user_id"] for row in shares if row["paused"]),
        )
        self._workers.wake()

    async def run_retention(self) -> None:
        """Erase what is older than the settings allow, in small batches with pauses. For ever."""
        retention = self._settings.retention
        while True:
            await asyncio.sleep(retention.interval_s)
            await self._prune(["completed"], retention.completed_days * DAY_S)
            await self._prune(["failed", "cancelled"], retention.failed_days * DAY_S)
            await self._db.fetch("prune_idempotency_keys", DAY_S, retention.batch_size)
            await self._db.fetch("prune_workers")

    async def _prune(self, states: list[str], age_s: float) -> None:
        after: UUID | None = None
        erased = 0
        while True:
            row = await self._db.fetchrow(
                "prune_jobs", states, age_s, self._settings.retention.batch_size, after
            )
            assert row is not None  # the function returns one row
            erased += row["jobs"]
            for sha256 in row["sha256s"] or ():
                if not await self._db.fetchval("is_file_used", sha256):
                    await self._storage.delete(sha256)
            after = row["last_id"]
            if after is None:
                break
            await asyncio.sleep(0.05)  # leave the disk to the queue between batches
        if erased:
            log.info("job.pruned", count=erased)
