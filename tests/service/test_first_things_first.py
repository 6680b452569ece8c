"""What comes first when a job starts at once: its handler before the disk, its creator's answer before its handler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from daemon.handlers import HANDLERS
from daemon.handlers.context import JobContext
from daemon.jobs import ClaimedJob, NewJob
from daemon.queue import Fresh
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
    bring, claim = service.queue.make_lasting, service.queue.claim_fresh
    claimed: list[ClaimedJob] = []

    async def tell_disk() -> None:
        order.append("disk")
        await bring()

    async def tell_claims(*arguments: Any, **more: Any) -> Fresh:
        fresh = await claim(*arguments, **more)
        claimed.extend(fresh.claimed)
        return fresh

    monkeypatch.setattr(service.queue, "make_lasting", tell_disk)
    monkeypatch.setattr(service.queue, "claim_fresh", tell_claims)

    async def is_claimed_at_sight() -> bool:
        """Not when a look that was under way has found it."""
        order.clear()
        await service.db.pool.fetch("select listingd.enqueue_job('ping')")
        await eventually(lambda: "handler" in order)
        return bool(claimed)

    await eventually(is_claimed_at_sight)
    await eventually(lambda: len(order) == 2)
    assert ["handler", "disk"] == order


async def test_who_creates_a_job_has_the_answer_before_it_starts(service: Service, order: list[str]) -> None:
    await service.creator.create([NewJob(kind="ping", input={})])
    order.append("answer")

    await eventually(lambda: len(order) == 2)
    assert ["answer", "handler"] == order
