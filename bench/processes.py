"""Processes under measurement: what they cost, from /proc, and what they say about their jobs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from bench.contestants import Contestant

_TICKS = os.sysconf("SC_CLK_TCK")
_LINE_LIMIT = 1 << 22
START_S = 60.0


def cpu_s(pid: int, *, ended_children: bool = False) -> float:
    """CPU seconds of a process and its living descendants; with those that ended and were waited for."""
    stats = _read_stats()
    children = defaultdict(list)
    for child, fields in stats.items():
        children[int(fields[1])].append(child)
    ticks, left = 0, [pid]
    while left:
        one = left.pop()
        left += children[one]
        if one in stats:
            ticks += sum(map(int, stats[one][11:15] if ended_children else stats[one][11:13]))
    return ticks / _TICKS


def _read_stats() -> dict[int, list[str]]:
    """pid -> the fields of /proc/PID/stat after the name (state, ppid, …; utime is the twelfth)."""
    stats = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                stats[int(directory.name)] = (directory / "stat").read_text().rpartition(")")[2].split()
    return stats


def busy_s() -> float:
    """CPU seconds that the whole machine has spent so far, waiting for disks left out."""
    with Path("/proc/stat").open(encoding="ascii") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS


def memory_mb(pid: int, key: str) -> float:
    """MiB of a process: VmRSS now, or VmHWM at its peak."""
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{key}:")[1].split()[0]) / 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stretch of time cost: seconds of wall, and CPU seconds of worker, Postgres and everybody else."""

    wall: float
    worker: float
    postgres: float
    other: float

    @property
    def other_percent(self) -> float:
        """Of one core."""
        return round(100 * max(0.0, self.other) / (self.wall or 1e-9), 1)


class Meter:
    """Costs since it was made. worker: a process id, or none."""

    def __init__(self, postgres: int, worker: int | None = None) -> None:
        self._pids = (postgres, worker)
        self._began = self._read()

    def _read(self) -> tuple[float, float, float, float]:
        postgres, worker = self._pids
        own = sum(os.times()[:2])
        ours = cpu_s(worker) if worker is not None else 0.0
        theirs = cpu_s(postgres, ended_children=True)
        return time.monotonic(), ours, theirs, busy_s() - own - ours - theirs

    def stop(self) -> Cost:
        return Cost(*(now - then for now, then in zip(self._read(), self._began, strict=True)))


class Worker:
    """The worker process of a contestant, for the length of a block. `@@` lines: see bench/lib/benchlib.py."""

    def __init__(
        self,
        contestant: Contestant,
        dsn: str,
        log: IO[bytes],
        *,
        jobs: int = 0,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self._contestant = contestant
        self._environment = (
            contestant.environment | {"BENCH_DSN": dsn, "BENCH_N": str(jobs)} | dict(more or {})
        )
        self._log = log
        self._jobs = jobs
        self.count = 0
        self.first_ns = 0
        self.all_ns = 0
        self.marks: list[tuple[int, int]] = []  # (ns, handlers started)
        self.starts: dict[int, int] = {}  # job -> ns
        self.claims_ms: list[float] = []
        self.saw_first = asyncio.Event()
        self.saw_all = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.spawned_ns = time.monotonic_ns()
        self._process = await asyncio.create_subprocess_exec(
            *self._contestant.command, "worker", env=self._environment, stdout=asyncio.subprocess.PIPE,
            stderr=self._log, limit=_LINE_LIMIT, start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self._reading = asyncio.create_task(self._read(), name="worker-lines")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(8):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        with suppress(ProcessLookupError):  # what it left behind; the group is its own
            os.killpg(self.pid, signal.SIGKILL)
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if not line.startswith(b"@@"):
                self._log.write(line)
                continue
            letter, *numbers = line[2:].split()
            match letter:
                case b"F":
                    self.first_ns = int(numbers[0])
                    self.count = max(self.count, 1)
                    self.saw_first.set()
                case b"C":
                    self.count = int(numbers[0])
                    self.marks.append((int(numbers[1]), self.count))
                case b"A":
                    self.all_ns = int(numbers[0])
                    self.count = self._jobs
                    self.saw_all.set()
                case b"T":
                    self.starts.setdefault(int(numbers[0]), int(numbers[1]))
                case b"S":
                    self.claims_ms.append(int(numbers[0]) / 1e6)
        self.saw_first.set()
        self.saw_all.set()

    def check(self) -> None:
        """Errors: RuntimeError when the process has ended."""
        if self._process.returncode is not None:
            raise RuntimeError(f"the worker ended: exit {self._process.returncode}")

    async def wait_first(self) -> None:
        """Errors: RuntimeError when the process ended before."""
        async with asyncio.timeout(START_S):
            await self.saw_first.wait()
        if not self.first_ns:
            raise RuntimeError("the worker ended before it started a job")

    async def wait_all(self, within_s: float) -> None:
        """Errors: RuntimeError when the process ended before, TimeoutError."""
        async with asyncio.timeout(within_s):
            await self.saw_all.wait()
        if not self.all_ns:
            raise RuntimeError(f"the worker ended after {self.count} jobs")


class Producer:
    """A producer process of a contestant; collects its lines."""

    def __init__(self, contestant: Contestant, dsn: str, log: IO[bytes], *arguments: object) -> None:
        self._command = [*contestant.command, *map(str, arguments)]
        self._environment = contestant.environment | {"BENCH_DSN": dsn}
        self._log = log

    async def run(self, within_s: float = 300) -> dict[bytes, list[list[bytes]]]:
        """The lines by letter. Errors: RuntimeError, TimeoutError."""
        process = await asyncio.create_subprocess_exec(
            *self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=self._log, limit=_LINE_LIMIT,
        )  # fmt: skip
        lines: dict[bytes, list[list[bytes]]] = defaultdict(list)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                async for line in process.stdout:
                    if line.startswith(b"@@"):
                        letter, *words = line[2:].split(None, 1 if line[2:3] == b"R" else -1)
                        lines[letter].append(words)
                code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code != 0:
            raise RuntimeError(f"{self._command[-1]}: exit {code}")
        return lines

    async def result(self) -> dict[str, Any]:
        """What its last @@R line says."""
        words = (await self.run())[b"R"][-1]
        return dict(json.loads(words[0]))
