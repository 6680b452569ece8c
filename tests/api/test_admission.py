"""Which new jobs are refused although they are valid: budget spent, too many unfinished ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from daemon.db import Database
from daemon.settings import Budgets, Http, Limits, OpenAI, Settings
from daemon.storage import Storage
from tests.api.application import IMAGE_JOB, Api, running_api

PAID = OpenAI(api_key="sk-of-a-test-that-calls-nobody")


@pytest.fixture
async def api(settings: Settings, db: Database, storage: Storage) -> AsyncIterator[Api]:
    """Painting costs money; ann may spend 1 USD a day, a user may have three open jobs."""
    settings = settings.model_copy(
        update={
            "http": Http(port=0), "openai": PAID, "limits": Limits(open_jobs_per_user=3),
            "budgets": Budgets(user_usd_per_day=Decimal(1)),
        }
    )  # fmt: skip
    async with running_api(settings, db, storage) as started:
        yield started


async def _spend(api: Api, user_id: str) -> None:
    await api.execute("select listingd.move_spend($1, null, (now() at time zone 'utc')::date, 0, 1)", user_id)


LIFESTYLE: dict[str, Any] = IMAGE_JOB | {"input": IMAGE_JOB["input"] | {"slot": "lifestyle"}}


async def test_spent_budget_is_a_402(api: Api) -> None:
    await _spend(api, "ann")

    status, problem, response = await api.call("POST", "/v1/jobs", user="ann", json=LIFESTYLE)
    batch, _, _ = await api.call("POST", "/v1/jobs/batch", user="ann", json={"jobs": [LIFESTYLE]})

    assert (402, "budget_spent") == (status, problem["code"])
    assert 402 == batch
    assert int(response.headers["Retry-After"]) <= 86_400
    assert 201 == (await api.call("POST", "/v1/jobs", user="bob", json=LIFESTYLE))[0]


async def test_job_without_cost_is_taken_on_a_spent_budget(api: Api) -> None:
    """The cut-out is the offline one here: a main image costs nothing."""
    await _spend(api, "ann")

    assert 201 == (await api.call("POST", "/v1/jobs", user="ann", json=IMAGE_JOB))[0]


async def test_replay_is_no_new_job(api: Api) -> None:
    """The first request was let in: what is sent again must hear so, whatever has been spent since."""
    headers = {"Idempotency-Key": str(uuid4())}
    _, made, _ = await api.call("POST", "/v1/jobs", user="ann", json=LIFESTYLE, headers=headers)
    await _spend(api, "ann")
    for _ in range(2):
        await api.create(user="ann")

    status, again, _ = await api.call("POST", "/v1/jobs", user="ann", json=LIFESTYLE, headers=headers)

    assert (201, made["id"]) == (status, again["id"])


async def test_unfinished_jobs_of_a_user_are_limited(api: Api) -> None:
    jobs = [await api.create(user="ann") for _ in range(3)]

    status, problem, response = await api.call("POST", "/v1/jobs", user="ann", json=IMAGE_JOB)
    assert (429, "too_many_open_jobs") == (status, problem["code"])
    assert "Retry-After" in response.headers
    assert 201 == (await api.call("POST", "/v1/jobs", user="bob", json=IMAGE_JOB))[0]

    await api.call("POST", f"/v1/jobs/{jobs[0]['id']}/cancel", user="ann")
    assert 201 == (await api.call("POST", "/v1/jobs", user="ann", json=IMAGE_JOB))[0]


async def test_batch_beyond_the_limit_makes_nothing(api: Api) -> None:
    body = {"jobs": [IMAGE_JOB | {"user_id": "ann"}] * 4}

    assert 429 == (await api.call("POST", "/v1/jobs/batch", json=body))[0]

    assert [] == (await api.call("GET", "/v1/jobs"))[1]["data"]


async def test_service_itself_is_not_limited(api: Api) -> None:
    for _ in range(5):
        await api.create()
