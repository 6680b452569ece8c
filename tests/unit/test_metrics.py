"""What stands in daemon/metrics.py."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from daemon import metrics

SOURCE = Path(metrics.__file__).parent


def test_every_metric_is_set_somewhere():
    """One that nobody sets shows 0 for ever, and an alert on it never rests."""
    code = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))

    kinds = (Counter, Gauge, Histogram, metrics.Distribution)
    named = [name for name, value in vars(metrics).items() if isinstance(value, kinds)]

    assert len(named) > 20
    assert [] == [name for name in named if f"metrics.{name}." not in code]
