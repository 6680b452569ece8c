"""One campaign: the server, the contestants, what was measured and what could not be."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO

import asyncpg

from bench.contestants import FAST, Contestant
from bench.processes import Worker
from bench.server import Server

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured. Seconds, or numbers of jobs."""

    jobs: int = 20_000
    finished: int = 1_000_000
    pending: int = 200_000
    bulk: int = 100_000
    enqueue_s: float = 1.6
    http_s: float = 2.0
    sustained_s: float = 7.0
    idle_s: float = 4.0
    samples: int = 400
    held_s: float = 30.0


QUICK = Sizes(
    jobs=2_000, finished=10_000, pending=5_000, bulk=5_000, enqueue_s=0.5, http_s=0.5, sustained_s=2.0, idle_s=1.0, samples=40,
    held_s=3.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement. case: the circumstances, as the table shows them."""

    section: str
    case: str
    contestant: str
    round: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Failure:
    section: str
    case: str
    contestant: str
    why: str


@dataclass(slots=True)
class Campaign:
    """listingd: our daemon, enqueued to by SQL. peers: those that could be prepared."""

    server: Server
    sizes: Sizes
    rounds: int
    log: IO[bytes]
    listingd: Contestant
    make_listingd: Callable[..., Contestant]
    peers: dict[str, Contestant]
    skipped: dict[str, str]
    limit: str | None = None  # the directory of the bare loops
    profile: str | None = None
    repeat_until: float = math.inf  # monotonic seconds
    records: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    speed_ms: list[float] = field(default_factory=list)
    _ready: set[str] = field(default_factory=set)

    @property
    def fast(self) -> list[Contestant]:
        """We and the peers that are measured in every round, in the order they run in."""
        return [self.listingd, *(self.peers[name] for name in FAST if name in self.peers)]

    @property
    def slow(self) -> list[Contestant]:
        return [peer for name, peer in self.peers.items() if name not in FAST]

    def each_round(self) -> Iterator[tuple[int, list[Contestant]]]:
        """(round, contestants): the slow ones take part in the first round."""
        for number in self.numbers():
            yield number, self.fast + (self.slow if number == 0 else [])

    def numbers(self, at_most: int | None = None) -> Iterator[int]:
        """The rounds of a section: the first one always, more while there is time."""
        for number in range(min(self.rounds, at_most or self.rounds)):
            if number > 0 and time.monotonic() > self.repeat_until:
                print(f"  no time for more than {number} of {self.rounds} rounds", flush=True)
                return
            yield number

    async def measure(
        self, section: str, case: str, contestant: str, number: int, take: Callable[[], Awaitable[Figures]],
        *, within_s: float = 180,
    ) -> None:  # fmt: skip
        """Take one measurement and note it; a failure is noted too and does not end the campaign."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(within_s):
                figures = await take()
        except Exception as exc:
            self.fail(section, case, contestant, exc)
            return
        self.note(section, case, contestant, number, figures)
        shown = "  ".join(f"{name} {value:g}" for name, value in figures.items())
        print(
            f"  {section}: {contestant} {case} #{number + 1} ({time.monotonic() - began:.1f} s): {shown}",
            flush=True,
        )

    def fail(self, section: str, case: str, contestant: str, error: Exception) -> None:
        why = f"{type(error).__name__}: {error}".strip(": ")
        self.failures.append(Failure(section, case, contestant, why))
        print(f"  {section}: {contestant} {case} FAILED, {why}", flush=True)

    def note(self, section: str, case: str, contestant: str, number: int, figures: Figures) -> None:
        self.records.append(Record(section, case, contestant, number, figures))

    @asynccontextmanager
    async def fresh(self, contestant: Contestant) -> AsyncIterator[str]:
        """A database of its own with the contestant's empty schema, for the length of the block."""
        database = f"bench_{contestant.name}"
        await self.server.create(database, await self._template(contestant))
        try:
            yield database
        finally:
            await self.server.drop(database)

    async def _template(self, contestant: Contestant) -> str:
        """A database with the empty schema, to be cloned."""
        name = f"empty_{contestant.name}"
        if name not in self._ready:
            await self.server.create(name)
            await self.run_setup(contestant, name)
            self._ready.add(name)
        return name

    async def run_setup(self, contestant: Contestant, database: str) -> None:
        environment = contestant.environment | {"BENCH_DSN": self.server.dsn(database)}
        process = await asyncio.create_subprocess_exec(
            *contestant.command, "setup", env=environment, stdout=self.log, stderr=self.log
        )
        try:
            async with asyncio.timeout(60):
                code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        if code != 0:
            raise RuntimeError(f"setup: exit {code}")

    async def wait_connected(self, worker: Worker, database: str, besides: int = 0) -> None:
        """Until the worker has connected to the database and nothing has run there for half a second.

        besides: connections that were there before it.
        """
        query = (
            "select count(*) > $2 and count(*) filter (where state = 'active') = 0 from pg_stat_activity"
            " where datname = $1 and pid <> pg_backend_pid()"
        )
        calm = 0
        async with asyncio.timeout(60):
            while calm < 5:
                worker.check()
                calm = calm + 1 if await self.server.fetch_value("postgres", query, database, besides) else 0
                await asyncio.sleep(0.1)  # another process's start: there is nothing to wait on

    def check_speed(self) -> None:
        """The same Python loop each time: how fast the machine is just now, milliseconds."""
        took = []
        for _ in range(3):
            began = time.perf_counter()
            sum(i * i for i in range(300_000))
            took.append(time.perf_counter() - began)
        self.speed_ms.append(round(min(took) * 1e3, 2))


async def wait_finished(server: Server, database: str, contestant: Contestant, within_s: float = 60) -> int:
    """The moment (ns) at which the database holds no unfinished job any more."""
    connection = await asyncpg.connect(server.dsn(database))
    try:
        async with asyncio.timeout(within_s):
            while await connection.fetchval(contestant.info["sql_unfinished"]):  # noqa: ASYNC110 -- another process's rows: there is nothing to wait on
                await asyncio.sleep(0.003)
        return time.monotonic_ns()
    finally:
        await connection.close()


async def count_finished(server: Server, database: str, contestant: Contestant) -> int | None:
    """Jobs recorded as finished; None for peers that delete them."""
    query = contestant.info["sql_finished"]
    return int(await server.fetch_value(database, query)) if query else None


def find_percentiles(values: list[float], *, prefix: str = "") -> Figures:
    """p50, p95, p99 and max, rounded to microseconds of milliseconds."""
    values = sorted(values)
    if not values:
        raise RuntimeError("no samples")
    at = {f"{prefix}p{p}": values[min(len(values) - 1, len(values) * p // 100)] for p in (50, 95, 99)}
    return {name: round(value, 3) for name, value in (at | {f"{prefix}max": values[-1]}).items()}
