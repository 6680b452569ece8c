"""From a cancel to the closed socket of the provider: python -m bench.cancels [--jobs 100]

Two daemons on one Postgres with default durability. A job is created at the first daemon and runs there; its provider
takes the request and never answers. The clock runs from before the cancel's HTTP call until the provider reads the
end of the stream.

    image, same      a listing image whose cut-out call is open (the adapter for rembg); cancelled at its own daemon
    image, other     the same, cancelled at the other daemon: through the database and its notification
    family, other    a parent whose three children have a call open each: until the last of the three is closed
"""

from __future__ import annotations

import argparse
import asyncio
import io
import math
import random
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import asyncpg
from PIL import Image

from tests.fault_kinds import SISTERS
from tests.fleet import HEADERS, Daemon, Server


class SilentProvider:
    """Takes requests and never answers. Each connection that has sent something is put into `opened`; when its
    client has closed it, the time is put into `closed`.
    """

    def __init__(self) -> None:
        self.opened: asyncio.Queue[None] = asyncio.Queue()
        self.closed: asyncio.Queue[float] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            if not await reader.read(65536):
                return
            self.opened.put_nowait(None)
            while await reader.read(65536):
                pass
        self.closed.put_nowait(time.perf_counter())
        writer.close()


def make_photo() -> bytes:
    """A small JPEG like no other: the same photo would be cut out once only."""
    photo = Image.new("RGB", (320, 320), (240, 240, 240))
    photo.paste(tuple(random.randrange(30, 200) for _ in range(3)), (80, 80, 240, 240))
    photo.putpixel((5, 5), tuple(random.randrange(256) for _ in range(3)))
    encoded = io.BytesIO()
    photo.save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


async def create_image(http: aiohttp.ClientSession, url: str) -> str:
    async with http.post(
        f"{url}/v1/uploads", data=make_photo(), headers={"Content-Type": "image/jpeg"}
    ) as answer:
        upload = await answer.json()
        assert answer.status == 201, upload
    body = {
        "kind": "image", "max_attempts": 1,
        "input": {"photo": {"upload_id": upload["upload_id"]}, "slot": "main", "product": {"title": "Oak chair"}},
    }  # fmt: skip
    async with http.post(f"{url}/v1/jobs", json=body) as answer:
        job = await answer.json()
        assert answer.status == 201, job
        return str(job["id"])


async def measure(
    http: aiohttp.ClientSession, provider: SilentProvider, job: str, cancel_at: str, sockets: int
) -> float:
    """Seconds from the cancel to the last closed socket."""
    async with asyncio.timeout(60):
        for _ in range(sockets):
            await provider.opened.get()
        began = time.perf_counter()
        async with http.post(f"{cancel_at}/v1/jobs/{job}/cancel") as answer:
            assert answer.status in {200, 202}, await answer.text()
        return max([await provider.closed.get() for _ in range(sockets)]) - began


def show(name: str, seconds: list[float]) -> None:
    ordered = sorted(1000 * s for s in seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[math.ceil(len(ordered) * 0.99) - 1]
    print(
        f"{name:16} n {len(ordered):4}   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   max {ordered[-1]:7.2f} ms",
        flush=True,
    )


async def run(directory: Path, jobs: int) -> None:
    server = Server(directory / "server", fsync="on", full_page_writes="on").create().start()
    dsn = await asyncio.to_thread(server.create_database, "cancels")
    provider = SilentProvider()
    listening = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    daemons = [
        Daemon(
            directory / name, dsn, name=name, kinds="tests.fault_kinds", journal=f"127.0.0.1:{port}", lease_s=20,
            heartbeat_s=5, poll_s=5, cutout__protocol="rembg", cutout__base_url=f"http://127.0.0.1:{port}",
            cutout__concurrency=1000, cutout__requests_per_minute=1_000_000, cutout__price_usd_per_credit=0,
            fetch__allowed_private_networks="127.0.0.0/8",
        )
        for name in ("first", "second")
    ]  # fmt: skip
    try:
        await asyncio.gather(*(daemon.start() for daemon in daemons))
        first, second = (daemon.url for daemon in daemons)
        async with aiohttp.ClientSession(headers=HEADERS) as http:
            for name, cancel_at in (("image, same", first), ("image, other", second)):
                took = [
                    await measure(http, provider, await create_image(http, first), cancel_at, 1)
                    for _ in range(jobs)
                ]
                show(name, took)
            took = []
            for _ in range(jobs):
                job = await make_family(dsn)
                took.append(await measure(http, provider, job, second, SISTERS))
            show("family, other", took)
    finally:
        for daemon in daemons:
            daemon.kill()
        server.stop()


async def make_family(dsn: str) -> str:
    """Kinds of the tests come in by SQL only."""
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval("select listingd.enqueue_job('family')"))
    finally:
        await connection.close()


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--jobs", type=int, default=100)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="ld-cancels-") as directory:
        Path(directory).chmod(0o755)  # Postgres runs as a user of its own
        asyncio.run(run(Path(directory), arguments.jobs))


if __name__ == "__main__":
    main()
