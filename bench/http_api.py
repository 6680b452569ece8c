"""What the HTTP API bears: python bench/http_api.py URL KEY PID [SECONDS]

create   POST /v1/jobs over 1, 16 and 64 kept connections: rate, p50, p99
streams  3000 open event streams, one job each, while 20 jobs a second are created and 20 cancelled: memory a
         stream (of process PID), delay from the cancel's call to its event, p99 of creates;
         then the same with 500 readers that never read

Raw sockets: a client library would cost more than the server. Jobs lie in the future, so that no worker runs.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import cast

import uvloop

STREAMS = 3000
DEAF = 500


class Client:
    """One kept connection."""

    def __init__(self, url: str, key: str) -> None:
        self._host, self._port = url.removeprefix("http://").split(":")
        self._key = key

    async def open(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection(self._host, int(self._port))
        return self

    def send(self, method: str, path: str, body: object = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self._key}\r\n"
        if body is not None:
            head += "Content-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    async def call(self, method: str, path: str, body: object = None) -> bytes:
        self.send(method, path, body)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 2"):
            raise RuntimeError(head.decode())
        size = head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]
        return await self.reader.readexactly(int(size))


def job(**more: object) -> dict[str, object]:
    return {
        "kind": "image", "run_at": "2100-01-01T00:00:00Z",
        "input": {
            "photo": {"upload_id": "0190c2e4-9b1a-7cc3-8b3f-0a3c7b1f9d11"}, "slot": "main",
            "product": {"title": "Oak chair"},
        },
    } | more  # fmt: skip


def show(name: str, seconds: list[float], extra: str = "") -> None:
    seconds.sort()
    p50, p99 = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)]
    print(
        f"{name:34} n {len(seconds):6}   p50 {p50 * 1000:8.2f} ms   p99 {p99 * 1000:8.2f} ms   {extra}",
        flush=True,
    )


async def create(connect: Callable[[], Awaitable[Client]], connections: int, seconds: float) -> None:
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def one(client: Client) -> None:
        while (began := time.perf_counter()) < end:
            await client.call("POST", "/v1/jobs", job())
            took.append(time.perf_counter() - began)

    await asyncio.gather(*[one(await connect()) for _ in range(connections)])
    show(f"create, {connections} connections", took, f"{len(took) / seconds:8.0f} a second")


def memory(pid: int) -> int:
    """Resident memory, KiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


async def streams(connect: Callable[[], Awaitable[Client]], pid: int, seconds: float) -> None:
    client = await connect()
    ids: list[str] = []
    for start in range(0, STREAMS + DEAF, 500):
        size = min(500, STREAMS + DEAF - start)
        made = json.loads(await client.call("POST", "/v1/jobs/batch", {"jobs": [job() for _ in range(size)]}))
        ids += [one["id"] for one in made["jobs"]]
    heard: dict[str, float] = {}

    async def listen(reader: Client, job_id: str) -> None:
        while line := await reader.reader.readline():
            if line.startswith(b"event: done"):
                heard[job_id] = time.perf_counter()

    before = memory(pid)
    tasks, held = [], []
    for job_id in ids[:STREAMS]:
        stream = await connect()
        stream.send("GET", f"/v1/jobs/{job_id}/events")
        await stream.reader.readuntil(b"event: snapshot")
        tasks.append(asyncio.create_task(listen(stream, job_id)))
        held.append(stream)
    print(
        f"{STREAMS} streams: {(memory(pid) - before) / STREAMS:.1f} KiB each, {memory(pid) / 1024:.0f} MiB in all"
    )
    victims = iter(ids)
    await _stir(connect, victims, heard, seconds, f"{STREAMS} streams")
    for job_id in ids[STREAMS:]:
        deaf = await connect()
        cast("asyncio.Transport", deaf.writer.transport).pause_reading()
        deaf.send("GET", f"/v1/jobs/{job_id}/events")
        held.append(deaf)
    await _stir(connect, victims, heard, seconds, f"the same, {DEAF} that never read")
    for task in tasks:
        task.cancel()


async def _stir(
    connect: Callable[[], Awaitable[Client]], victims: Iterator[str], heard: dict[str, float],
    seconds: float, name: str,
) -> None:  # fmt: skip
    creator, canceller = await connect(), await connect()
    creates: list[float] = []
    cancelled: dict[str, float] = {}
    for _ in range(int(seconds * 20)):
        began = time.perf_counter()
        await creator.call("POST", "/v1/jobs", job())
        creates.append(time.perf_counter() - began)
        job_id = next(victims)
        cancelled[job_id] = time.perf_counter()
        await canceller.call("POST", f"/v1/jobs/{job_id}/cancel")
        await asyncio.sleep(max(0.0, 0.05 - (time.perf_counter() - began)))
    await asyncio.sleep(2)  # the last events
    show(f"{name}: create", creates)
    show(
        f"{name}: event delay", [heard[i] - at for i, at in cancelled.items()]
    )  # KeyError: an event was lost


async def main(url: str, key: str, pid: int, seconds: float) -> None:
    async def connect() -> Client:
        return await Client(url, key).open()

    for connections in (1, 16, 64):
        await create(connect, connections, seconds)
    await streams(connect, pid, seconds)


if __name__ == "__main__":
    gc.disable()  # thousands of connections on this side too: its pauses are not the server's
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float((*sys.argv, "5")[4])))
