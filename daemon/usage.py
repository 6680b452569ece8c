"""What was used: jobs, money and run times in a span of days, grouped; and what a job will take."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Literal

from daemon.db import Database
from daemon.jobs import first_id

Group = Literal["day", "kind", "provider", "user"]
MAX_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One group; what was not grouped by is None. p50_s, p95_s: run time of completed jobs, seconds."""

    day: date | None
    kind: str | None
    provider: str | None
    user_id: str | None
    jobs: int
    completed: int
    failed: int
    cancelled: int
    calls: int
    unknown_calls: int
    estimated_usd: Decimal
    actual_usd: Decimal
    p50_s: float | None
    p95_s: float | None

    @property
    def success_rate(self) -> float | None:
        """Completed among those that ended by themselves, 0 … 1; None when none has."""
        ended = self.completed + self.failed
        return round(self.completed / ended, 4) if ended else None


@dataclass(frozen=True, slots=True)
class RunTimes:
    """Recent run times of a kind, seconds, None before the first; ahead: jobs pending or running now."""

    p50_s: float | None
    p95_s: float | None
    ahead: int


class Usage:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(
        self, since: datetime, until: datetime, *, group_by: AbstractSet[Group], user_id: str | None
    ) -> list[UsageRow]:
        """Jobs created in [since, until), at most 10 000 groups in order. Errors: Unavailable."""
        flags = [group in group_by for group in ("day", "kind", "provider", "user")]
        rows = await self._database.fetch(
            "read_usage", first_id(since.timestamp()), first_id(until.timestamp()), user_id, *flags, MAX_ROWS
        )
        return [UsageRow(**row) for row in rows]

    async def read_run_times(self, kind: str) -> RunTimes:
        """Errors: Unavailable."""
        row = await self._database.fetchrow("read_run_times", kind)
        return RunTimes(None, None, 0) if row is None else RunTimes(**row)
