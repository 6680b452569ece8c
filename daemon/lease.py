"""The process's lease: one row in listingd.workers, extended from a thread and a connection of its own.

While the lease stands, the jobs that this process claimed are its own. A heartbeat that shared the event loop
would stop with it; so the thread runs a loop of its own, and `is_safe` compares monotonic times: a process
that could not confirm its lease for 60 % of it stops its jobs itself, well before another takes them.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg

from daemon import db as database
from daemon import logs
from daemon.errors import Misconfigured, Unavailable, first_cause

SAFE_SHARE = 0.6
"""Of the lease: without a confirmation for so long the process must stop its jobs."""

log = logs.get_logger()


class Lease:
    """This run of the process in listingd.workers.

    load: () -> (jobs running, draining), asked at each heartbeat. Threads: `start` and `stop` belong to the
    event loop; the heartbeat thread only touches `confirmed_at`, `gone` and what says how it goes.
    """

    def __init__(
        self,
        db: database.Database,
        *,
        instance: str,
        state_dir: Path,
        store: str,
        lease_s: float,
        heartbeat_s: float,
        kinds: Sequence[str],
        concurrency: int,
        load: Callable[[], tuple[int, bool]],
    ) -> None:
        self._db = db
        self.instance = instance
        host = os.uname().nodename
        self.info = {
            "host": host,
            "pid": os.getpid(),
            "state_dir": str(state_dir),
            "store": store,  # two processes with one name share their pictures (storage.name_store)
        }
        """What other processes and the API see of this one."""
        self.lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._kinds = list(kinds)
        self._concurrency = concurrency
        self._load = load
        self.worker_id: int | None = None
        self.confirmed_at = float("-inf")
        self.low_fence = 0  # rescue looks for our jobs from here on
        self.gone = False  # another process has declared this one dead
        self._failures = 0  # since the last confirmation
        self._stop = threading.Event()
        self._wake: Callable[[], object] = lambda: None  # ends the heartbeat's pause, from any thread
        self._thread: threading.Thread | None = None

    def is_safe(self) -> bool:
        """Whether the claimed jobs are surely still ours."""
        return not self.gone and self.silent_s() < SAFE_SHARE * self.lease_s

    def silent_s(self) -> float:
        """Seconds since the lease was last confirmed."""
        return time.monotonic() - self.confirmed_at

    def is_answered(self) -> bool:
        """Whether the database answers, as far as the heartbeat knows: it notices a closed connection at once.

        One failure is a session that ended; the second in a row is a database that cannot be reached.
        """
        return self._failures < 2 and self.silent_s() < 2 * self._heartbeat_s

    async def start(self) -> int:
        """Register this run and begin to beat; the worker id. The lock on the state dir must be held.

        Errors: Misconfigured when another live process uses the same instance name; Unavailable.
        """
        async with self._db.transaction() as connection:
            # Of two that start at the same moment the second looks when the first is there.
            await connection.fetch(self._db.sql["lock_instance"], self.instance)
            self._refuse_rivals(await connection.fetch(self._db.sql["find_rivals"], self.instance))
            began = time.monotonic()
            row = await connection.fetchrow(
                self._db.sql["start_worker"], self.instance, self.lease_s, self._kinds, self._concurrency,
                json.dumps(self.info),
            )  # fmt: skip
        assert row is not None  # insert … returning
        worker_id: int = row["id"]
        self.worker_id = worker_id
        self.low_fence = row["low_fence"]
        self.confirmed_at = began
        self.gone = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat_for_ever, name="heartbeat", daemon=True)
            self._thread.start()
        return worker_id

    def _refuse_rivals(self, rivals: Sequence[Mapping[str, Any]]) -> None:
        for rival in rivals:
            info = json.loads(rival["info_text"])
            if all(info.get(key) == self.info[key] for key in ("host", "state_dir")):
                continue  # our own earlier run: dead, since we hold the lock on its state dir
            raise Misconfigured(
                f"Another live process (pid {info.get('pid')} on {info.get('host')}) uses the instance name"
                f" {self.instance}.",
                code="instance_in_use",
                hint=f"Give each daemon its own LISTINGD_INSTANCE, or wait {rival['left_s']:.0f} s if that"
                " process has just died.",
            )

    async def stop(self) -> None:
        """End the heartbeat and give the lease back."""
        self._stop.set()
        self._wake()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 2.0)
        if self.worker_id is not None and not self.gone:
            await self._db.fetch("stop_worker", self.worker_id)

    def _beat_for_ever(self) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(self._beat())
            except (Unavailable, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
                self._failures += 1
                if self._failures <= 2:  # an outage is told once
                    log.warning(
                        "lease.confirmed_late" if self._failures == 1 else "database.lost",
                        error=first_cause(exc),
                        **({"silent_s": round(self.silent_s(), 2)} if self._failures == 1 else {}),
                    )
                self._stop.wait(min(1.0, self._heartbeat_s / 4, 0.02 * 2.0 ** min(self._failures, 9)))

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        wake = asyncio.Event()
        connection = await self._db.dedicated_connection("heartbeat")
        connection.add_termination_listener(lambda _: wake.set())
        self._wake = lambda: loop.call_soon_threadsafe(wake.set)
        try:
            while not self._stop.is_set():
                if connection.is_closed():
                    raise Unavailable("The heartbeat's connection was closed.")
                await self._confirm(connection)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._heartbeat_s):
                        await wake.wait()
        finally:
            self._wake = lambda: None
            connection.terminate()

    async def _confirm(self, connection: asyncpg.Connection) -> None:
        """One heartbeat. Errors: Unavailable."""
        began = time.monotonic()
        worker_id = self.worker_id
        running, draining = self._load()
        with database.translate_errors():
            async with asyncio.timeout(self._heartbeat_s):
                held = await connection.fetchval(
                    self._db.sql["extend_lease"], worker_id, self.lease_s, running, draining
                )
        if held:
            if self._failures > 1:
                log.info("database.restored", down_s=round(self.silent_s(), 2))
            self.confirmed_at = began
            self._failures = 0
        elif worker_id == self.worker_id:  # else it was registered anew meanwhile
            self.gone = True
