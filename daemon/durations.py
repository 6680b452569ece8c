"""How long jobs of each kind run: a mean of what was measured lately, in memory. Feeds the estimates of waiting."""

from __future__ import annotations

from collections.abc import Sequence

NEWEST_SHARE = 0.1
"""What one more run weighs in the mean: some twenty runs are remembered."""


class Durations:
    """Exponentially weighted means of the run times of completed attempts, seconds."""

    def __init__(self) -> None:
        self._means_s: dict[str, float] = {}

    def note(self, kind: str, runs_s: Sequence[float]) -> None:
        """Add runs of a kind that completed, in any order."""
        if not runs_s:
            return
        mean_s = sum(runs_s) / len(runs_s)
        known_s = self._means_s.get(kind)
        if known_s is not None:
            mean_s = known_s + (1 - (1 - NEWEST_SHARE) ** len(runs_s)) * (mean_s - known_s)
        self._means_s[kind] = mean_s

    def mean_s(self, kind: str) -> float | None:
        """Seconds; None for a kind that has not completed here."""
        return self._means_s.get(kind)
