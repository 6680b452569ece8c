"""GET /v1/jobs/{id}/explain: the first reason of each state, with its numbers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.application import Api


async def explain(api: Api, job_id: str, **kw: Any) -> dict[str, Any]:
    status, body, _ = await api.call("GET", f"/v1/jobs/{job_id}/explain", **kw)
    assert 200 == status, body
    return dict(body)


async def start_worker(api: Api, kinds: str = "ping,image,pack") -> None:
    await api.deps.db.fetchval("start_worker", "host-1", 60.0, kinds.split(","), 8, "{}")


async def set_state(api: Api, **columns: str) -> None:
    """Columns of job_states as SQL expressions."""
    assignments = ", ".join(f"{name} = {value}" for name, value in columns.items())
    await api.execute(f"update listingd.job_states set {assignments}")


async def test_without_a_live_process_nothing_runs(api: Api) -> None:
    job = await api.create()

    assert "no_worker" == (await explain(api, job["id"]))["code"]


async def test_a_kind_that_nobody_runs_is_named(api: Api) -> None:
    job = await api.create()
    await start_worker(api, "image")

    assert "no_handler" == (await explain(api, job["id"]))["code"]


async def test_a_due_time_is_told_in_seconds(api: Api) -> None:
    job = await api.create(run_at="2100-01-01T00:00:00Z")
    await start_worker(api)

    told = await explain(api, job["id"])

    assert ("not_due", None) == (told["code"], told["queue_position"])
    assert told["numbers"]["due_in_s"] == told["starts_in_s"] > 1e9


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ("queues (kind, paused_at, paused_why) values ('ping', now(), 'new model')", "kind_paused"),
        ("user_shares (user_id, paused_at, paused_why) values ('', now(), 'new model')", "user_paused"),
    ],
)
async def test_a_pause_is_told_with_its_reason(api: Api, table: str, code: str) -> None:
    job = await api.create()
    await start_worker(api)
    await api.execute(f"insert into listingd.{table}")

    told = await explain(api, job["id"])

    assert code == told["code"]
    assert "new model" in told["message"]
    assert told["starts_in_s"] is None


async def test_a_retry_names_the_last_error(api: Api) -> None:
    job = await api.create()
    await start_worker(api)
    error = '\'{"code": "provider_failed", "message": "It was busy."}\''
    await set_state(api, run_at="now() + interval '30 seconds'", error=error, attempt="2")

    told = await explain(api, job["id"])

    assert ("retry_backoff", "provider_failed", 2) == (
        told["code"],
        told["numbers"]["error"],
        told["numbers"]["attempt"],
    )
    assert {"code": "provider_failed", "message": "It was busy."} == told["last_error"]
    assert told["starts_in_s"] == pytest.approx(30, abs=5)


async def test_a_closed_lane_is_told_with_its_time(api: Api) -> None:
    job = await api.create()
    await start_worker(api)
    await api.execute(
        "insert into listingd.lanes (name, provider, max_in_flight, allowed, paused_at, paused_until, "
        "pause_code, pause_why) values ('openai:1', 'openai', 8, 4, now(), now() + interval '1 hour', "
        "'provider_budget_spent', 'The account is empty.')"
    )
    error = '\'{"code": "lane_closed", "message": "No room.", "lane": "openai:1"}\''
    await set_state(api, run_at="now() + interval '30 seconds'", error=error)

    told = await explain(api, job["id"])

    assert ("lane_closed", "The account is empty.", "openai:1") == (
        told["code"],
        told["message"],
        told["numbers"]["lane"],
    )
    assert told["numbers"]["lane_closed_s"] == pytest.approx(3600, abs=5)


async def test_a_spent_budget_is_told(api: Api) -> None:
    job = await api.create()
    await start_worker(api)
    error = '\'{"code": "budget_spent", "message": "The day\'\'s budget is spent."}\''
    await set_state(api, run_at="now() + interval '60 seconds'", error=error)

    assert "budget_spent" == (await explain(api, job["id"]))["code"]


async def test_a_ready_job_has_its_place_and_a_time(api: Api) -> None:
    job = await api.create()
    await start_worker(api)
    (fence,) = await api.deps.db.pool.fetchrow("select fence from listingd.job_states")
    api.deps.explainer._scheduler.add(fence, "ping", "", 0)
    api.deps.explainer._durations.note("ping", [2.0])

    told = await explain(api, job["id"])

    assert ("starting", 0) == (told["code"], told["queue_position"])
    assert (0, 2) == (told["starts_in_s"], told["finishes_in_s"])


async def test_other_states_say_what_they_are(api: Api) -> None:
    job = await api.create()
    [(_, fence)] = await api.claim()

    running = await explain(api, job["id"])
    await api.execute("update listingd.job_states set cancel_requested = true")
    stopping = await explain(api, job["id"])
    await api.execute("update listingd.job_states set cancel_requested = false")
    await api.complete(fence)
    ended = await explain(api, job["id"])

    assert ["running", "stopping", "ended"] == [told["code"] for told in (running, stopping, ended)]
    assert "sql:test" == running["numbers"]["instance"]


async def test_a_parent_tells_how_many_items_are_open(api: Api) -> None:
    job = await api.create()
    [(_, fence)] = await api.claim()
    await api.execute(
        "select count(*) from listingd.fan_out($1, (select worker from listingd.job_states where fence = $1), "
        '\'[{"id": "0190c2e4-9b1a-7cc3-8b3f-0a3c7b1f9d11", "kind": "ping", "slot": "main", "input": {}}]\')',
        fence,
    )

    told = await explain(api, job["id"])

    assert ("waiting_for_items", {"open": 1, "total": 1}) == (told["code"], told["numbers"])


async def test_a_user_learns_nothing_of_others_nor_of_our_machines(api: Api) -> None:
    job = await api.create(user="u1")
    await api.claim()

    status, _, _ = await api.call("GET", f"/v1/jobs/{job['id']}/explain", user="u2")
    told = await explain(api, job["id"], user="u1")

    assert 404 == status
    assert "instance" not in told["numbers"]
