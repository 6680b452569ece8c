"""A process that has imported listingd and forks daemons of itself: a start costs 0.1 s instead of seconds of imports.

The children are processes like any other: own pid, own signals, own memory. `python -m tests.nursery` is the nursery;
`Nursery` is its mistress. They talk in JSON lines: {"token", "env", "cwd", "log", "kinds"} one way,
{"token", "pid"} and {"pid", "code"} the other.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent


def die_with_parent(number: int) -> Callable[[], None] | None:
    """For Popen(preexec_fn=…): the child gets this signal when we die."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, number)


class Child:
    """One forked process. code: how it ended, minus the signal that killed it; None while it runs."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self.pid: int | None = None
        self.code: int | None = None

    def poll(self) -> int | None:
        self._nursery.listen(0)
        return self.code

    def send_signal(self, number: signal.Signals) -> None:
        while self.pid is None:
            self._nursery.listen(1)
        if self.code is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        while self.code is None:
            self._nursery.listen(1)


class Nursery:
    """Starts the nursery process at the first spawn; it and its children die with us (Linux)."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._children: dict[int, Child] = {}  # by token
        self._by_pid: dict[int, Child] = {}
        self._rest = b""

    def spawn(self, *, env: dict[str, str], cwd: Path, log: Path, kinds: str | None = None) -> Child:
        """`listingd serve` with this environment; kinds: a module that registers further handlers."""
        process = self._process or self._start()
        child = Child(self)
        token = len(self._children)
        self._children[token] = child
        order = {"token": token, "env": env, "cwd": str(cwd), "log": str(log), "kinds": kinds}
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        return child

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 -- prctl takes no locks
        )  # fmt: skip
        atexit.register(self._process.kill)
        return self._process

    def listen(self, within_s: float) -> None:
        """Take in what the nursery has said."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while select.select([pipe], [], [], within_s)[0]:
            data = os.read(pipe, 65536)
            if not data:
                raise RuntimeError("the nursery has died")
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in map(json.loads, lines):
                if "token" in line:
                    child = self._children[line["token"]]
                    child.pid = line["pid"]
                    self._by_pid[line["pid"]] = child
                else:
                    self._by_pid[line["pid"]].code = line["code"]
            within_s = 0


def main() -> None:
    from daemon import cli, service  # noqa: F401 -- imported so that the children need not

    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    orders, rest = sys.stdin.fileno(), b""
    while True:
        ready, _, _ = select.select([orders, read_end], [], [])
        if read_end in ready:
            os.read(read_end, 4096)
            report_ended()
        if orders in ready:
            data = os.read(orders, 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for order in map(json.loads, lines):
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for descriptor in (read_end, write_end):
                        os.close(descriptor)
                    become_daemon(order)
                say(token=order["token"], pid=pid)


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201 -- the protocol


def report_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        say(pid=pid, code=os.waitstatus_to_exitcode(status))


def become_daemon(order: dict[str, Any]) -> None:
    """In the child: what a shell does before it runs `listingd serve`."""
    from daemon import cli

    if bind := die_with_parent(signal.SIGKILL):
        bind()
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    if order["kinds"] is not None:
        importlib.import_module(order["kinds"]).register()
    code = 1
    try:
        cli.commands(["serve"], prog_name="listingd")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
