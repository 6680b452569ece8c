"""Idempotency-Key on every POST: what it made once is given again, whatever was made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from daemon.api.idempotency import Idempotency
from daemon.api.principal import PRINCIPAL, Principal
from daemon.db import Database
from daemon.housekeeping import DAY_S
from daemon.settings import Settings
from tests.api.operated import FIRST, Operated, operated, user_token
from tests.support import eventually

ENDPOINT = {"url": "https://hooks.example/x"}


@pytest.fixture
async def api(settings: Settings, db: Database) -> AsyncIterator[Operated]:
    async with operated(settings, db) as started:
        yield started


def _key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid4())}


async def test_every_post_of_the_document_takes_a_key(api: Operated) -> None:
    _, document, _ = await api.call("GET", "/openapi.json")

    for path, calls in document["paths"].items():
        for method, call in calls.items():
            names = {parameter["name"] for parameter in call["parameters"]}
            assert (method == "post") == ("Idempotency-Key" in names), (method, path)
            if method == "post":
                assert {"409", "422"} <= call["responses"].keys(), path


async def test_every_post_answers_the_same_twice(api: Operated) -> None:
    """Of the routes that are there, whichever they are; those without a body of ours here fail twice alike."""
    job = {"kind": "ping", "input": {}}
    _, made, _ = await api.call("POST", "/v1/jobs", json=job)
    _, hook, _ = await api.call("POST", "/v1/webhooks", json=ENDPOINT)
    _, service_key, _ = await api.call("POST", "/v1/admin/keys", json={"name": "k"})
    bodies: dict[str, Any] = {
        "/v1/jobs": job,
        "/v1/jobs/batch": {"jobs": [job, job]},
        "/v1/estimate": job,
        "/v1/tokens": {"scope": f"job:{made['id']}"},
        "/v1/webhooks": ENDPOINT,
        "/v1/admin/keys": {"name": "two"},
    }
    ids = {"webhooks": hook["id"], "jobs": made["id"], "admin": service_key["id"]}
    _, document, _ = await api.call("GET", "/openapi.json")
    replayed = set()

    for path, calls in document["paths"].items():
        if "post" not in calls or path == "/v1/uploads":  # test_files.py has it
            continue
        real = path.replace("{id}", ids.get(path.split("/")[2], str(uuid4())))
        real = real.replace("{key_id}", service_key["id"]).replace("{name}", "nobody")
        body = {} if "requestBody" not in calls["post"] else {"json": bodies.get(path, {})}
        headers = _key()
        first = await api.call("POST", real, headers=headers, **body)
        again = await api.call("POST", real, headers=headers, **body)
        assert first[0] == again[0], (path, first, again)
        if first[0] < 300:
            assert first[1] == again[1], path
            assert "true" == again[2].get("Idempotency-Replayed"), path
            assert first[2].get("Location") == again[2].get("Location"), path
            replayed.add(path)

    assert bodies.keys() <= replayed
    assert {
        "/v1/jobs/{id}/cancel",
        "/v1/webhooks/{id}/secret/rotate",
        "/v1/admin/keys/{key_id}/rotate",
    } <= replayed


async def test_key_of_another_body_or_path_is_refused(api: Operated) -> None:
    headers = _key()
    await api.call("POST", "/v1/webhooks", headers=headers, json=ENDPOINT)

    other_body = await api.call("POST", "/v1/webhooks", headers=headers, json=ENDPOINT | {"description": "d"})
    other_path = await api.call("POST", "/v1/admin/keys", headers=headers, json=ENDPOINT)

    assert [(422, "idempotency_key_reused")] * 2 == [(s, p["code"]) for s, p, _ in (other_body, other_path)]
    assert 1 == len((await api.call("GET", "/v1/webhooks"))[1]["data"])


@pytest.mark.parametrize("first_call", ["in flight", "answered", "of another body"])
async def test_a_key_taken_by_two_calls_at_once_goes_to_one_of_them(api: Operated, first_call: str) -> None:
    """The second's statement waits for the first's row, which is younger than what the statement sees."""
    await api.call("POST", "/v1/webhooks", headers={"Idempotency-Key": "earlier"}, json=ENDPOINT)
    async with api.db.acquire() as c:
        async with c.transaction():
            await c.execute(
                "insert into listingd.idempotency_keys (principal, key, fingerprint, response)"
                " select i.principal, 'both', case $1 when 'of another body' then '' else i.fingerprint end,"
                " case $1 when 'answered' then i.response end from listingd.idempotency_keys as i", first_call,
            )  # fmt: skip
            second = asyncio.create_task(
                api.call("POST", "/v1/webhooks", headers={"Idempotency-Key": "both"}, json=ENDPOINT)
            )
            await eventually(lambda: c.fetch("select from pg_locks where not granted"))
        status, body, headers = await second

    told = (status, body.get("code"), headers.get("Retry-After"), headers.get("Idempotency-Replayed"))
    expected = {
        "in flight": (409, "idempotency_in_flight", "1", None),
        "answered": (201, None, None, "true"),
        "of another body": (422, "idempotency_key_reused", None, None),
    }
    assert expected[first_call] == told
    assert 1 == len((await api.call("GET", "/v1/webhooks"))[1]["data"])


async def test_a_caller_that_hangs_up_and_comes_back_gets_the_answer_of_the_first_call(db: Database) -> None:
    idempotency = Idempotency(db)
    request = make_mocked_request("POST", "/v1/webhooks", headers=_key())
    request[PRINCIPAL] = Principal("service", "key:test")
    begun, go_on, made = asyncio.Event(), asyncio.Event(), []

    async def call(_: web.Request) -> web.Response:
        made.append(1)
        begun.set()
        await go_on.wait()
        return web.json_response({"number": len(made)}, status=201)

    first = asyncio.create_task(idempotency.once(request, call, content=""))
    await begun.wait()
    first.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = await idempotency.once(request, call, content="")

    assert isinstance(second, web.Response)
    assert ("true", b'{"number": 1}') == (second.headers["Idempotency-Replayed"], second.body)


async def test_refused_call_leaves_its_key_free(api: Operated) -> None:
    headers = _key()
    assert 422 == (await api.call("POST", "/v1/webhooks", headers=headers, json={}))[0]

    assert 201 == (await api.call("POST", "/v1/webhooks", headers=headers, json=ENDPOINT))[0]


async def test_key_of_two_callers_is_two_keys(api: Operated) -> None:
    headers = _key()
    _, mine, _ = await api.call("POST", "/v1/webhooks", user_token("ann"), headers=headers, json=ENDPOINT)
    _, theirs, _ = await api.call("POST", "/v1/webhooks", user_token("eve"), headers=headers, json=ENDPOINT)

    assert mine["id"] != theirs["id"]


async def test_keys_are_kept_for_a_day(api: Operated) -> None:
    for age, headers in (("23 hours", _key()), ("25 hours", _key())):
        await api.call("POST", "/v1/webhooks", headers=headers, json=ENDPOINT)
        await api.db.pool.execute(
            "update listingd.idempotency_keys set created_at = now() - $2::text::interval where key = $1",
            headers["Idempotency-Key"], age,
        )  # fmt: skip

    await api.db.fetch("prune_idempotency_keys", DAY_S, 1000)

    assert 1 == await api.db.pool.fetchval("select count(*) from listingd.idempotency_keys")


async def test_service_key_is_not_readable_in_the_database(api: Operated) -> None:
    """At rest there is only the hash of a key; the kept answer must not undo that."""
    headers = _key()
    _, made, _ = await api.call("POST", "/v1/admin/keys", headers=headers, json={"name": "k"})

    kept = await api.db.pool.fetchval("select response::text from listingd.idempotency_keys")

    assert made["token"] not in kept
    assert made["id"] not in kept
    assert 201 == json.loads(kept)["status"]
    _, again, _ = await api.call("POST", "/v1/admin/keys", headers=headers, json={"name": "k"})
    assert made == again


async def test_sealed_answer_opens_for_its_credentials_alone(api: Operated) -> None:
    _, other, _ = await api.call("POST", "/v1/admin/keys", json={"name": "o", "scopes": ["admin"]})
    headers = _key()
    await api.call("POST", "/v1/admin/keys", other["token"], headers=headers, json={"name": "k"})
    await api.db.pool.execute("update listingd.idempotency_keys set principal = 'key:first'")

    status, problem, _ = await api.call("POST", "/v1/admin/keys", FIRST, headers=headers, json={"name": "k"})

    assert (409, "idempotency_sealed") == (status, problem["code"])
