"""Jobs as they run, for people: live bars on a terminal, a line per change of state anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_MARKS = {
    "completed": ("✓", "green"),
    "failed": ("✗", "red"),
    "cancelled": ("–", "yellow"),
    "processing": ("›", "cyan"),
}
_FINAL = ("completed", "failed", "cancelled")


class JobBars:
    """One row a job, or one an item for a pack. `with JobBars(console) as bars: bars.show(job, "pack")`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.fields[mark]}"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not self._live,
        )
        self._rows: dict[str, TaskID] = {}
        self._states: dict[str, str] = {}
        self._began: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, job: Mapping[str, Any], label: str) -> None:
        """Bring the rows up to date with a job as the API gives it."""
        items = job.get("items") or []
        if not items:
            self._show_row(job, label)
            return
        self._drop(job["id"])
        for item in items:
            self._show_row(item, str(item["slot"] or item["id"]).replace("_", " "))
        if not self._live and job["state"] in _FINAL and self._states.get(job["id"]) != job["state"]:
            self._tell(job, label)
            self._states[job["id"]] = job["state"]

    def _show_row(self, job: Mapping[str, Any], label: str) -> None:
        row_id, state = job["id"], job["state"]
        if self._states.get(row_id) in _FINAL and state == self._states[row_id]:
            return
        self._began.setdefault(row_id, time.monotonic())
        if not self._live:
            if self._states.get(row_id) != state:
                self._tell(job, label)
        else:
            self._draw(job, label)
        self._states[row_id] = state

    def _draw(self, job: Mapping[str, Any], label: str) -> None:
        row_id, state = job["id"], job["state"]
        if row_id not in self._rows:
            self._rows[row_id] = self._bars.add_task(label, start=False, total=1.0, mark=" ", note="")
        row = self._rows[row_id]
        if state != "pending":
            self._bars.start_task(row)
        mark, colour = _MARKS.get(state, (" ", "dim"))
        progress = job.get("progress") or {}
        done = 1.0 if state == "completed" else _share(progress)
        self._bars.update(
            row, completed=done, mark=f"[{colour}]{mark}[/]", note=f"[{colour}]{describe(job)}[/]"
        )
        if state in _FINAL:
            self._bars.stop_task(row)

    def _drop(self, row_id: str) -> None:
        """Take away the row of a job that has become the rows of its items."""
        if row_id in self._rows:
            self._bars.remove_task(self._rows.pop(row_id))

    def _tell(self, job: Mapping[str, Any], label: str) -> None:
        mark, _ = _MARKS.get(job["state"], ("·", ""))
        took_s = time.monotonic() - self._began.setdefault(job["id"], time.monotonic())
        took = f"  {took_s:.1f} s" if job["state"] in _FINAL else ""
        self._console.print(f"{mark} {label:<12} {describe(job)}{took}", markup=False, highlight=False)


def describe(job: Mapping[str, Any]) -> str:
    """Where a job is, in a few words: its state, or the stage that runs."""
    progress = job.get("progress") or {}
    if job["state"] == "processing" and progress.get("stage"):
        return f"{progress['stage']} {progress['done']:g}/{progress['total']:g}"
    if job["state"] == "pending" and job.get("run_at"):
        day, _, clock = str(job["run_at"])[:19].partition("T")
        on = "" if day == f"{datetime.now(UTC):%Y-%m-%d}" else f"on {day} "
        return f"pending, runs {on}at {clock} UTC"
    if job["state"] == "failed":
        return f"failed: {(job.get('error') or {}).get('code', 'unknown')}"
    return "done" if job["state"] == "completed" else str(job["state"])


def _share(progress: Mapping[str, Any]) -> float:
    total = float(progress.get("total") or 0)
    return min(1.0, float(progress.get("done") or 0) / total) if total else 0.0
