"""Talks to systemd: readiness, watchdog, stop extensions, and sockets handed over. Nothing without it.

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

_FIRST_DESCRIPTOR = 3


def notify(*lines: str) -> bool:
    """Send lines like `READY=1`, `STATUS=…`, `WATCHDOG=1`. False when nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # abstract namespace
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto("\n".join(lines).encode(), address)
        return True
    return False


def ready(status: str) -> bool:
    """We serve. `status` is shown by `systemctl status`."""
    return notify("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")


def stopping(status: str) -> bool:
    """We are going down."""
    return notify("STOPPING=1", f"STATUS={status}")


def extend_timeout(seconds: float) -> bool:
    """Ask for that much time from now before systemd kills us, while a paid call is open."""
    return notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")


def watchdog_interval_s() -> float | None:
    """How often to send WATCHDOG=1 (half of WatchdogSec=), None when no watchdog watches us."""
    pid = os.environ.get("WATCHDOG_PID")
    if pid and pid != str(os.getpid()):
        return None
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 2_000_000 if usec.isdecimal() and int(usec) > 0 else None


def take_sockets() -> list[socket.socket]:
    """The listening sockets that systemd hands over (socket activation), each once; usually none."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):  # children must not take them too
        os.environ.pop(name, None)
    taken = []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(descriptor, False)
        taken.append(socket.socket(fileno=descriptor))
    return taken
