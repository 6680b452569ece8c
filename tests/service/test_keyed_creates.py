"""A client that retries with an Idempotency-Key, and a Postgres that crashes under it: one job a key, no more, no less."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import aiohttp
import asyncpg
import pytest

from tests.fleet import HEADERS, Daemon, Server
from tests.support import eventually

KEYS = 200
CRASHES = 5
CLIENTS = 20
JOB = {"kind": "ping", "input": {}, "run_at": "2100-01-01T00:00:00Z"}  # stored, never run


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path / "server")
    await asyncio.to_thread(lambda: server.create().start())
    yield server
    await asyncio.to_thread(server.stop)


async def _create(client: aiohttp.ClientSession, url: str, key: str) -> str:
    """The id that the key's POST made, sent again until it is answered."""
    headers = HEADERS | {"Idempotency-Key": key}
    while True:
        try:
            async with client.post(f"{url}/v1/jobs", json=JOB, headers=headers) as answer:
                told = await answer.json()
                if answer.status == 201:
                    return str(told["id"])
                assert answer.status in {409, 503}, told
                assert "Retry-After" in answer.headers
        except (aiohttp.ClientError, TimeoutError):
            pass
        await asyncio.sleep(0.05)  # the backoff of a client in a hurry


async def test_five_crashes_of_postgres_neither_lose_nor_double_a_keyed_create(
    server: Server, tmp_path: Path
) -> None:
    dsn = await asyncio.to_thread(server.create_database, "keyed")
    daemon = Daemon(tmp_path / "daemon", dsn)
    waiting = [str(uuid4()) for _ in range(KEYS)]
    made: dict[str, str] = {}

    async def work(client: aiohttp.ClientSession, url: str) -> None:
        while waiting:
            key = waiting.pop()
            made[key] = await _create(client, url, key)

    async def crash() -> None:
        for number in range(CRASHES):
            reached = (number + 1) * KEYS // (CRASHES + 1)
            await eventually(lambda count=reached: len(made) >= count, within_s=60)
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            await asyncio.to_thread(server.start)

    try:
        await daemon.start()
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as client,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(crash())
            for _ in range(CLIENTS):
                tasks.create_task(work(client, daemon.url))
        async with aiohttp.ClientSession() as client:
            again = {key: await _create(client, daemon.url, key) for key in made}
    finally:
        daemon.kill()

    connection = await asyncpg.connect(dsn)
    stored = await connection.fetch("select id::text from listingd.jobs")
    await connection.close()
    assert KEYS == len(made)
    assert made == again
    assert sorted(made.values()) == sorted(row["id"] for row in stored)
