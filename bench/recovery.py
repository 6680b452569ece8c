"""How long it takes until all is well again, with the default lease, heartbeat and poll: python -m bench.recovery [--rounds 3]

    restart    kill -9, `python -m daemon serve` again: from its start until the job runs again     P6, at most 2 s
    takeover   kill -9 of the holder, another daemon lives: until the job runs again                P6, at most 25 s
    stop       SIGTERM with jobs that do not end (soft 3 s, hard 1 s): until exit                   P8, at most 6 s
    outage     immediate stop of Postgres: until /readyz says 503, until a POST is answered by it   P9, at most 1 s
    return     Postgres takes connections again: until /readyz says 200, until a job is done        P9, at most 3 s
    polling    the LISTEN connection is half open: from the enqueue by SQL until the start          P10, at most 5 s
    listener   the same: until LISTEN works again                                                   P10, at most 20 s

`restart` starts the interpreter as an init system does, imports included; --only restart --rounds 20 repeats it alone.
The other daemons are forked from a process that has imported them (tests/nursery.py), which none of their figures counts.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from bench.processes import cpu_s
from tests.fleet import HEADERS, Daemon, Proxy, Server
from tests.nursery import REPOSITORY, die_with_parent
from tests.support import eventually

PING = {"kind": "ping", "input": {}}
DEFAULTS = {"lease_s": 20, "heartbeat_s": 5, "poll_s": 5}


class Spawned:
    """One `listingd serve` that the system started. began: seconds since the epoch."""

    def __init__(self, env: dict[str, str], cwd: Path, log: Path) -> None:
        with log.open("ab") as output:
            self.began = time.time()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daemon", "serve"], env=env, cwd=cwd,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 -- prctl takes no locks
            )  # fmt: skip
        self.pid = self._process.pid

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._process.kill()
        self._process.wait()


class Recovery:
    def __init__(self, directory: Path, server: Server, dsn: str, http: aiohttp.ClientSession) -> None:
        self._directory = directory
        self._server = server
        self._dsn = dsn
        self._http = http
        self.took_s: dict[str, list[float]] = defaultdict(list)

    def daemon(self, name: str, **settings: Any) -> Daemon:
        return Daemon(self._directory / name, self._dsn, name=name, **(DEFAULTS | settings))

    async def sql(self, text: str, *args: Any) -> Any:
        connection = await asyncpg.connect(self._dsn)
        try:
            return await connection.fetchval(text, *args)
        finally:
            await connection.close()

    async def start_long_job(self) -> tuple[Any, int]:
        """A job that runs; its id and its worker."""
        job = await self.sql("select listingd.enqueue_job('ping', '{\"sleep_s\": 900}')")
        return job, await eventually(lambda: self.worker_of(job), 60)

    async def worker_of(self, job: Any, other_than: int = -1) -> int | None:
        return await self.sql(  # type: ignore[no-any-return]
            "select worker from listingd.job_states where id = $1 and state = 'processing' and worker <> $2",
            job,
            other_than,
        )

    def note(self, name: str, began: float) -> None:
        self.took_s[name].append(time.monotonic() - began)

    async def restart(self) -> None:
        """By the clock of the database, which is this machine's: looking often would slow down what is looked at."""
        one = await self.daemon("restarted").start()
        job, worker = await self.start_long_job()
        one.kill()
        again = Spawned(
            one.env | {"PYTHONPATH": str(REPOSITORY)}, self._directory, self._directory / "restarted" / "log"
        )
        try:
            await eventually(lambda: self.worker_of(job, worker), 60)
            self.took_s["restart, of it CPU"].append(cpu_s(again.pid))
            started = await self.sql(
                "select extract(epoch from started_at)::float8 from listingd.job_states where id = $1", job
            )
            self.took_s["restart"].append(started - again.began)
            await self.sql("select listingd.cancel_job($1)", job)
        finally:
            again.kill()

    async def takeover(self) -> None:
        pair = [self.daemon("first"), self.daemon("second")]
        await asyncio.gather(*(one.start() for one in pair))
        job, worker = await self.start_long_job()
        holder = await self.sql("select instance from listingd.workers where id = $1", worker)
        next(one for one in pair if one.name == holder).kill()
        began = time.monotonic()
        await eventually(lambda: self.worker_of(job, worker), 60)
        self.note("takeover", began)
        await self.sql("select listingd.cancel_job($1)", job)
        for one in pair:
            one.kill()

    async def stop(self) -> None:
        one = await self.daemon("stopped", workers__soft_stop_s=3, workers__hard_stop_s=1).start()
        job, _ = await self.start_long_job()
        began = time.monotonic()
        one.send(signal.SIGTERM)
        code = await one.wait(30)
        self.note("stop", began)
        assert (
            code,
            await self.sql("select state from listingd.job_states where id = $1", job),
        ) == (0, "pending")
        await self.sql("select listingd.cancel_job($1)", job)

    async def outage(self) -> None:
        one = await self.daemon("cut").start()
        await eventually(lambda: self.is_done(one), 30)
        began = time.monotonic()
        self._server.stop(signal.SIGQUIT)
        posting = asyncio.ensure_future(self.post(one))
        await eventually(lambda: self.is_ready(one, 503), 30)
        self.note("outage, /readyz", began)
        assert await posting == 503
        self.note("outage, POST", began)
        await asyncio.sleep(8)
        self._server.start()
        began = time.monotonic()
        await eventually(lambda: self.is_ready(one, 200), 60)
        self.note("return, /readyz", began)
        await eventually(lambda: self.is_done(one), 60)
        self.note("return, a job done", began)
        one.kill()

    async def is_ready(self, one: Daemon, status: int) -> bool:
        async with self._http.get(f"{one.url}/readyz") as answer:
            return answer.status == status

    async def post(self, one: Daemon) -> int:
        """The status; a job that was stored a moment before the end counts as not answered yet."""
        while True:
            async with self._http.post(f"{one.url}/v1/jobs", json=PING) as answer:
                if answer.status != 201:
                    return answer.status

    async def is_done(self, one: Daemon) -> bool:
        async with self._http.post(f"{one.url}/v1/jobs", json=PING, headers={"Prefer": "wait=10"}) as answer:
            return answer.status == 200

    async def half_open(self) -> None:
        async with Proxy(self._server.port) as proxy:
            direct = self._dsn.replace(f":{self._server.port}/", f":{proxy.port}/")
            one = await self.daemon("deaf", listen_database_url=direct).start()
            await one.wait_for("listener.connected")
            await asyncio.sleep(1)  # past the look that follows a connect
            proxy.break_silently()
            began = time.monotonic()
            job = await self.sql("select listingd.enqueue_job('ping')")
            await eventually(
                lambda: self.sql("select started_at from listingd.job_states where id = $1", job), 60
            )
            self.note("polling", began)
            await eventually(lambda: len(one.find("listener.connected")) == 2, 60)
            self.note("listener", began)
            one.kill()


async def run(directory: Path, rounds: int, only: str | None) -> None:
    server = Server(directory / "server", fsync="on", full_page_writes="on").create().start()
    dsn = await asyncio.to_thread(server.create_database, "recovery")
    timeout = aiohttp.ClientTimeout(60)
    async with aiohttp.ClientSession(headers=HEADERS, timeout=timeout) as http:
        recovery = Recovery(directory, server, dsn, http)
        try:
            for measure in (
                recovery.restart,
                recovery.takeover,
                recovery.stop,
                recovery.outage,
                recovery.half_open,
            ):
                for _ in range(rounds if only in (None, measure.__name__) else 0):
                    await measure()
        finally:
            server.stop()
    for name, seconds in recovery.took_s.items():
        each = "  ".join(f"{s:.2f}" for s in seconds)
        print(f"{name:22} p50 {statistics.median(seconds):6.2f} s  max {max(seconds):6.2f} s   {each}")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", choices=("restart", "takeover", "stop", "outage", "half_open"))
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="ld-recovery-") as directory:
        Path(directory).chmod(0o755)  # Postgres runs as a user of its own
        asyncio.run(run(Path(directory), arguments.rounds, arguments.only))


if __name__ == "__main__":
    main()
