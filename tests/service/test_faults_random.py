"""Ten faults at random over two daemons: the short form of `python -m bench.faults`, which makes two hundred."""

from __future__ import annotations

import pytest

faults = pytest.importorskip("bench.faults", reason="bench/ is not part of the source distribution")


def test_no_fault_loses_a_job_or_ends_one_twice() -> None:
    found = faults.run_trial(seed="test", faults=10, daemons=2)

    assert [] == found["violations"]
    assert found["ends"] > 50
