"""One Postgres for the session, a fresh clone of a migrated template for each test.

LISTINGD_TEST_DATABASE_URL names a server to use (its user must be allowed to create databases);
without it the embedded one runs in a temporary directory, LISTINGD_TEST_PG_VERSION (18, 16) chooses.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from daemon import db as database_module
from daemon.embedded import PostgresServer
from daemon.migrate import migrate
from daemon.settings import Settings

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# Tests of a server that may vanish with the machine: durability would only cost time.
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300"}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own keys and URLs must not change what a test proves."""
    for name in list(os.environ):
        foreign = name in {"DATABASE_URL", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM"}
        ours = name.startswith("LISTINGD_") and not name.startswith("LISTINGD_TEST_")
        if foreign or ours or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgres_dsn() -> Iterator[str]:
    """A DSN whose user may create databases."""
    given = os.environ.get("LISTINGD_TEST_DATABASE_URL")
    if given:
        yield given
        return
    version = int(os.environ.get("LISTINGD_TEST_PG_VERSION", "18"))
    with temporary_postgres(version=version) as dsn:
        yield dsn


class temporary_postgres:  # noqa: N801 -- reads as a verb
    """A throw-away server for the length of a block, ended even when the tests are killed.

    A shell waits on a pipe that only we hold open: when we end, however we end, it stops the server and
    removes the directory.
    """

    def __init__(self, *, version: int = 18, options: dict[str, str] | None = None) -> None:
        self._version = version
        self._options = _FAST | (options or {})

    def __enter__(self) -> str:
        self.directory = Path(tempfile.mkdtemp(prefix="ld-test-"))
        self.server = PostgresServer(self.directory / "pg", version=self._version, options=self._options)
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.server.start()
        return self.server.dsn_of("postgres")

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(timeout=30)
        shutil.rmtree(self.directory, ignore_errors=True)


# SIGINT is Postgres' fast shutdown; the first line of postmaster.pid is the process.
_GUARD = """
read -r _
pid=$(head -n 1 "$1/pg/postmaster.pid" 2>/dev/null) && kill -INT "$pid"
while [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
rm -rf "$1"
"""


def with_database(dsn: str, name: str) -> str:
    """The same server, another database."""
    parts = urlsplit(dsn)
    # urlunsplit drops the empty authority of postgresql:///name?host=…
    return urlunsplit(parts._replace(netloc=parts.netloc or "localhost", path=f"/{name}"))


async def _run_on(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def template_database(postgres_dsn: str) -> Iterator[str]:
    """The name of a migrated, empty database."""
    name = f"ld_template_{uuid.uuid4().hex[:12]}"
    asyncio.run(_run_on(postgres_dsn, f"create database {name}"))
    asyncio.run(_migrate(with_database(postgres_dsn, name)))
    yield name
    asyncio.run(_run_on(postgres_dsn, f"drop database {name} with (force)"))


async def _migrate(dsn: str) -> None:
    await migrate(dsn)


@pytest.fixture
async def new_database(postgres_dsn: str) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """`await new_database()` gives the DSN of an empty database, `new_database(template)` of a clone."""
    names: list[str] = []

    async def create(template: str = "template0") -> str:
        name = f"ld_{uuid.uuid4().hex[:12]}"
        # file_copy copies the template's few MB as files: quicker than writing them through the WAL,
        # and on a server without fsync the checkpoint it forces is cheap.
        strategy = "" if os.environ.get("LISTINGD_TEST_DATABASE_URL") else " strategy file_copy"
        await _run_on(postgres_dsn, f"create database {name} template {template}{strategy}")
        names.append(name)
        return with_database(postgres_dsn, name)

    yield create
    if names:
        await _run_on(postgres_dsn, *(f"drop database {name} with (force)" for name in names))


@pytest.fixture
async def database(new_database: Callable[..., Awaitable[str]], template_database: str) -> str:
    """The DSN of a migrated database of the test's own."""
    return await new_database(template_database)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Defaults, with a state dir of the test's own."""
    return Settings(state_dir=tmp_path / "state", instance=f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture
async def db(database: str, settings: Settings) -> AsyncIterator[database_module.Database]:
    """An open Database on `database`."""
    async with await database_module.open_pool(settings, dsn=database) as opened:
        yield opened


@pytest.fixture
def no_blocking() -> Iterator[None]:
    """A blocking call on the event loop fails the test (opt-in, for api and service tests)."""
    from blockbuster import blockbuster_ctx

    with blockbuster_ctx("daemon"):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The project's shared figures and photos, which are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is not on this machine")
    return SHARED_DATA
