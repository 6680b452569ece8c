"""The self-fence: when a process must stop its jobs because another may have them already."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import pytest

from daemon.db import Database
from daemon.lease import Lease


@pytest.fixture
def lease(tmp_path: Path) -> Lease:
    """Confirmed at 100 s; nothing here asks the database."""
    lease = Lease(
        cast("Database", None), instance="one", state_dir=tmp_path, store="s3://b", lease_s=20, heartbeat_s=5, kinds=["ping"],
        concurrency=1, load=lambda: (0, False),
    )  # fmt: skip
    lease.confirmed_at = 100.0
    return lease


@pytest.mark.parametrize(("now", "is_safe"), [(100.0, True), (111.9, True), (112.0, False), (120.0, False)])
def test_jobs_are_ours_for_six_tenths_of_the_lease(
    lease: Lease, monkeypatch: pytest.MonkeyPatch, now: float, is_safe: bool
) -> None:
    """The rest is for stopping them, and for clocks that run apart."""
    monkeypatch.setattr(time, "monotonic", lambda: now)

    assert is_safe is lease.is_safe()


def test_nothing_is_ours_once_another_has_declared_us_dead(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    lease.gone = True

    assert not lease.is_safe()


def test_a_lease_that_was_never_confirmed_makes_nothing_ours(lease: Lease) -> None:
    lease.confirmed_at = float("-inf")

    assert not lease.is_safe()
