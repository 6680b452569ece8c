"""A whole daemon for a test, and the command `listingd` beside it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from daemon.service import Service, run_service
from daemon.settings import Http, Settings

REPOSITORY = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Finished:
    """How a command ended. out and err: what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Awaitable[Finished]]


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: this test run's, with the checkout importable."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"} | more


async def start(*arguments: str, env: dict[str, str], cwd: Path) -> asyncio.subprocess.Process:
    """`listingd …` as a process of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "daemon", *arguments, env=env, cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def finish(process: asyncio.subprocess.Process, within_s: float = 120) -> Finished:
    """Its end; it is killed when that takes too long."""
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def service(settings: Settings, database: str) -> AsyncIterator[Service]:
    """A running daemon on a database of its own and a free port."""
    own = settings.model_copy(
        update={"database_url": SecretStr(database), "http": Http(port=0), "poll_s": 0.5}
    )
    # Errors of the block are raised by the test itself: the task group would wrap them.
    async with run_service(own) as running:
        yield running


@pytest.fixture
def listingd(service: Service, database: str, tmp_path: Path) -> Command:
    """`await listingd("jobs", "list")` runs the command against the service."""
    env = environment(
        LISTINGD_URL=service.url,
        LISTINGD_STATE_DIR=str(service.settings.state_dir),
        LISTINGD_DATABASE_URL=database,
    )

    async def run(*arguments: str, **more: str) -> Finished:
        return await finish(await start(*arguments, env=env | more, cwd=tmp_path))

    return run
