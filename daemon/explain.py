"""Why a job is where it is: for a pending one the first reason why it is not running, with the numbers.

The row says when it is due and what its last attempt said; the scheduler of this process says whose turn it
is. Every daemon holds all ready jobs, so that any of them can answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from daemon.db import Database
from daemon.durations import Durations
from daemon.jobs import FINAL, State
from daemon.scheduler import Reason, Scheduler
from daemon.usage import Usage

HELD = frozenset({"kind_paused", "user_paused", "no_worker", "no_handler", "other_workers", "lane_closed"})
"""Reasons whose end nobody can foresee: no estimate is given."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a job stands, and why.

    queue_position: ready jobs before it. starts_in_s, finishes_in_s: estimates in seconds from the run times
    measured lately; None where there are none. last_code, last_message: how the last attempt ended, when it
    did not complete.
    """

    id: UUID
    state: State
    project_id: UUID | None
    parent_id: UUID | None
    reason: Reason
    queue_position: int | None
    starts_in_s: float | None
    finishes_in_s: float | None
    last_code: str | None
    last_message: str | None


class Explainer:
    """free_slots: how many more jobs this process could run now."""

    def __init__(
        self, db: Database, scheduler: Scheduler, durations: Durations, *, free_slots: Callable[[], int]
    ) -> None:
        self._db = db
        self._scheduler = scheduler
        self._durations = durations
        self._usage = Usage(db)
        self._free_slots = free_slots

    async def explain(self, job_id: UUID, user_id: str | None) -> Explanation | None:
        """None for an unknown id and for somebody else's. Errors: Unavailable."""
        row = await self._db.fetchrow("explain_job", job_id, user_id)
        if row is None:
            return None
        state = State(row["state"])
        reason = self._reason(row, state)
        position = None
        if state is State.PENDING and _due_in_s(row) == 0:
            position = self._scheduler.position(row["fence"], row["kind"], row["user_id"])
        starts_in_s = finishes_in_s = None
        if state not in FINAL and reason.code not in HELD:
            starts_in_s, finishes_in_s = await self._estimate(row, state, reason, position)
        return Explanation(
            id=row["id"], state=state, project_id=row["project_id"], parent_id=row["parent_id"], reason=reason,
            queue_position=position, starts_in_s=starts_in_s, finishes_in_s=finishes_in_s,
            last_code=row["error_code"], last_message=row["error_message"],
        )  # fmt: skip

    def _reason(self, row: asyncpg.Record, state: State) -> Reason:
        if state in FINAL:
            return Reason("ended", f"It is {state}.")
        if state is State.WAITING:
            left, total = row["open_children"], row["children"]
            return Reason(
                "waiting_for_items", f"{left} of its {total} items are not finished.", {"open": left, "total": total}
            )  # fmt: skip
        if state is State.PROCESSING:
            running_s = round(row["running_s"] or 0.0, 3)
            numbers = {"running_s": running_s, "instance": row["instance"] or "", **_attempts(row)}
            if row["cancel_requested"]:
                return Reason("stopping", "It is being cancelled.", numbers)
            return Reason("running", f"It has been running for {running_s:.1f} s.", numbers)
        if _due_in_s(row) > 0:
            return _put_off(row)
        return _held(row) or self._queued(row)

    def _queued(self, row: asyncpg.Record) -> Reason:
        kind = row["kind"]
        if kind not in self._scheduler.kinds:
            return Reason(
                "other_workers", f"Jobs of kind {kind} are run by workers outside of this daemon.",
                {"live_workers": row["able"]},
            )  # fmt: skip
        return self._scheduler.explain(
            fence=row["fence"], kind=kind, user_id=row["user_id"], free_slots=self._free_slots()
        )

    async def _estimate(
        self, row: asyncpg.Record, state: State, reason: Reason, position: int | None
    ) -> tuple[float | None, float | None]:
        """(seconds until it starts, seconds until it ends)."""
        run_s = await self._run_s(row["child_kind"] if state is State.WAITING else row["kind"])
        slots = max(1, row["slots"] if row["concurrency"] is None else min(row["slots"], row["concurrency"]))
        if state is State.WAITING:
            return 0.0, None if run_s is None else run_s * max(1.0, row["open_children"] / slots)
        if state is State.PROCESSING:
            return 0.0, None if run_s is None else max(0.0, run_s - (row["running_s"] or 0.0))
        starts_in_s: float | None = _due_in_s(row)
        if starts_in_s == 0 and reason.code != "starting":
            starts_in_s = None if run_s is None or position is None else run_s * (position + 1) / slots
        if starts_in_s is None or run_s is None:
            return starts_in_s, None
        return starts_in_s, starts_in_s + run_s

    async def _run_s(self, kind: str) -> float | None:
        """The mean of this process, or until it has one the median of what others ran lately."""
        mean_s = self._durations.mean_s(kind)
        return (await self._usage.read_run_times(kind)).p50_s if mean_s is None else mean_s


def _due_in_s(row: asyncpg.Record) -> float:
    return max(row["due_in_s"] or 0.0, 0.0)


def _attempts(row: asyncpg.Record) -> dict[str, float | int | str]:
    return {"attempt": row["attempt"], "max_attempts": row["max_attempts"]}


def _put_off(row: asyncpg.Record) -> Reason:
    """Not due: as it was asked for, or until when and by what its last attempt put it off."""
    due_in_s = round(_due_in_s(row), 3)
    numbers: dict[str, float | int | str] = {"due_in_s": due_in_s}
    code = row["error_code"]
    if code is None:
        return Reason("not_due", f"It is due in {due_in_s:.1f} s.", numbers)
    said = row["error_message"] or code
    if code == "budget_spent":
        return Reason(code, said, numbers)
    if row["lane"] is not None:
        numbers |= {"lane": row["lane"], "lane_closed_s": round(row["lane_closed_s"], 3)}
        return Reason("lane_closed", row["lane_paused_why"] or said, numbers)
    return Reason(
        "retry_backoff", f"It is tried again in {due_in_s:.1f} s: {said}", numbers | _attempts(row) | {"error": code}
    )  # fmt: skip


def _held(row: asyncpg.Record) -> Reason | None:
    """What keeps a job that is due from the queue, whoever's turn it is."""
    kind = row["kind"]
    if row["expires_in_s"] is not None and row["expires_in_s"] <= 0:
        return Reason("expired", "Its time is over; it is about to fail.")
    if row["live"] == 0:
        return Reason("no_worker", "No worker process is alive.", {"live_workers": 0})
    if row["able"] == 0:
        return Reason(
            "no_handler", f"No live worker runs jobs of kind {kind}.", {"live_workers": row["live"]}
        )
    if row["kind_paused"]:
        return Reason("kind_paused", _because(f"Kind {kind} is paused", row["kind_paused_why"]))
    if row["user_paused"]:
        return Reason("user_paused", _because("This user's jobs are on hold", row["user_paused_why"]))
    return None


def _because(what: str, why: str | None) -> str:
    return f"{what}: {why}" if why else f"{what}."
