"""One job whose end cannot be written holds back nobody else's."""

from __future__ import annotations

import asyncpg
import pytest
from pydantic import SecretStr

from daemon.handlers import HANDLERS
from daemon.handlers.context import JobContext
from daemon.service import Service, run_service
from daemon.settings import Http, Settings
from tests.support import eventually


async def _state(service: Service, job_id: object) -> tuple[str, str | None]:
    row = await service.db.pool.fetchrow(
        "select state, error ->> 'code' as code from listingd.job_states where id = $1", job_id
    )
    return row["state"], row["code"]


async def _enqueue(service: Service, text: str) -> object:
    return await service.db.pool.fetchval("select listingd.enqueue_job('ping', $1::jsonb)", text)


async def test_an_open_transaction_that_locked_a_job_delays_that_job_alone(
    settings: Settings, database: str
) -> None:
    own = settings.model_copy(update={"database_url": SecretStr(database), "http": Http(port=0)})
    async with run_service(own) as service:
        app = await asyncpg.connect(database)
        held = await _enqueue(service, '{"sleep_s": 0.4}')
        await eventually(lambda: service.workers.running)

        async with app.transaction():
            await app.execute("select from listingd.job_states where id = $1 for update", held)
            await eventually(lambda: not service.workers.running)
            others = [await _enqueue(service, "{}") for _ in range(20)]
            for other in others:
                await eventually(lambda other=other: _is(service, other, "completed"))
            assert ("processing", None) == await _state(service, held)

        await eventually(lambda: _is(service, held, "completed"))
        await app.close()


async def test_a_result_that_the_database_cannot_hold_fails_its_job_alone(
    settings: Settings, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def overflow(ctx: JobContext) -> object:
        return {"number": 10**140_000} if ctx.input.echo == "huge" else {}  # type: ignore[attr-defined]

    monkeypatch.setitem(HANDLERS, "ping", overflow)
    own = settings.model_copy(update={"database_url": SecretStr(database), "http": Http(port=0)})
    async with run_service(own) as service:
        job_ids = [await _enqueue(service, f'{{"echo": "{echo}"}}') for echo in ("a", "huge", "b")]

        for job_id in job_ids:
            await eventually(lambda job_id=job_id: _is(service, job_id, "completed", "failed"))
        assert [("completed", None), ("failed", "not_storable"), ("completed", None)] == [
            await _state(service, job_id) for job_id in job_ids
        ]


async def _is(service: Service, job_id: object, *states: str) -> bool:
    return (await _state(service, job_id))[0] in states
