"""Fixtures of the tests of faults: a Postgres of their own, daemons on a fresh database, all ended afterwards."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.fleet import Daemon, Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running Postgres that the tests of one file may stop and start."""
    server = Server(tmp_path_factory.mktemp("server")).create().start()
    yield server
    server.stop()


@pytest.fixture
def dsn(server: Server) -> str:
    """A migrated, empty database on it."""
    return server.create_database(f"ld_{uuid.uuid4().hex[:12]}")


@pytest.fixture
async def sql(dsn: str) -> AsyncIterator[asyncpg.Pool]:
    """The test's own way into the database; it finds back after a restart of the server."""
    async with asyncpg.create_pool(dsn, min_size=0, max_size=4) as pool:
        yield pool
        pool.terminate()


@pytest.fixture
def daemon(dsn: str, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """`await daemon("one", lease_s=3).start()` is a daemon on the test's database."""
    made: list[Daemon] = []

    def make(name: str = "one", **settings: object) -> Daemon:
        given = settings.pop("dsn", dsn)
        made.append(Daemon(tmp_path / name, str(given), name=name, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.kill()
