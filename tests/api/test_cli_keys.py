"""`listingd keys` against a running service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from click.testing import CliRunner, Result

from daemon.cli_keys import keys
from daemon.db import Database
from daemon.settings import Settings
from tests.api.operated import FIRST, Operated, operated


@pytest.fixture
async def api(settings: Settings, db: Database) -> AsyncIterator[Operated]:
    async with operated(settings, db) as started:
        yield started


async def run(api: Operated, *arguments: str) -> Result:
    """The command in a thread, as a process of its own would call."""
    runner = CliRunner(env={"LISTINGD_URL": api.url, "LISTINGD_KEY": FIRST})
    return await asyncio.to_thread(runner.invoke, keys, list(arguments))


async def test_key_lives_from_create_to_revoke(api: Operated) -> None:
    created = await run(api, "create", "shop", "--scope", "read")
    token = created.stdout.strip()
    key_id = token.split("_")[2]
    rotated = await run(api, "rotate", key_id, "--overlap-s", "60")
    listed = await run(api, "list")
    revoked = await run(api, "revoke", key_id)

    assert 0 == created.exit_code, created.output
    assert 0 == rotated.exit_code, rotated.output
    assert rotated.stdout.strip() != token
    assert [2, True] == [listed.stdout.count("shop"), key_id in listed.stdout]
    assert f"{key_id} (shop) is revoked.\n" == revoked.stdout
    assert 401 == (await api.call("GET", "/v1/jobs", token))[0]
    assert 200 == (await api.call("GET", "/v1/jobs", rotated.stdout.strip()))[0]


async def test_tokens_are_never_listed(api: Operated) -> None:
    token = (await run(api, "create", "shop")).stdout.strip()

    assert token.rsplit("_", 1)[1] not in (await run(api, "list")).output
