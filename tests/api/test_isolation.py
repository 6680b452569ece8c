"""P13: a user learns nothing of another, not even existence."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID, uuid4

from daemon.http import ROUTES
from tests.api.application import Api, picture


async def _probe(api: Api, method: str, path: str, **kw: Any) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of an answer, without what differs from request to request."""
    status, body, response = await api.call(method, path, headers={"X-Request-Id": "probe"}, user="eve", **kw)
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("Date", "Server-Timing", "RateLimit")
    }
    return status, str(body), headers


async def test_foreign_unknown_and_erased_ids_answer_the_same(api: Api) -> None:
    """Every route with an id, whatever the method."""
    mine = await api.create(user="ann", project_id=str(uuid4()))
    asset = await api.add_asset(UUID(mine["id"]), picture(), user_id="ann")
    erased = await api.create(user="eve")
    await api.call("POST", f"/v1/jobs/{erased['id']}/cancel", user="eve")
    await api.call("DELETE", f"/v1/jobs/{erased['id']}", user="eve")
    foreign = {"assets": str(asset), "projects": mine["project_id"]}
    probed = 0

    for route in api.app[ROUTES]:
        if "{id}" not in route.path or route.scope == "admin":
            continue
        topic = route.path.split("/")[2]
        body: dict[str, Any] = {"json": {}} if route.body is not None else {}
        ids = [str(uuid4()), foreign.get(topic, mine["id"]), erased["id"], "-" * 36]
        answers = [await _probe(api, route.method, route.path.replace("{id}", i), **body) for i in ids]
        assert 404 == answers[0][0] or body, (route.path, answers[0])
        assert all(answer == answers[0] for answer in answers), (route.path, answers)
        assert 404 == (await _probe(api, route.method, route.path.replace("{id}", "%00"), **body))[0]
        probed += 1

    assert probed >= 8


async def test_lists_and_filters_show_own_jobs_only(api: Api) -> None:
    project = str(uuid4())
    ann = await api.create(user="ann", project_id=project, tags=["t"])
    eve = await api.create(user="eve", project_id=project, tags=["t"])

    for query in ("", "tag=t", f"project_id={project}", f"parent_id={ann['id']}", "state=pending"):
        _, page, _ = await api.call("GET", f"/v1/jobs?{query}", user="eve")
        assert {job["id"] for job in page["data"]} <= {eve["id"]}, query
    status, _, _ = await api.call("GET", "/v1/jobs?user_id=ann", user="eve")
    assert 422 == status


async def test_deliveries_are_no_jobs(api: Api) -> None:
    """A webhook's delivery is a job inside; to its owner it stands in the log of deliveries alone."""
    mine = await api.create(user="ann")
    async with api.deps.db.acquire() as c:
        await c.execute(
            "select listingd.queue_webhook_event('job.completed', 'ann', '{}', "
            '\'{"url": "https://hooks.example/x", "owner": "ann"}\')'
        )
        delivery = await c.fetchval("select id from listingd.jobs where kind = 'webhook'")

    for who in ("ann", None):
        _, page, _ = await api.call("GET", "/v1/jobs", user=who)
        assert [mine["id"]] == [job["id"] for job in page["data"]]
        for method, path in (
            ("GET", ""), ("GET", "/events"), ("GET", "/archive"), ("POST", "/cancel"), ("POST", "/retry"), ("DELETE", ""),
        ):  # fmt: skip
            assert 404 == (await api.call(method, f"/v1/jobs/{delivery}{path}", user=who))[0], (method, path)
        token = {"scope": f"job:{delivery}"}
        assert 404 == (await api.call("POST", "/v1/tokens", user=who, json=token))[0]
    _, log, _ = await api.call("GET", "/v1/webhooks/deliveries", user="ann")
    assert [(str(delivery), "pending")] == [(d["id"], d["state"]) for d in log["data"]]


async def test_user_cannot_create_for_another_or_ping(api: Api) -> None:
    ping, problem, _ = await api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {}}, user="eve")

    assert (403, "scope_missing") == (ping, problem["code"])


async def test_problem_repeats_nothing_that_was_sent(api: Api) -> None:
    secret = "sk-verysecretvalue"
    status, problem, _ = await api.call(
        "POST",
        "/v1/jobs",
        json={"kind": "image", "input": {"product": {"title": 5}, secret[:0] + "photo": secret}},
    )

    assert 422 == status
    assert not re.search(secret, str(problem))
