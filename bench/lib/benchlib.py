"""What a contestant says to the driver: the contract of the shared queue benchmark, for ours when that is absent.

The contestant's file is a program: `info` (JSON), `setup`, `worker` (until SIGTERM), and the producers
`single SECONDS`, `bulk N`, `paced N MS`, `feed`. Lines for the driver start with @@:

    @@F ns        the first handler started        @@A ns      the BENCH_N-th did
    @@C n ns      so many have, every 50th         @@T i ns    job i did (BENCH_TRACE=1)
    @@P i ns ns   job i was enqueued: call, answer @@R json    a producer's result

Times are CLOCK_MONOTONIC in nanoseconds, comparable between the processes of one Linux machine.
BENCH_PROFILE names a file: cProfile's figures from the first handler to the last are written there.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import uvloop

DSN = os.environ.get("BENCH_DSN", "")
_OPTIONS: dict[str, Any] = json.loads(os.environ.get("BENCH_OPT", "{}"))


def opt(name: str, default: Any) -> Any:
    """A tunable, which the driver may override."""
    return _OPTIONS.get(name, default)


def emit(*words: object) -> None:
    os.write(1, ("@@" + " ".join(map(str, words)) + "\n").encode())


class Peer:
    """A contestant. one and many return when the jobs are committed; work runs until SIGTERM and calls hit(i)
    at each handler's start. sql_unfinished: boolean, cheap; sql_seed: clones finished rows $K times.
    """

    name: str
    dists: tuple[str, ...] = ()
    settings: ClassVar[dict[str, Any]] = {}
    bulk_chunk = 1000
    sql_unfinished = ""
    sql_finished = ""
    sql_seed: tuple[str, ...] = ()

    async def setup(self) -> None: ...
    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def one(self, i: int) -> None: ...
    async def many(self, ids: Sequence[int]) -> None: ...
    async def work(self, hit: Callable[[int], None]) -> None: ...


class _Hits:
    """Counts handler starts and tells the driver of the first, every 50th and the last."""

    def __init__(self) -> None:
        self._count = 0
        self._last = int(os.environ.get("BENCH_N", "0"))
        self._trace = os.environ.get("BENCH_TRACE") == "1"
        path = os.environ.get("BENCH_PROFILE")
        self._profile = (cProfile.Profile(), path) if path else None

    def hit(self, i: int) -> None:
        count = self._count = self._count + 1
        if self._trace:
            emit("T", i, time.monotonic_ns())
        if count == 1:
            emit("F", time.monotonic_ns())
            if self._profile:
                self._profile[0].enable()
        if count == self._last:
            if self._profile:
                self._profile[0].dump_stats(self._profile[1])
            emit("A", time.monotonic_ns())
        elif count % 50 == 0:
            emit("C", count, time.monotonic_ns())


async def _single(peer: Peer, seconds: float) -> None:
    took: list[float] = []
    for i in range(20):
        await peer.one(-1 - i)  # prepared statements, warm caches
    began = time.perf_counter()
    while (at := time.perf_counter()) < began + seconds:
        await peer.one(len(took))
        took.append(time.perf_counter() - at)
    spent = time.perf_counter() - began
    took.sort()
    p50, p99 = took[len(took) // 2] * 1e3, took[int(len(took) * 0.99)] * 1e3
    emit("R", json.dumps({"n": len(took), "secs": spent, "p50": p50, "p99": p99}))


async def _bulk(peer: Peer, count: int) -> None:
    began = time.perf_counter()
    for start in range(0, count, peer.bulk_chunk):
        await peer.many(range(start, min(count, start + peer.bulk_chunk)))
    emit("R", json.dumps({"n": count, "secs": time.perf_counter() - began}))


async def _paced(peer: Peer, count: int, gap_ms: float) -> None:
    for i in range(10):
        await peer.one(-1 - i)
        await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    jitter = random.Random(7)
    due = time.monotonic()
    for i in range(count):
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        called = time.monotonic_ns()
        await peer.one(i)
        emit("P", i, called, time.monotonic_ns())
        due += gap_ms / 1e3 * jitter.uniform(0.5, 1.5)
    emit("R", "{}")


async def _feed(peer: Peer) -> None:
    """Enqueue as many jobs as each line of stdin says, in one call."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    sent = 0
    emit("Y")
    while line := await lines.readline():
        await peer.many(range(sent, sent + int(line)))
        sent += int(line)
        emit("D", int(line))


async def _produce(peer: Peer, command: str, arguments: Sequence[str]) -> None:
    producers: dict[str, Callable[[], Awaitable[None]]] = {
        "single": lambda: _single(peer, float(arguments[0])),
        "bulk": lambda: _bulk(peer, int(arguments[0])),
        "paced": lambda: _paced(peer, int(arguments[0]), float(arguments[1])),
        "feed": lambda: _feed(peer),
    }
    await peer.open()
    try:
        await producers[command]()
    finally:
        await peer.close()


def _find_versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main(contestant: type[Peer]) -> None:
    """Do what the command line says."""
    command, *arguments = sys.argv[1:]
    peer = contestant()
    match command:
        case "info":
            info = {
                "name": peer.name, "versions": _find_versions(peer.dists), "settings": peer.settings,
                "python": sys.version.split()[0], "bulk_chunk": peer.bulk_chunk,
                "sql_unfinished": peer.sql_unfinished, "sql_finished": peer.sql_finished, "sql_seed": peer.sql_seed,
            }  # fmt: skip
            print(json.dumps(info))
        case "setup":
            uvloop.run(peer.setup())
        case "worker":
            uvloop.run(peer.work(_Hits().hit))
        case _:
            uvloop.run(_produce(peer, command, arguments))
