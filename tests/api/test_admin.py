"""What operators see and steer, and who may not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from openapi_spec_validator import validate
from yarl import URL

from daemon.db import Database
from daemon.settings import Settings
from tests.api.operated import FIRST, Operated, operated, user_token


@pytest.fixture
async def api(settings: Settings, db: Database) -> AsyncIterator[Operated]:
    async with operated(settings, db) as started:
        yield started


ADMIN_CALLS = [
    ("GET", "/v1/admin/queues"), ("PATCH", "/v1/admin/queues/image"), ("GET", "/v1/admin/providers"),
    ("POST", "/v1/admin/providers/x/resume"), ("GET", "/v1/admin/workers"), ("GET", "/v1/admin/keys"),
    ("POST", "/v1/admin/keys"), ("POST", "/v1/admin/keys/abc/rotate"), ("DELETE", "/v1/admin/keys/abc"),
    ("GET", "/v1/admin/budgets"), ("PUT", "/v1/admin/budgets"), ("DELETE", "/v1/admin/budgets"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ADMIN_CALLS)
async def test_admin_calls_need_the_scope(api: Operated, method: str, path: str) -> None:
    """Neither a user nor a key with the other scopes gets in, nor a stranger."""
    _, key, _ = await api.call("POST", "/v1/admin/keys", json={"name": "app"})

    assert 401 == (await api.call(method, path, None))[0]
    assert 403 == (await api.call(method, path, user_token("u1")))[0]
    assert 403 == (await api.call(method, path, key["token"]))[0]


async def test_created_key_works_and_is_listed_without_its_secret(api: Operated) -> None:
    status, key, headers = await api.call("POST", "/v1/admin/keys", json={"name": "app", "scopes": ["read"]})
    _, listed, _ = await api.call("GET", "/v1/admin/keys")

    assert (201, "no-store") == (status, headers["Cache-Control"])
    assert 200 == (await api.call("GET", "/v1/jobs", key["token"]))[0]
    assert [(key["id"], ["read"])] == [(k["id"], k["scopes"]) for k in listed["data"]]
    assert "token" not in listed["data"][0]


async def test_revoked_key_is_refused_at_once(api: Operated) -> None:
    _, key, _ = await api.call("POST", "/v1/admin/keys", json={"name": "app"})
    await api.call("GET", "/v1/jobs", key["token"])

    status, revoked, _ = await api.call("DELETE", f"/v1/admin/keys/{key['id']}")

    assert 200 == status
    assert revoked["revoked_at"] is not None
    assert 401 == (await api.call("GET", "/v1/jobs", key["token"]))[0]


async def test_rotated_key_goes_on_for_the_overlap(api: Operated) -> None:
    _, old, _ = await api.call("POST", "/v1/admin/keys", json={"name": "app"})

    status, new, _ = await api.call("POST", f"/v1/admin/keys/{old['id']}/rotate", json={"overlap_s": 60})

    assert 201 == status
    assert [200, 200] == [(await api.call("GET", "/v1/jobs", k["token"]))[0] for k in (old, new)]
    assert 404 == (await api.call("POST", "/v1/admin/keys/unknown/rotate", json={}))[0]


async def test_queue_is_paused_limited_and_resumed(api: Operated) -> None:
    await api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {}})

    _, paused, _ = await api.call(
        "PATCH", "/v1/admin/queues/ping", json={"paused": True, "why": "moving", "concurrency": 3}
    )
    _, resumed, _ = await api.call("PATCH", "/v1/admin/queues/ping", json={"paused": False})
    _, free, _ = await api.call("PATCH", "/v1/admin/queues/ping", json={"concurrency": None})

    assert (True, "moving", 3, 1) == tuple(
        paused[k] for k in ("paused", "paused_why", "concurrency", "pending")
    )
    assert (False, None, 3) == tuple(resumed[k] for k in ("paused", "paused_why", "concurrency"))
    assert free["concurrency"] is None
    assert 404 == (await api.call("PATCH", "/v1/admin/queues/nothing", json={}))[0]
    assert 5 == len((await api.call("GET", "/v1/admin/queues"))[1]["data"])


async def test_share_of_a_user_may_be_a_fraction(api: Operated) -> None:
    """Untyped, the statement made a whole number of it: 0.5 was 0 and a 500."""
    for weight in (0.001, 0.5, 2.5):
        _, changed, _ = await api.call("PATCH", "/v1/admin/users/ann", json={"weight": weight})
        _, listed, _ = await api.call("GET", "/v1/admin/users")
        assert [weight] == [round(share["weight"], 3) for share in listed["data"]]
        assert changed == listed["data"][0]


async def test_lanes_and_workers_are_shown(api: Operated) -> None:
    await api.db.fetchval("start_worker", "host-1", 60.0, ["ping"], 8, '{"version": "0.1.0"}')
    await api.db.pool.execute(
        "insert into listingd.lanes (name, provider, max_in_flight, allowed, paused_at, paused_until, pause_code)"
        " values ('openai:1', 'openai', 8, 4, now(), now() + interval '1 hour', 'provider_budget_spent')"
    )

    _, workers, _ = await api.call("GET", "/v1/admin/workers")
    _, lanes, _ = await api.call("GET", "/v1/admin/providers")
    resumed = await api.call("POST", "/v1/admin/providers/openai:1/resume")
    _, after, _ = await api.call("GET", "/v1/admin/providers")

    assert [("host-1", 8, "0.1.0")] == [
        (w["instance"], w["concurrency"], w["info"]["version"]) for w in workers["data"]
    ]
    assert [True] == [lane["is_paused"] for lane in lanes["data"]]
    assert 204 == resumed[0]
    assert [False] == [lane["is_paused"] for lane in after["data"]]
    assert 404 == (await api.call("POST", "/v1/admin/providers/nobody/resume"))[0]


async def test_budget_is_set_listed_and_dropped(api: Operated) -> None:
    budget = {"scope": "user", "subject": "u1", "period": "day", "limit_usd": "12.50"}

    status, body, _ = await api.call("PUT", "/v1/admin/budgets", json=budget)
    _, listed, _ = await api.call("GET", "/v1/admin/budgets?scope=user&subject=u1")
    dropped = await api.call("DELETE", "/v1/admin/budgets?scope=user&subject=u1&period=day")
    _, after, _ = await api.call("GET", "/v1/admin/budgets?scope=user")

    assert 200 == status
    assert body == listed
    assert [(True, 12.5)] == [(b["is_set"], float(b["limit_usd"])) for b in listed["data"]]
    assert 204 == dropped[0]
    assert [] == after["data"]


async def test_a_projects_budget_is_found_however_its_id_is_written(api: Operated) -> None:
    """The books know a project by one spelling; a budget under another would limit nothing."""
    project = "0199A0B0-0000-7000-8000-00000000ABCD"
    budget = {"scope": "project", "subject": project, "period": "day", "limit_usd": "1"}

    _, body, _ = await api.call("PUT", "/v1/admin/budgets", json=budget)
    _, listed, _ = await api.call("GET", f"/v1/admin/budgets?scope=project&subject={project}")
    await api.call("DELETE", f"/v1/admin/budgets?scope=project&subject={project}&period=day")
    _, after, _ = await api.call("GET", "/v1/admin/budgets?scope=project")

    assert body == listed
    assert [project.lower()] == [b["subject"] for b in listed["data"]]
    assert [] == after["data"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/admin/budgets", {"scope": "user", "period": "day", "limit_usd": "-1"}),
        ("PUT", "/v1/admin/budgets", {"scope": "user", "period": "day", "limit_usd": "1e30"}),
        ("PUT", "/v1/admin/budgets", {"scope": "world", "period": "day", "limit_usd": "1"}),
        ("PUT", "/v1/admin/budgets", {"scope": "total", "subject": "u1", "period": "day", "limit_usd": "1"}),
        (
            "PUT",
            "/v1/admin/budgets",
            {"scope": "project", "subject": "shoes", "period": "day", "limit_usd": "1"},
        ),
        ("PUT", "/v1/admin/budgets", {"scope": "project", "period": "day", "limit_usd": "1"}),
        ("POST", "/v1/admin/keys", {"name": ""}),
        ("POST", "/v1/admin/keys", {"name": "a", "scopes": ["root"]}),
        ("POST", "/v1/admin/keys", {"name": "a", "extra": 1}),
        ("PATCH", "/v1/admin/queues/ping", {"concurrency": -1}),
        ("PATCH", "/v1/admin/queues/ping", {"paused": "yes"}),
        ("PATCH", "/v1/admin/users/ann", {"weight": 1e-50}),  # the database's real makes 0 of it
    ],
)
async def test_wrong_fields_are_422(api: Operated, method: str, path: str, body: object) -> None:
    assert 422 == (await api.call(method, path, json=body))[0]


async def test_provider_names_of_any_shape_are_404(api: Operated) -> None:
    for name in ("nobody", "%00", "%ED%A0%80"):
        for call in ("pause", "resume"):
            path = URL(f"{api.url}/v1/admin/providers/{name}/{call}", encoded=True)
            headers = {"Authorization": f"Bearer {FIRST}"}
            async with api.client.post(
                path, headers=headers, **({"json": {}} if call == "pause" else {})
            ) as answer:
                assert 404 == answer.status, (name, call)


async def test_key_ids_of_any_shape_are_404(api: Operated) -> None:
    for key_id in ("%00", "a%00b", "%C3%BC", "..%2Fx", "' or 1=1"):
        assert 404 == (await api.call("DELETE", f"/v1/admin/keys/{key_id}"))[0]


async def test_document_holds_all_routes(api: Operated) -> None:
    _, document, _ = await api.call("GET", "/openapi.json", None)

    validate(document)
    assert {"/v1/tokens", "/v1/usage", "/v1/estimate", "/v1/webhooks/{id}", "/v1/admin/keys"} <= set(
        document["paths"]
    )


async def test_token_is_minted_for_own_jobs_alone(api: Operated) -> None:
    """P13: another's job answers as one that does not exist."""
    _, job, _ = await api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {}, "user_id": "u1"})

    status, minted, _ = await api.call(
        "POST", "/v1/tokens", user_token("u1"), json={"scope": f"job:{job['id']}"}
    )
    foreign = await api.call("POST", "/v1/tokens", user_token("u2"), json={"scope": f"job:{job['id']}"})
    unknown = await api.call("POST", "/v1/tokens", user_token("u2"), json={"scope": f"job:{uuid4()}"})

    assert 201 == status
    left_s = (datetime.fromisoformat(minted["expires_at"]) - datetime.now(UTC)).total_seconds()
    assert 800 < left_s <= 900  # 15 minutes unless asked otherwise
    assert 200 == (await api.call("GET", f"/v1/jobs/{job['id']}", minted["token"]))[0]
    assert 403 == (await api.call("POST", f"/v1/jobs/{job['id']}/cancel", minted["token"]))[0]
    assert (
        403 == (await api.call("POST", "/v1/tokens", minted["token"], json={"scope": f"job:{job['id']}"}))[0]
    )
    assert (404, 404) == (foreign[0], unknown[0])
    assert foreign[1]["detail"] == unknown[1]["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"scope": "admin"},
        {"scope": "job:x"},
        {"scope": "user:u1", "ttl_s": 90_000},
        {"scope": "user:a\nb"},
    ],
)
async def test_odd_token_requests_are_422(api: Operated, body: object) -> None:
    assert 422 == (await api.call("POST", "/v1/tokens", json=body))[0]


async def test_webhook_endpoint_from_birth_to_end(api: Operated) -> None:
    token = user_token("u1")
    status, made, headers = await api.call(
        "POST", "/v1/webhooks", token, json={"url": "https://hooks.example.com/a", "types": ["job.completed"]}
    )
    path = f"/v1/webhooks/{made['id']}"

    _, changed, _ = await api.call("PATCH", path, token, json={"enabled": False})
    _, read, _ = await api.call("GET", path, token)
    _, secret, _ = await api.call("GET", f"{path}/secret", token)
    _, rotated, _ = await api.call("POST", f"{path}/secret/rotate", token, json={})
    disabled = await api.call("POST", f"{path}/test", token)
    await api.call("PATCH", path, token, json={"enabled": True})
    queued = await api.call("POST", f"{path}/test", token)
    _, log, _ = await api.call("GET", f"/v1/webhooks/deliveries?endpoint_id={made['id']}", token)
    again = await api.call("POST", f"/v1/webhooks/deliveries/{queued[1]['delivery_id']}/redeliver", token)
    _, page, _ = await api.call("GET", "/v1/webhooks/deliveries?limit=1", token)
    _, rest, _ = await api.call("GET", f"/v1/webhooks/deliveries?cursor={page['next_cursor']}", token)

    assert (201, path, "no-store") == (status, headers["Location"], headers["Cache-Control"])
    assert made["secret"].startswith("whsec_")
    assert made["secret"] == secret["secret"] != rotated["secret"]
    assert changed == read
    assert read["disabled_why"] == "by its owner"
    assert (404, 202, 202) == (disabled[0], queued[0], again[0])
    assert ["webhook.test"] == [delivery["type"] for delivery in log["data"]]
    assert [again[1]["delivery_id"]] == [delivery["id"] for delivery in page["data"]]
    assert [queued[1]["delivery_id"]] == [delivery["id"] for delivery in rest["data"]]
    assert (204, 404) == ((await api.call("DELETE", path, token))[0], (await api.call("GET", path, token))[0])


async def test_another_users_endpoint_answers_as_unknown(api: Operated) -> None:
    _, made, _ = await api.call(
        "POST", "/v1/webhooks", user_token("u1"), json={"url": "https://hooks.example.com/a"}
    )

    for method, tail, body in (
        ("GET", "", None), ("PATCH", "", {}), ("DELETE", "", None), ("POST", "/test", None),
        ("GET", "/secret", None), ("POST", "/secret/rotate", {}),
    ):  # fmt: skip
        answers = []
        for endpoint_id in (made["id"], uuid4(), "no-uuid"):
            status, problem, _ = await api.call(
                method, f"/v1/webhooks/{endpoint_id}{tail}", user_token("u2"), json=body,
                headers={"X-Request-Id": "same"},
            )  # fmt: skip
            answers.append((status, problem))
        assert answers[0] == answers[1] == answers[2]
        assert 404 == answers[0][0]
    assert {"data": []} == (await api.call("GET", "/v1/webhooks", user_token("u2")))[1]


@pytest.mark.parametrize(
    "body",
    [{}, {"url": "ftp://x.example"}, {"url": "http://127.0.0.1/"}, {"url": "http://[::1]:80/"},
     {"url": "http://169.254.169.254/"}, {"url": "https://u:p@x.example/"}, {"url": "https://x.example", "types": ["job.*"]},
     {"url": "https://x.example", "description": "a\u0007"}],
)  # fmt: skip
async def test_unusable_endpoints_are_422(api: Operated, body: object) -> None:
    assert 422 == (await api.call("POST", "/v1/webhooks", json=body))[0]


async def test_job_secret_is_ones_own(api: Operated) -> None:
    """A user who knew the service's secret could forge messages to its receiver."""
    _, mine, _ = await api.call("GET", "/v1/webhooks/job-secret", user_token("u1"))
    _, again, _ = await api.call("GET", "/v1/webhooks/job-secret", user_token("u1"))
    _, service, _ = await api.call("GET", "/v1/webhooks/job-secret")
    _, rotated, _ = await api.call(
        "POST", "/v1/webhooks/job-secret/rotate", user_token("u1"), json={"overlap_s": 0}
    )

    assert mine == again
    assert 3 == len({mine["secret"], service["secret"], rotated["secret"]})


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Type": "application/json"}, {"Idempotency-Key": "of-call"}]
)
async def test_a_call_whose_fields_are_all_optional_needs_no_body(
    api: Operated, headers: dict[str, str]
) -> None:
    _, key, _ = await api.call("POST", "/v1/admin/keys", json={"name": "till"})
    _, hook, _ = await api.call("POST", "/v1/webhooks", json={"url": "https://hooks.example.com/a"})
    calls = {
        ("POST", f"/v1/admin/keys/{key['id']}/rotate"): 201,
        ("POST", f"/v1/webhooks/{hook['id']}/secret/rotate"): 200,
        ("POST", "/v1/webhooks/job-secret/rotate"): 200,
        ("POST", "/v1/admin/providers/nobody/pause"): 404,
        ("PATCH", f"/v1/webhooks/{hook['id']}"): 200,
        ("PATCH", "/v1/admin/queues/ping"): 200,
        ("PATCH", "/v1/admin/users/u1"): 422,  # nothing_to_change, as with {}
    }

    given = {}
    for n, (method, path) in enumerate(calls):
        own = {
            name: f"{value}-{n}" if name == "Idempotency-Key" else value for name, value in headers.items()
        }
        given[method, path] = (await api.call(method, path, headers=own))[0]

    assert calls == given


async def test_a_stated_body_is_still_read_as_json_alone(api: Operated) -> None:
    path = "/v1/webhooks/job-secret/rotate"

    text = await api.call("POST", path, data="overlap_s=0", headers={"Content-Type": "text/plain"})
    blank = await api.call("POST", path, data=b" ", headers={"Content-Type": "application/json"})

    assert (415, 400) == (text[0], blank[0])


async def test_the_document_says_which_bodies_may_be_left_out(api: Operated) -> None:
    _, document, _ = await api.call("GET", "/openapi.json")

    required = {
        path: document["paths"][path]["post"]["requestBody"]["required"]
        for path in ("/v1/jobs", "/v1/admin/keys", "/v1/admin/keys/{key_id}/rotate")
    }

    assert {"/v1/jobs": True, "/v1/admin/keys": True, "/v1/admin/keys/{key_id}/rotate": False} == required
