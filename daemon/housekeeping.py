"""What keeps the queue healthy besides running jobs: rescue, expiry, retention.

A part of the daemon's loop, never a job: a full or paused queue must not stop it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from uuid import UUID

from daemon import db as database
from daemon import logs, metrics
from daemon.changes import Changes
from daemon.feeder import Feeder
from daemon.lanes import Lanes
from daemon.lease import Lease
from daemon.ledger import sweep_orphans
from daemon.queue import Queue
from daemon.settings import Settings
from daemon.storage import Storage
from daemon.workers import Workers

DAY_S = 86_400.0
ABANDONED_S = 900.0
"""A call that was begun so long ago, and whose attempt is over, is not on its way to the books any more."""
FILE_AGE_S = 3600.0
"""A file without an owner that was stored so lately may be about to get one."""

log = logs.get_logger()


class Housekeeper:
    """Earlier runs of this instance are dead: a lock on the state dir and the lease's start prove it."""

    def __init__(
        self,
        *,
        db: database.Database,
        queue: Queue,
        workers: Workers,
        feeder: Feeder,
        lease: Lease,
        changes: Changes,
        lanes: Lanes,
        storage: Storage,
        settings: Settings,
    ) -> None:
        self._db = db
        self._queue = queue
        self._workers = workers
        self._feeder = feeder
        self._lease = lease
        self._changes = changes
        self._lanes = lanes
        self._storage = storage
        self._settings = settings

    async def run(self) -> None:
        """Rescue and expire at every heartbeat. Errors: Unavailable."""
        while True:
            if self._lease.gone and not self._workers.running:
                await (
                    self._lease.start()
                )  # declared dead while we were stopped: begin anew, with nothing in hand
            await self.rescue()
            await self._expire()
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
            self._workers.hint_room()  # the dead hold no places in limited kinds any more

    async def _expire(self) -> None:
        expired = await self._queue.expire()
        for job_id in expired:
            log.warning("job.expired", job_id=job_id)
        if expired:
            self._changes.mark(expired)

    async def run_retention(self) -> None:
        """Erase what is older than the settings allow, in small batches with pauses. For ever."""
        retention = self._settings.retention
        loop = asyncio.get_running_loop()
        # Some hour of the day: it lists the whole store, and daemons that start together need not do it together.
        sweep_at = loop.time() + random.uniform(FILE_AGE_S, DAY_S)
        while True:
            await asyncio.sleep(retention.interval_s)
            await self.retain()
            if loop.time() >= sweep_at:
                sweep_at += DAY_S
                await self.sweep()

    async def sweep(self) -> None:
        """Delete the files of a day ago that nothing names. Errors: Unavailable."""
        files, size_bytes = await sweep_orphans(self._db, self._storage)
        if files:
            log.info("storage.swept", count=files, bytes=size_bytes)

    async def retain(self) -> None:
        """One round. Errors: Unavailable."""
        retention = self._settings.retention
        size = retention.batch_size
        await self.close_abandoned_steps()
        while await self._db.fetch("prune_idempotency_keys", DAY_S, size):  # noqa: ASYNC110 -- the database's state: there is nothing to wait on
            await asyncio.sleep(0.05)  # leave the disk to the queue between batches
        await self._db.fetch("prune_workers")
        await self._lanes.prune()
        await self._prune_jobs(["completed"], retention.completed_days * DAY_S)
        await self._prune_jobs(["failed", "cancelled"], retention.failed_days * DAY_S)
        # Last: what open jobs name is read from all of their inputs, which takes too long while very many wait.
        if retention.assets_days is not None:
            await self._prune_files("prune_assets", retention.assets_days * DAY_S)
        await self._prune_files("prune_uploads", retention.uploads_days * DAY_S)

    async def close_abandoned_steps(self, age_s: float = ABANDONED_S) -> None:
        """Book the calls that were cut off and whose jobs never ran again. Errors: Unavailable."""
        size = self._settings.retention.batch_size
        for step in await self._db.fetch("close_abandoned_steps", age_s, size):
            log.warning(
                "provider.unknown", job_id=step["job_id"], provider=step["provider"], step=step["name"],
                cost_usd=step["cost_usd"],
            )  # fmt: skip

    async def _prune_jobs(self, states: list[str], age_s: float) -> None:
        after: UUID | None = None
        erased = 0
        while True:
            row = await self._db.fetchrow(
                "prune_jobs", states, age_s, self._settings.retention.batch_size, after
            )
            assert row is not None  # the function returns one row
            erased += row["jobs"]
            await self._delete_files(row["sha256s"] or ())
            after = row["last_id"]
            if after is None:
                break
            await asyncio.sleep(0.05)  # leave the disk to the queue between batches
        if erased:
            log.info("job.pruned", count=erased)

    async def _prune_files(self, statement: str, age_s: float) -> None:
        """Rows of assets or uploads that are too old, with their files."""
        while rows := await self._db.fetch(statement, age_s, self._settings.retention.batch_size):
            await self._delete_files(row["sha256"] for row in rows)
            await asyncio.sleep(0.05)

    async def _delete_files(self, sha256s: Iterable[str]) -> None:
        """Those that nothing names any more; what is missed here the sweep finds."""
        candidates = sorted(set(sha256s))
        if candidates:
            owned = {row["sha256"] for row in await self._db.fetch("find_owned", candidates)}
            for sha256 in candidates:
                if sha256 not in owned:
                    await self._storage.delete_older_than(sha256, FILE_AGE_S)
