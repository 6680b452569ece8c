"""What comes first when a job starts at once: its handler before the disk, its creator's answer before its handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from daemon.handlers import HANDLERS
from daemon.handlers.context import JobContext
from daemon.jobs import NewJob
from daemon.service import Service, run_service
from daemon.settings import Http, Settings
from tests.support import eventually


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has happened so far. The handler of pings tells."""
    happened: list[str] = []
    answer = HANDLERS["ping"]

    async def tell(ctx: JobContext) -> Any:
        happened.append("handler")
        return await answer(ctx)

    monkeypatch.setitem(HANDLERS, "ping", tell)
    return happened


@pytest.fixture
async def service(settings: Settings, database: str, order: list[str]) -> AsyncIterator[Service]:
    own = settings.model_copy(update={"database_url": SecretStr(database), "http": Http(port=0)})
    async with run_service(own) as running:
        await eventually(lambda: running.listener.connected)
        yield running


async def test_a_job_found_by_its_notification_starts_before_its_claim_is_brought_to_the_disk(
    service: Service, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bring = service.queue.make_lasting

    async def tell() -> None:
        order.append("disk")
        await bring()

    monkeypatch.setattr(service.queue, "make_lasting", tell)

    async def is_claimed_at_sight() -> bool:
        """Not when a look that was under way has found it."""
        order.clear()
        await service.db.pool.fetch("select listingd.enqueue_job('ping')")
        await eventually(lambda: "handler" in order)
        await asyncio.sleep(0.05)
        return "disk" in order

    await eventually(is_claimed_at_sight)
    assert ["handler", "disk"] == order


async def test_who_creates_a_job_has_the_answer_before_it_starts(service: Service, order: list[str]) -> None:
    await service.queue.create([NewJob(kind="ping", input={})])
    order.append("answer")

    await eventually(lambda: len(order) == 2)
    assert ["answer", "handler"] == order
