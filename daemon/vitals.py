"""Signs of a queue that will be slow soon: who holds back vacuum, and how many jobs wait.

A claim walks over the rows that died since the oldest snapshot that somebody still holds: one forgotten
`begin` in a shell slows every daemon after an hour. Postgres says nothing of it, so this says who it is.
Looks only; ending a session is for a person.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from daemon import logs, metrics
from daemon.db import Database

LOOK_S = 30.0
"""Between two looks, in seconds."""

TELL_AGAIN_S = 600.0
"""After which a holder that is still there is told of again."""

log = logs.get_logger()


@dataclass(frozen=True, slots=True)
class Holder:
    """What holds back vacuum. name: the user, the prepared transaction's id, or the slot. age_s: for so long."""

    held_by: str
    name: str
    pid: int | None
    application: str
    state: str
    age_s: float
    query_start: datetime | None


class Vitals:
    """Looks at one database. kinds: those that have a gauge of their own; the rest are `other`."""

    def __init__(self, db: Database, *, kinds: Collection[str], hold_s: float) -> None:
        self._db = db
        self._kinds = kinds
        self._hold_s = hold_s
        self._slots: dict[tuple[str, str], float] = {}  # (slot, horizon) -> seen first
        self._told: dict[tuple[str, str, int | None], float] = {}

    async def run(self) -> None:
        """Look, tell, count. For ever. Errors: Unavailable."""
        while True:
            self._tell(await self.find_holders())
            await self.count_jobs()
            await asyncio.sleep(LOOK_S)

    async def find_holders(self) -> list[Holder]:
        """What holds back vacuum for longer than `hold_s` seconds, the oldest first. Errors: Unavailable."""
        rows = await self._db.fetch("find_vacuum_holders")
        now = time.monotonic()
        slots = {(row["name"], row["horizon"]) for row in rows if row["age_s"] is None}
        self._slots = {key: self._slots.get(key, now) for key in slots}
        holders = [
            Holder(
                held_by=row["held_by"], name=row["name"] or "", pid=row["pid"], application=row["application"] or "",
                state=row["state"] or "", query_start=row["query_start"],
                age_s=now - self._slots[row["name"], row["horizon"]] if row["age_s"] is None else row["age_s"],
            )
            for row in rows
        ]  # fmt: skip
        return [holder for holder in holders if holder.age_s >= self._hold_s]

    async def count_jobs(self) -> None:
        """Set the gauges of pending and running jobs. Errors: Unavailable."""
        counts = {(kind, state): 0 for kind in (*self._kinds, "other") for state in ("pending", "processing")}
        for row in await self._db.fetch("read_queue_loads"):
            kind = row["kind"] if row["kind"] in self._kinds else "other"
            counts[kind, row["state"]] += row["jobs"]
        for (kind, state), jobs in counts.items():
            metrics.QUEUE_DEPTH.labels(kind, state).set(jobs)

    def _tell(self, holders: list[Holder]) -> None:
        metrics.VACUUM_HELD.set(max((holder.age_s for holder in holders), default=0.0))
        now = time.monotonic()
        keys = {(holder.held_by, holder.name, holder.pid): holder for holder in holders}
        self._told = {key: at for key, at in self._told.items() if key in keys}
        for key, holder in keys.items():
            if now - self._told.get(key, -TELL_AGAIN_S) < TELL_AGAIN_S:
                continue
            self._told[key] = now
            log.warning(
                "database.vacuum_held", held_by=holder.held_by, name=holder.name, pid=holder.pid,
                application=holder.application, state=holder.state, age_s=round(holder.age_s, 1),
                query_start=holder.query_start and holder.query_start.isoformat(timespec="seconds"),
            )  # fmt: skip
