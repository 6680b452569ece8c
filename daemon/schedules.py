"""Jobs enqueued by the clock: cron expressions in the database, fired once however many daemons there are.

    next_at comes --> read_due --> which times were missed --> fire_schedule (jobs and the next next_at, at once)

Every daemon has a timer for the next one; the first to fire moves next_at on, and the others find nothing to
do. Times follow the schedule's zone as Debian's cron does: one that the clock skips in spring is fired right
after the gap, one that comes twice in autumn once.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from daemon import logs
from daemon.db import Database
from daemon.errors import FieldError, InvalidInput

Missed = Literal["skip", "once", "all"]
Overlap = Literal["allow", "skip"]

MAX_MISSED = 100
"""Jobs that a schedule with missed = all makes up for; of a longer time the latest."""
LOOK_BACK = timedelta(days=14)
"""Times missed further back are forgotten."""
ON_TIME = timedelta(seconds=60)
"""A time that is fired later than this was missed."""
POLL_S = 30.0
LOCKED_S = 1.0
"""Until a due schedule that somebody has locked is looked at again, seconds."""
_BATCH = 100

log = logs.get_logger()


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is enqueued when. missed: what becomes of times at which no daemon ran (none, one job for all, one
    each); overlap: whether a job is enqueued while the last one is open.
    """

    name: str
    kind: str
    input: Mapping[str, Any]
    cron: str
    time_zone: str = "UTC"
    user_id: str = ""
    project_id: UUID | None = None
    priority: int = 0
    max_attempts: int = 4
    missed: Missed = "once"
    overlap: Overlap = "allow"
    is_enabled: bool = True
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_job_id: UUID | None = None
    created_at: datetime | None = None


def find_fires(cron: str, time_zone: str, after: datetime, count: int) -> list[datetime]:
    """The next `count` times after a moment, in the zone; fewer when there are no more within 50 years.

    Errors: InvalidInput cron_invalid, time_zone_unknown.
    """
    return list(islice(_iterate(cron, time_zone, after), count))


def find_missed(
    cron: str, time_zone: str, waited_for: datetime, now: datetime, missed: Missed
) -> tuple[list[datetime], datetime | None]:
    """(the times to enqueue a job for, the next time after now). waited_for: a time of the schedule that has come."""
    due: deque[datetime] = deque(maxlen=MAX_MISSED)
    following = None
    for at in _iterate(cron, time_zone, max(waited_for, now - LOOK_BACK) - timedelta(seconds=1)):
        if at > now:
            following = at
            break
        due.append(at)
    match missed:
        case "skip":
            return [at for at in due if now - at <= ON_TIME], following
        case "once":
            return list(due)[-1:], following
        case "all":
            return list(due), following


def _iterate(cron: str, time_zone: str, after: datetime) -> Iterator[datetime]:
    try:
        zone = ZoneInfo(time_zone)
    except (ValueError, OSError, LookupError) as exc:  # no such file, or a name that leaves the directory
        raise _invalid("time_zone", "time_zone_unknown", f"There is no time zone {time_zone}.") from exc
    if len(cron.split()) != 5:
        raise _invalid(
            "cron", "cron_invalid", "A cron expression has five fields: minute hour day month weekday."
        )
    try:
        times = CronSim(cron, after.astimezone(zone))
    except CronSimError as exc:
        raise _invalid("cron", "cron_invalid", f"{exc} in the cron expression.") from exc
    # cronsim 2.8 begins in the first pass of the hour that autumn repeats when it is asked in the second.
    moment = after.astimezone(UTC)
    return (at for at in times if at > moment)


def _invalid(field: str, code: str, message: str) -> InvalidInput:
    return InvalidInput(message, errors=[FieldError(f"/{field}", code, message)])


class Schedules:
    """Keeps and fires them. Errors of every method: Unavailable."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._hinted = asyncio.Event()

    async def list_all(self, name: str | None = None) -> list[Schedule]:
        """By name; at most 1000."""
        rows = await self._db.fetch("list_schedules", name)
        return [Schedule(**{**row, "input": json.loads(row["input"])}) for row in rows]

    async def set(self, schedule: Schedule, now: datetime) -> None:
        """Make or change it. Errors: InvalidInput."""
        fires = find_fires(schedule.cron, schedule.time_zone, now, 1)
        s = schedule
        await self._db.fetch(
            "set_schedule", s.name, s.kind, json.dumps(s.input), s.user_id, s.project_id, s.priority,
            s.max_attempts, s.cron, s.time_zone, s.missed, s.overlap, s.is_enabled, fires[0] if fires else None,
        )  # fmt: skip

    async def remove(self, name: str) -> bool:
        """Whether there was one."""
        return await self._db.fetchval("drop_schedule", name) is not None

    def hint(self) -> None:
        """One may have been set."""
        self._hinted.set()

    async def run(self) -> None:
        """Fire what is due, for ever."""
        while True:
            self._hinted.clear()
            fired = await self.fire_due()
            wait_s = await self._db.fetchval("read_next_fire")
            if wait_s is None:
                wait_s = POLL_S
            elif wait_s <= 0 and not fired:
                wait_s = LOCKED_S
            try:
                async with asyncio.timeout(max(0.0, min(POLL_S, wait_s))):
                    await self._hinted.wait()
            except TimeoutError:
                pass

    async def fire_due(self) -> list[UUID]:
        """The jobs enqueued by this process."""
        jobs: list[UUID] = []
        for row in await self._db.fetch("read_due_schedules", _BATCH):
            times = (row["cron"], row["time_zone"], row["next_at"], row["now"], row["missed"])
            try:
                # Two weeks of minutes take 0.3 s.
                due, following = await asyncio.to_thread(find_missed, *times)
            except InvalidInput as exc:  # written by SQL, or its zone is gone: it waits to be set again
                log.error("schedule.stopped", schedule=row["name"], error=exc.message)
                due, following = [], None
            fired = await self._db.fetch(
                "fire_schedule", row["name"], row["next_at"], row["cron"], row["time_zone"], following, due
            )
            if fired:
                jobs += [job["id"] for job in fired]
                log.info("schedule.fired", schedule=row["name"], count=len(fired), due_at=str(row["next_at"]))
        return jobs
