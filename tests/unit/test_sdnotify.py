"""What systemd hears from us, and what it hands over."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from daemon import sdnotify


def test_nobody_listens_outside_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    assert not sdnotify.ready("serving")


def test_a_manager_that_went_away_is_survived(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))

    assert not sdnotify.notify("WATCHDOG=1")


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_that_we_are_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool
) -> None:
    name = f"listingd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)

        assert sdnotify.ready("serving")
        heard = manager.recv(4096).decode().splitlines()
        assert sdnotify.extend_timeout(1.5)
        extended = manager.recv(4096).decode()

    assert ["READY=1", "STATUS=serving"] == heard[:2]
    assert "EXTEND_TIMEOUT_USEC=1500000" == extended


def test_the_watchdog_is_fed_twice_per_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert 15 == sdnotify.watchdog_interval_s()

    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert sdnotify.watchdog_interval_s() is None


def test_sockets_meant_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")

    assert [] == sdnotify.take_sockets()


def test_a_handed_over_socket_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(sdnotify, "_FIRST_DESCRIPTOR", os.dup(listening.fileno()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))

        taken = sdnotify.take_sockets()
        again = sdnotify.take_sockets()

        assert [listening.getsockname()] == [sock.getsockname() for sock in taken]
        assert [] == again
        taken[0].close()
