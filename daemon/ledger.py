"""The books: costly calls and their results (steps), what they cost, and budgets that never overshoot.

    begin --open, last--> (the call) --> settle    done: the checkpoint, never called again
      |                             +--> fail      failed: no result;  unknown: may have been billed
      +--done, busy, budget, exhausted, lost       nothing to call

This module is the wording of those moves, one method per statement (sql/queries/ledger.sql); the order in
which a call goes through them is daemon/steps.py. All money is Decimal US dollars and numeric in Postgres.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from daemon.db import Database
from daemon.errors import BudgetSpent
from daemon.jobs import ClaimedJob
from daemon.settings import Budgets
from daemon.storage import Storage, StoredFile

SMALLEST_USD = Decimal("0.000001")
"""The smallest sum that the books can hold."""
MAX_REQUEST_ID = 200
_SWEEP_BATCH = 500


class Begun(StrEnum):
    """What `begin` found."""

    OPEN = "open"  # the intent is written, the estimate reserved: call now
    LAST = "last"  # the same, after a call of this job that was lost: if this one is too, there is no other
    DONE = "done"  # an earlier call's result is there
    BUSY = "busy"  # another live attempt is calling, or its result is being booked
    BUDGET = "budget"  # no room in a budget
    EXHAUSTED = "exhausted"  # two calls of this job were lost already: paid for, perhaps, without a result
    LOST = "lost"  # the attempt is no longer ours


@dataclass(frozen=True, slots=True)
class FullBudget:
    """A budget without room. scope: total, user, project; period: day, month (UTC); ends_in_s: until it is over;
    is_news: nobody was told before that this limit is reached.
    """

    scope: str
    subject: str
    period: str
    limit_usd: Decimal
    used_usd: Decimal
    ends_in_s: float
    is_news: bool = False

    @property
    def message(self) -> str:
        whose = {"total": "The service's", "user": "The user's", "project": "The project's"}[self.scope]
        return f"{whose} budget of {self.limit_usd:.2f} USD a {self.period} is used up ({self.used_usd:.2f} USD)."


@dataclass(frozen=True, slots=True)
class Beginning:
    """The answer of `begin`; full is set when outcome is BUDGET."""

    outcome: Begun
    step_id: UUID | None = None
    full: FullBudget | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step leaves behind. Its bytes are in storage under content_sha256."""

    cost_usd: Decimal = Decimal(0)
    units: Mapping[str, Any] = field(default_factory=dict)
    content_sha256: str | None = None
    content_type: str | None = None
    document: Mapping[str, Any] | None = None
    model: str = ""
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget row or counter of the present period. is_set: limit_usd was set for this subject (None = no
    limit); otherwise limit_usd is the settings' default.
    """

    scope: str
    subject: str
    period: str
    is_set: bool
    limit_usd: Decimal | None
    reserved_usd: Decimal
    spent_usd: Decimal


class Ledger:
    """Every method may raise Unavailable; then nothing is known of the write, and writing again is safe."""

    def __init__(self, db: Database, budgets: Budgets) -> None:
        self._db = db
        self._defaults: list[Decimal | None] = [
            budgets.total_usd_per_day,
            budgets.total_usd_per_month,
            budgets.user_usd_per_day,
            budgets.user_usd_per_month,
            budgets.project_usd_per_day,
            budgets.project_usd_per_month,
        ]

    @property
    def has_defaults(self) -> bool:
        """Whether the settings limit anybody's spending."""
        return any(limit is not None for limit in self._defaults)

    # -- steps ---------------------------------------------------------------------------------------

    async def begin(
        self,
        job: ClaimedJob,
        worker: int,
        step_id: UUID,
        *,
        identity: str,
        name: str,
        provider: str,
        estimate_usd: Decimal,
    ) -> Beginning:
        """Write the intent and reserve the estimate, fenced; or say why there is nothing to call.

        An open step whose owner is dead is closed on the way (unknown when it may have cost money).
        """
        row = await self._db.fetchrow(
            "begin_step", step_id, job.fence, worker, identity, name, provider, estimate_usd, self._defaults
        )
        assert row is not None  # the function always returns a row
        full = None
        if row["blocked"]:
            blocked = json.loads(row["blocked"], parse_float=Decimal, parse_int=Decimal)
            full = FullBudget(**blocked | {"ends_in_s": float(blocked["ends_in_s"])})
        return Beginning(Begun(row["outcome"]), row["step"], full)

    async def find(self, user_id: str, identity: str) -> tuple[UUID, StepResult] | None:
        """The id and result of the user's done step for an identity."""
        row = await self._db.fetchrow("find_step", user_id, identity)
        if row is None:
            return None
        return row["id"], StepResult(
            cost_usd=row["actual_usd"],
            units=json.loads(row["units"]),
            content_sha256=row["content_sha256"],
            content_type=row["content_type"],
            document=json.loads(row["document"]) if row["document"] is not None else None,
            model=row["model"],
            request_id=row["request_id"],
        )

    async def settle(self, job: ClaimedJob, worker: int, step_id: UUID, result: StepResult) -> bool:
        """Book the cost and write the checkpoint; True while the attempt is still ours. Idempotent.

        Cost and result are kept in any case: the money was spent, and the next attempt finds the result.
        """
        return bool(
            await self._db.fetchval(
                "settle_step", step_id, job.fence, worker, result.cost_usd, encode_json(result.units),
                result.content_sha256, result.content_type,
                None if result.document is None else encode_json(result.document),
                result.model,
                # As the server sent it; a header may hold any byte, and a paid result must not be lost for that.
                result.request_id and result.request_id.encode("ascii", "replace").decode()[:MAX_REQUEST_ID],
            )
        )  # fmt: skip

    async def fail(
        self, step_id: UUID, *, is_unknown: bool, code: str, cost_usd: Decimal = Decimal(0)
    ) -> None:
        """End a step without result. is_unknown: it may have been billed; cost_usd: it is known to have cost
        so much, which may become known after it was ended as unknown. Idempotent.
        """
        state = "unknown" if is_unknown else "failed"
        await self._db.fetchval("fail_step", step_id, state, code, cost_usd)

    async def drop_result(self, step_id: UUID) -> None:
        """Let a done step be called again, because its file is gone; its cost stays."""
        await self._db.fetch("drop_result", step_id)

    # -- budgets -------------------------------------------------------------------------------------

    async def find_full_budget(
        self, user_id: str, project_id: UUID | None, more_usd: Decimal
    ) -> FullBudget | None:
        """The budget that has no room for so much more now; of several the one that lasts longest."""
        row = await self._db.fetchrow("find_full_budget", user_id, project_id, more_usd, self._defaults)
        return None if row is None else FullBudget(**row)

    async def check_budget(
        self, user_id: str, project_id: UUID | None, more_usd: Decimal = SMALLEST_USD
    ) -> None:
        """Errors: BudgetSpent when a budget has no room for so much more; without a figure: when it is spent.

        A look, not a reservation: what races past it is stopped by `begin`. One statement; not needed for a job
        whose estimate (daemon/estimates.py) is zero.
        """
        full = await self.find_full_budget(user_id, project_id, more_usd)
        if full is not None:
            raise BudgetSpent(
                full.message,
                hint="Raise the budget or wait until the period is over.",
                data={"retry_after_s": math.ceil(full.ends_in_s), "scope": full.scope, "period": full.period},
            )

    async def set_budget(self, scope: str, subject: str, period: str, limit_usd: Decimal | None) -> None:
        """Set one budget; None means no limit, whatever the settings' default."""
        await self._db.fetch("set_budget", scope, subject, period, limit_usd)

    async def drop_budget(self, scope: str, subject: str, period: str) -> None:
        """Back to the settings' default."""
        await self._db.fetch("drop_budget", scope, subject, period)

    async def read_budgets(
        self, scope: str | None = None, subject: str | None = None, limit: int = 1000
    ) -> list[Budget]:
        """The budgets that are set, and those with spending in the present day or month."""
        rows = await self._db.fetch("read_budgets", scope, subject, limit)
        return [
            Budget(**{**row, "limit_usd": row["limit_usd"] if row["is_set"] else self._find_default(row)})
            for row in rows
        ]

    def _find_default(self, row: Mapping[str, Any]) -> Decimal | None:
        place: int = ("total", "user", "project").index(row["scope"]) * 2 + (row["period"] == "month")
        return self._defaults[place]


async def sweep_orphans(db: Database, storage: Storage, *, age_s: float = 86_400.0) -> tuple[int, int]:
    """Delete files older than `age_s` seconds that no upload, asset or step names; (files, bytes) deleted.

    The age leaves room for what was stored a moment ago and is not yet named. A file that is stored again
    while the sweep looks at it becomes young and stays (storage.delete_older_than).
    """
    files = size_bytes = 0
    batch: list[StoredFile] = []

    async def sweep() -> tuple[int, int]:
        owned = {row["sha256"] for row in await db.fetch("find_owned", [file.sha256 for file in batch])}
        gone = [
            file.size_bytes
            for file in batch
            if file.sha256 not in owned and await storage.delete_older_than(file.sha256, age_s)
        ]
        batch.clear()
        return len(gone), sum(gone)

    async for file in storage.list_older_than(age_s):
        batch.append(file)
        if len(batch) == _SWEEP_BATCH:
            swept = await sweep()
            files, size_bytes = files + swept[0], size_bytes + swept[1]
    swept = await sweep()
    return files + swept[0], size_bytes + swept[1]


def encode_json(value: Any) -> str:
    """JSON text that jsonb takes: a model's answer may hold NUL, lone surrogates or NaN, and a result that
    was paid for must not be lost for that. They become U+FFFD and null.
    """
    try:
        text = json.dumps(value, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_clean(value), default=str)
    return json.dumps(_clean(value), default=str) if "\\u0000" in text or "\\ud" in text else text


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {_clean(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value
