"""What stands in daemon/metrics.py."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from daemon import metrics
from daemon.log_events import EVENTS

SOURCE = Path(metrics.__file__).parent


def test_every_metric_is_set_somewhere():
    """One that nobody sets shows 0 for ever, and an alert on it never rests."""
    code = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))

    kinds = (Counter, Gauge, Histogram, metrics.Distribution)
    named = [name for name, value in vars(metrics).items() if isinstance(value, kinds)]

    assert len(named) > 20
    assert [] == [name for name in named if f"metrics.{name}." not in code]


def test_what_operations_watch_is_there():
    """An alert on a name that nothing has is silent for ever."""
    text = (SOURCE.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    nouns = "|".join({name.partition(".")[0] for name in EVENTS})

    told = set(re.findall(rf"`((?:{nouns})\.[a-z_]+)`", text))
    watched = set(re.findall(r"`(listingd_[a-z_]+)[`{]", text)) - {
        "listingd_owner",
        "listingd_daemon",
        "listingd_reader",
    }

    assert len(told) > 10
    assert len(watched) > 10
    assert set() == told - EVENTS.keys()
    assert set() == {name for name in watched if f"# HELP {name} " not in metrics.render().decode()}
