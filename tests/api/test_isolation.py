"""P13: a user learns nothing of another, not even existence."""

from __future__ import annotations

import re
from uuid import UUID, uuid4

from daemon.api.principal import Principal
from daemon.http import ROUTES
from tests.api.application import IMAGE_JOB, Api, picture


async def _probe(
    api: Api, token: str, method: str, path: str, body: object
) -> tuple[int, bytes, dict[str, str]]:
    """Status, bytes and headers of an answer, without what differs from request to request."""
    headers = {"X-Request-Id": "probe", "Authorization": f"Bearer {token}"}
    async with api.client.request(
        method, api.url + path, headers=headers, json=body, allow_redirects=False
    ) as answer:
        told = {
            name: value
            for name, value in answer.headers.items()
            if name not in ("Date", "Server-Timing", "RateLimit")
        }
        return answer.status, await answer.read(), told


async def _own_one_of_each(api: Api, user: str) -> dict[str, str]:
    """A user's things: what stands for {id} in the paths of each topic."""
    job = await api.create(user=user, project_id=str(uuid4()))
    asset = await api.add_asset(UUID(job["id"]), picture(), user_id=user)
    url = {"url": "https://hooks.example/x"}
    _, hook, _ = await api.call("POST", "/v1/webhooks", user=user, json=url)
    _, queued, _ = await api.call("POST", f"/v1/webhooks/{hook['id']}/test", user=user)
    return {
        "jobs": job["id"], "assets": str(asset), "projects": job["project_id"], "webhooks": hook["id"],
        "deliveries": queued["delivery_id"],
    }  # fmt: skip


async def test_foreign_unknown_and_erased_ids_answer_the_same(api: Api) -> None:
    """Every route with an id in its path, whatever the method and the credentials, as the table has them.

    A route of a new topic fails here until the topic has its line in `_own_one_of_each`.
    """
    foreign = await _own_one_of_each(api, "ann")
    erased = await _own_one_of_each(api, "eve")
    for path in (f"/v1/jobs/{erased['jobs']}/cancel", f"/v1/webhooks/{erased['webhooks']}"):
        method = "POST" if path.endswith("cancel") else "DELETE"
        await api.call(method, path, user="eve")
    assert 204 == (await api.call("DELETE", f"/v1/jobs/{erased['jobs']}", user="eve"))[0]
    erased["deliveries"] = erased["projects"] = str(uuid4())  # these cannot be erased
    api.keys.principals["ld_read_eve"] = Principal(
        "token", "token:user:eve", "eve", frozenset({"read"}), ("user", "eve")
    )
    probed = []

    for token in ("user:eve", "ld_read_eve"):
        for route in api.app[ROUTES]:
            if "{id}" not in route.path or route.scope == "admin":
                continue
            topic = "deliveries" if "deliveries" in route.path else route.path.split("/")[2]
            body = {} if route.body is not None else None
            ids = [str(uuid4()), foreign[topic], erased[topic], "-" * 36, "%00"]
            answers = [
                await _probe(api, token, route.method, route.path.replace("{id}", i), body) for i in ids
            ]
            assert answers[0][0] in ((404,) if token == "user:eve" else (403, 404)), (route.path, answers[0])
            assert [answers[0]] * len(ids) == answers, (route.method, route.path)
            probed.append(route.path)

    assert {"/v1/jobs/{id}/archive", "/v1/webhooks/deliveries/{id}/redeliver", "/v1/assets/{id}"} <= set(
        probed
    )


async def test_admin_routes_tell_users_nothing(api: Api) -> None:
    for route in api.app[ROUTES]:
        if route.scope == "admin":
            body = {} if route.body is not None else None
            answers = [
                await _probe(api, "user:eve", route.method, re.sub(r"{\w+}", name, route.path), body)
                for name in ("ping", "x" * 12, str(uuid4()))
            ]
            assert 403 == answers[0][0], route.path
            assert [answers[0]] * 3 == answers, route.path


async def test_lists_and_filters_show_own_jobs_only(api: Api) -> None:
    project = str(uuid4())
    ann = await api.create(user="ann", project_id=project, tags=["t"])
    eve = await api.create(user_id="eve", project_id=project, tags=["t"])  # a service may share one

    for query in ("", "tag=t", f"project_id={project}", f"parent_id={ann['id']}", "state=pending"):
        _, page, _ = await api.call("GET", f"/v1/jobs?{query}", user="eve")
        assert {job["id"] for job in page["data"]} <= {eve["id"]}, query
    status, _, _ = await api.call("GET", "/v1/jobs?user_id=ann", user="eve")
    assert 422 == status


async def test_nobody_makes_jobs_in_the_project_of_another(api: Api) -> None:
    """They would count against its budget, and what is left of that would be told."""
    project = str(uuid4())
    await api.create(user="ann", project_id=project)
    job = {"kind": "image", "input": IMAGE_JOB["input"], "project_id": project}

    for path, body in (("/v1/jobs", job), ("/v1/jobs/batch", {"jobs": [job | {"project_id": None}, job]})):
        status, problem, _ = await api.call("POST", path, user="eve", json=body)
        assert (404, "not_found") == (status, problem["code"])
    assert [] == (await api.call("GET", "/v1/jobs", user="eve"))[1]["data"]
    await api.create(user="ann", project_id=project)


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
    for body in (
        {"kind": "image", "input": {"product": {"title": 5}, "photo": secret}},
        {"kind": secret, "input": {}},
    ):
        status, problem, _ = await api.call("POST", "/v1/jobs", json=body)

        assert 422 == status
        assert not re.search(secret, str(problem))
