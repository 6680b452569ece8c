"""Brings what operators set in tables to the scheduler: pauses, limits, weights; and how many processes live.

PATCH, SQL --NOTIFY listingd_steer--> apply <-- every heartbeat, so that a lost hint costs seconds
|
+--> scheduler, workers, queue.rivals
"""

from __future__ import annotations

import asyncio

from daemon.db import Database
from daemon.lanes import Lanes
from daemon.lease import Lease
from daemon.queue import Queue
from daemon.scheduler import Scheduler
from daemon.settings import Settings
from daemon.workers import Workers


class Steering:
    """`run` for ever; `apply` after a change made by this process."""

    def __init__(
        self,
        *,
        db: Database,
        queue: Queue,
        scheduler: Scheduler,
        workers: Workers,
        lease: Lease,
        lanes: Lanes,
        settings: Settings,
    ) -> None:
        self._db = db
        self._queue = queue
        self._scheduler = scheduler
        self._workers = workers
        self._lease = lease
        self._lanes = lanes
        self._heartbeat_s = settings.heartbeat_s
        self._limits = dict(settings.queue.kind_limits)
        # A slow receiver's deliveries must not take all slots.
        self._limits["webhook"] = min(settings.webhooks.concurrency, self._limits.get("webhook", 1 << 30))
        self._hinted = asyncio.Event()

    def hint(self) -> None:
        """Something may have been set."""
        self._hinted.set()

    async def run(self) -> None:
        """At every hint and every heartbeat. Errors: Unavailable; run it again."""
        while True:
            self._hinted.clear()
            await self.apply()
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._hinted.wait()
            except TimeoutError:
                pass

    async def apply(self) -> None:
        """Read the tables and let them count from here on. Errors: Unavailable."""
        live = await self._db.fetch("read_live_workers")
        self._queue.rivals = any(row["id"] != self._lease.worker_id for row in live)
        queues = {row["kind"]: row for row in await self._db.fetch("read_queues")}
        for kind in self._scheduler.kinds:
            row = queues.get(kind)
            self._scheduler.configure_kind(
                kind,
                limit=self._limits.get(kind),
                shared_limit=None if row is None else row["concurrency"],
                paused=row is not None and row["paused"],
            )
        shares = await self._db.fetch("read_user_shares")
        self._scheduler.configure_users(
            {row["user_id"]: row["weight"] for row in shares},
            frozenset(row["user_id"] for row in shares if row["paused"]),
        )
        await self._workers.hold_places()
        self._lanes.look_again()
        self._workers.hint_room()
