"""Operators hold users, lanes and schedules over HTTP, and let them go."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from daemon.db import Database
from daemon.settings import Settings
from tests.api.operated import Operated, operated

NIGHTLY: dict[str, Any] = {
    "kind": "ping",
    "input": {"echo": 1},
    "cron": "0 3 * * *",
    "time_zone": "Europe/Berlin",
}


@pytest.fixture
async def api(settings: Settings, db: Database) -> AsyncIterator[Operated]:
    async with operated(settings, db) as started:
        yield started


async def test_a_user_is_held_weighed_and_let_go(api: Operated) -> None:
    _, held, _ = await api.call("PATCH", "/v1/admin/users/ann", json={"paused": True, "why": "unpaid"})
    _, heavy, _ = await api.call("PATCH", "/v1/admin/users/ann", json={"weight": 3.0})
    _, free, _ = await api.call("PATCH", "/v1/admin/users/ann", json={"paused": False})
    _, listed, _ = await api.call("GET", "/v1/admin/users?user_id=ann")

    assert (True, "unpaid", 1) == (held["paused"], held["paused_why"], held["weight"])
    assert (True, 3) == (heavy["paused"], heavy["weight"])
    assert {"user_id": "ann", "weight": 3, "paused": False, "paused_why": None} == free
    assert {"data": [free]} == listed
    assert 422 == (await api.call("PATCH", "/v1/admin/users/ann", json={}))[0]


async def test_opening_a_lane_recalls_the_jobs_it_sent_away(api: Operated) -> None:
    await api.db.pool.execute(
        "insert into listingd.lanes (name, provider, max_in_flight, allowed) values ('openai:1', 'openai', 8, 4)"
    )
    _, job, _ = await api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {}})
    _, other, _ = await api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {}})
    for job_id, lane in ((job["id"], "openai:1"), (other["id"], "gemini:1")):
        await api.db.pool.execute(
            "update listingd.job_states set run_at = now() + interval '4 minutes', error = $2::jsonb where id = $1",
            job_id, json.dumps({"code": "lane_closed", "lane": lane}),
        )  # fmt: skip

    paused = await api.call(
        "POST", "/v1/admin/providers/openai:1/pause", json={"for_s": 600, "why": "new key"}
    )
    _, lanes, _ = await api.call("GET", "/v1/admin/providers")
    await api.call("POST", "/v1/admin/providers/openai:1/resume")

    assert 204 == paused[0]
    assert [(True, "paused_by_operator", "new key")] == [
        (lane["is_paused"], lane["pause_code"], lane["pause_why"]) for lane in lanes["data"]
    ]
    assert (await api.call("GET", f"/v1/jobs/{job['id']}"))[1]["run_at"] is None
    assert (await api.call("GET", f"/v1/jobs/{other['id']}"))[1]["run_at"] is not None


async def test_a_schedule_from_birth_to_end(api: Operated) -> None:
    path = "/v1/admin/schedules/nightly"

    status, made, _ = await api.call("PUT", path, json=NIGHTLY)
    _, changed, _ = await api.call("PUT", path, json=NIGHTLY | {"enabled": False, "overlap": "skip"})
    _, listed, _ = await api.call("GET", "/v1/admin/schedules")
    _, read, _ = await api.call("GET", path)
    removed = await api.call("DELETE", path)

    assert (200, 3) == (status, len(made["upcoming"]))
    assert all("T03:00:00+0" in at for at in made["upcoming"])
    assert made["next_at"] is not None
    assert (False, "skip", []) == (changed["enabled"], changed["overlap"], changed["upcoming"])
    assert [read] == listed["data"]
    assert [204, 404, 404] == [
        removed[0],
        (await api.call("GET", path))[0],
        (await api.call("DELETE", path))[0],
    ]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"cron": "99 * * * *"}, "/cron"),
        ({"time_zone": "Mars/Olympus"}, "/time_zone"),
        ({"kind": "image", "input": {"slot": "main"}}, "/input/photo"),
        ({"missed": "maybe"}, "/missed"),
        ({"webhook": {}}, "/webhook"),
    ],
)
async def test_a_schedule_that_could_not_run_is_refused(
    api: Operated, change: dict[str, Any], pointer: str
) -> None:
    status, problem, _ = await api.call("PUT", "/v1/admin/schedules/x", json=NIGHTLY | change)

    assert 422 == status
    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert [] == (await api.call("GET", "/v1/admin/schedules"))[1]["data"]


async def test_a_name_that_cannot_be_one_is_unknown(api: Operated) -> None:
    assert 404 == (await api.call("PUT", "/v1/admin/schedules/Nightly!", json=NIGHTLY))[0]
