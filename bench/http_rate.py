"""Jobs created over HTTP: rate and latency at so many kept connections, beside a bare loop with group commit.

wrk makes the load when it is installed: on a small machine a client in Python takes CPU from the server it measures.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.bare import DATABASE
from bench.campaign import Campaign, Figures
from bench.http_api import Client
from bench.processes import Worker
from bench.report import BARE

CONNECTIONS = (1, 10, 16, 50, 64)
KEY = "bench-" + "k" * 40  # peer_listingd.py's


@dataclass(frozen=True, slots=True)
class Target:
    """A server that takes POSTs. body: one job."""

    url: str
    path: str
    body: Mapping[str, object]
    pid: int


async def http(campaign: Campaign) -> None:
    """Jobs that wait for tomorrow (what the bare loop does: an INSERT each), and jobs that run at once."""
    wait = {"kind": "ping", "input": {"echo": 1}, "run_at": "2100-01-01T00:00:00Z"}
    run = {"kind": "ping", "input": {"echo": 1}}
    async with (
        campaign.fresh(campaign.listingd) as database,
        _daemon(campaign, database) as (url, pid),
        _bare(campaign) as bare,
    ):
        targets = [
            ("created, to run later", campaign.listingd.name, Target(url, "/v1/jobs", wait, pid)),
            *([("group commit", BARE, bare)] if bare else []),
            ("created and run", campaign.listingd.name, Target(url, "/v1/jobs", run, pid)),
        ]
        for number in campaign.numbers(at_most=2):
            for connections in CONNECTIONS:
                for case, name, target in targets:
                    await campaign.measure(
                        "http", f"{case}, {connections}", name, number,
                        functools.partial(_load, campaign, target, connections),
                    )  # fmt: skip


@asynccontextmanager
async def _daemon(campaign: Campaign, database: str) -> AsyncIterator[tuple[str, int]]:
    contestant = campaign.listingd
    port = json.loads(contestant.environment["BENCH_OPT"])["port"]
    async with Worker(contestant, campaign.server.dsn(database), campaign.log) as worker:
        await _wait_open(port, worker.check)
        yield f"http://127.0.0.1:{port}", worker.pid


@asynccontextmanager
async def _bare(campaign: Campaign) -> AsyncIterator[Target | None]:
    """The bare loop's server; None without the shared benchmark."""
    if campaign.limit is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environment = os.environ | {"BENCH_DSN": campaign.server.dsn(DATABASE)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", f"{campaign.limit}/http_server.py", "group", str(port), env=environment,
        stdout=campaign.log, stderr=campaign.log,
    )  # fmt: skip
    try:
        await _wait_open(port, lambda: None)
        yield Target(f"http://127.0.0.1:{port}", "/jobs", {"kind": "noop", "payload": {"i": 1}}, process.pid)
    finally:
        process.kill()
        await process.wait()


async def _wait_open(port: int, check: Callable[[], None]) -> None:
    """Until the port answers. check: raises when its process has ended."""
    async with asyncio.timeout(processes.START_S):
        while True:
            check()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)  # another process's port: there is nothing to wait on
                continue
            writer.close()
            return


async def _load(campaign: Campaign, target: Target, connections: int) -> Figures:
    before, theirs = processes.cpu_s(target.pid), campaign.server.cpu_s()
    by = _load_by_wrk if shutil.which("wrk") else _load_by_python
    figures = await by(target, connections, campaign.sizes.http_s)
    used, theirs = processes.cpu_s(target.pid) - before, campaign.server.cpu_s() - theirs
    answers = figures["jobs_s"] * campaign.sizes.http_s
    return figures | {
        "server_us": round(used / answers * 1e6, 1), "postgres_us": round(theirs / answers * 1e6, 1),
    }  # fmt: skip


async def _load_by_wrk(target: Target, connections: int, seconds: float) -> Figures:
    script = Path(os.environ.get("TMPDIR", "/tmp")) / f"listingd-bench-{os.getpid()}.lua"
    script.write_text(
        'wrk.method = "POST"\n'
        f"wrk.body = {json.dumps(json.dumps(target.body))}\n"
        'wrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.headers["Authorization"] = "Bearer {KEY}"\n'
    )
    try:
        process = await asyncio.create_subprocess_exec(
            "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(script),
            target.url + target.path, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        printed = (await process.communicate())[0].decode()
    finally:
        script.unlink()
    if re.search(r"Non-2xx|Socket errors", printed):
        raise RuntimeError(printed.strip().splitlines()[-3])
    rate = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    at = {p: re.search(rf"\n +{p}%\s+([\d.]+)(us|ms|s)", printed) for p in (50, 99)}
    if rate is None or at[50] is None or at[99] is None:
        raise RuntimeError(f"wrk said: {printed.strip()[-200:]}")
    unit = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    p50, p99 = (round(float(m[1]) * unit[m[2]], 3) for m in (at[50], at[99]))
    return {"jobs_s": round(float(rate[1])), "p50": p50, "p99": p99}


async def _load_by_python(target: Target, connections: int, seconds: float) -> Figures:
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def one(client: Client) -> None:
        while (began := time.perf_counter()) < end:
            await client.call("POST", target.path, target.body)
            took.append(time.perf_counter() - began)
        client.writer.close()

    clients = [await Client(target.url, KEY).open() for _ in range(connections)]
    await asyncio.gather(*(one(client) for client in clients))
    took.sort()
    p50, p99 = took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000
    return {"jobs_s": round(len(took) / seconds), "p50": round(p50, 3), "p99": round(p99, 3)}
