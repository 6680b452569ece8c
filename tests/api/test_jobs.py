"""Jobs over HTTP: create, read, list, cancel, retry, erase; idempotency, long polls, cursors."""

from __future__ import annotations

import asyncio
import io
import json
from uuid import UUID, uuid4

import pytest
from yarl import URL

from tests.api.application import IMAGE_JOB, Api
from tests.support import eventually


async def test_created_job_can_be_read(api: Api) -> None:
    created = await api.create(metadata={"a": 1}, tags=["x"])

    status, job, response = await api.call("GET", f"/v1/jobs/{created['id']}")

    assert 200 == status
    assert 'W/"1"' == response.headers["ETag"]
    assert created | {"queue_position": 0} == job


async def test_creation_answers_with_location_id_and_times(api: Api) -> None:
    status, job, response = await api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {}})

    assert 201 == status
    assert f"/v1/jobs/{job['id']}" == response.headers["Location"]
    assert "app;dur=" in response.headers["Server-Timing"]
    assert response.headers["X-Request-Id"]
    assert 7 == UUID(job["id"]).version


PING: dict[str, object] = {"kind": "ping", "input": {}}
WRONG_FIELDS: list[tuple[object, str]] = [
    ({"kind": "ping", "input": {"sleep": 1}}, "/input/sleep"),
    ({"kind": "ping", "input": {}, "colour": 1}, "/colour"),
    ({"kind": "ping", "input": {}, "priority": "1"}, "/priority"),
    ({"kind": "ping", "input": {}, "priority": True}, "/priority"),
    ({"kind": "ping", "input": {}, "run_at": "2027-01-01T00:00:00"}, "/run_at"),
    ({"kind": "ping", "input": {}, "run_at": "0001-01-01T00:00:00Z"}, "/run_at"),
    (PING | {"run_at": "2027-01-02T00:00:00Z", "expires_at": "2027-01-01T00:00:00Z"}, "/expires_at"),
    (PING | {"run_at": "2027-01-02T00:00:00Z", "expires_at": "2027-01-02T01:00:00+01:00"}, "/expires_at"),
    ({"kind": "nothing", "input": {}}, ""),
    ({"kind": "image", "input": IMAGE_JOB["input"] | {"size_px": 1}}, "/input/size_px"),
    ({"kind": "ping", "input": {}, "metadata": {"a": "x" * 20_000}}, "/metadata"),
    ({"kind": "ping", "input": {}, "webhook": {"url": "ftp://x"}}, "/webhook/url"),
    ([], ""),
]


async def test_wrong_field_is_named_by_its_pointer(api: Api) -> None:
    for body, pointer in WRONG_FIELDS:
        status, problem, response = await api.call("POST", "/v1/jobs", json=body)
        assert 422 == status, (body, problem)
        assert "application/problem+json" == response.content_type
        assert pointer in [error["pointer"] for error in problem["errors"]], (body, problem)


async def test_a_job_that_would_expire_before_it_may_run_is_told_both_times(api: Api) -> None:
    late = PING | {"run_at": "2027-01-02T00:00:00Z", "expires_at": "2027-01-01T00:00:00Z"}

    _, problem, _ = await api.call("POST", "/v1/jobs/batch", json={"jobs": [PING, late]})

    assert ["/jobs/1/expires_at"] == [error["pointer"] for error in problem["errors"]]
    assert "run_at" in problem["detail"]


UNSAFE_BODIES = [
    b"", b"{", b"\xff\xfe", b'{"kind":"ping","input":{"echo":NaN}}', b'{"kind":"ping","kind":"ping","input":{}}',
    b'{"kind":"ping","input":{"echo":"\\u0000"}}', b'{"kind":"ping","input":{"echo":"\\ud800"}}',
    b'{"kind":"ping","input":{"echo":1e999}}', b'{"kind":"ping","input":{"echo":' + b"9" * 5000 + b"}}",
    b"[" * 100_000, b'{"a":' * 40 + b"1" + b"}" * 40, b'{"kind":"ping","input":{"echo":"' + b"x" * 100_001 + b'"}}',
    b'{"\\u0000":1}', b'{"a":"\x00"}',
]  # fmt: skip


async def test_bytes_that_are_no_safe_json_are_a_400(api: Api) -> None:
    for body in UNSAFE_BODIES:
        status, problem, _ = await api.call(
            "POST", "/v1/jobs", data=body, headers={"Content-Type": "application/json"}
        )
        assert (400, "malformed_body") == (status, problem["code"]), body[:60]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 33 + b'"' + b'\\"' * 500_000,
        b"{" + b"".join(b'"%06d":0,' % n for n in range(90_000)) + b'"089999":0}',
        b'{"kind":"ping","input":{"echo":[' + b",".join([b"[]"] * 60_000) + b"]}}",
        b'{"kind":"ping","input":{},"tags":[' + b",".join([b"1"] * 500_000) + b"]}",
    ],
    ids=[
        "a string without end",
        "one key twice, the last of many",
        "nothing but lists",
        "half a million tags",
    ],
)
async def test_a_hostile_body_is_refused_at_once(api: Api, body: bytes) -> None:
    """Reading it again for each of its quotes or keys would hold the loop, and every lease, for minutes."""
    async with asyncio.timeout(10):
        status, problem, _ = await api.call(
            "POST", "/v1/jobs", data=body, headers={"Content-Type": "application/json"}
        )

    assert (400, "malformed_body") == (status, problem["code"])


async def test_thousands_of_wrong_fields_are_counted_not_listed(api: Api) -> None:
    wrong = {f"wrong{n}": 1 for n in range(20_000)}

    status, problem, _ = await api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {}} | wrong)

    assert (422, "invalid_input", []) == (status, problem["code"], problem["errors"])
    assert "20000" in problem["detail"]


async def test_only_json_is_taken(api: Api) -> None:
    """text/plain would let a foreign page post without a preflight."""
    body = json.dumps({"kind": "ping", "input": {}})

    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
    ):
        status, problem, _ = await api.call(
            "POST", "/v1/jobs", data=body, headers={"Content-Type": content_type}
        )
        assert (415, "unsupported_media") == (status, problem["code"])


async def test_a_charsets_name_has_no_case(api: Api) -> None:
    headers = {"Content-Type": "application/json; charset=Utf-8"}

    assert 201 == (await api.call("POST", "/v1/jobs", data=b'{"kind":"ping","input":{}}', headers=headers))[0]


async def test_large_body_is_refused_by_its_declared_size(api: Api) -> None:
    status, problem, _ = await api.call(
        "POST",
        "/v1/jobs",
        data=io.BytesIO(b" " * (1 << 20) + b"{}"),
        headers={"Content-Type": "application/json"},
    )

    assert (413, "too_large") == (status, problem["code"])


async def test_same_key_a_hundred_times_at_once_makes_one_job(api: Api) -> None:
    headers = {"Idempotency-Key": '"order-1"'}

    answers = await asyncio.gather(
        *(
            api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {"echo": 1}}, headers=headers)
            for _ in range(100)
        )
    )

    good = [(job["id"], response) for status, job, response in answers if status == 201]
    assert {201} == {status for status, _, _ in answers}
    assert 1 == len({job_id for job_id, _ in good})
    assert 99 == sum(response.headers.get("Idempotency-Replayed") == "true" for _, response in good)
    assert 1 == len({json.dumps(job) for _, job, _ in answers})
    _, page, _ = await api.call("GET", "/v1/jobs")
    assert 1 == len(page["data"])


async def test_same_key_with_another_body_is_refused(api: Api) -> None:
    headers = {"Idempotency-Key": "order-1"}
    await api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {"echo": 1}}, headers=headers)

    status, problem, _ = await api.call(
        "POST", "/v1/jobs", json={"kind": "ping", "input": {}}, headers=headers
    )

    assert (422, "idempotency_key_reused") == (status, problem["code"])


async def test_key_belongs_to_its_principal(api: Api) -> None:
    headers = {"Idempotency-Key": "order-1"}
    _, one, _ = await api.call("POST", "/v1/jobs", json=IMAGE_JOB, headers=headers, user="ann")
    _, other, _ = await api.call("POST", "/v1/jobs", json=IMAGE_JOB, headers=headers, user="bob")

    assert one["id"] != other["id"]


async def test_unusable_key_is_refused(api: Api) -> None:
    for key in ("", "x" * 256, "a b", '"a', "ü"):
        status, problem, _ = await api.call(
            "POST", "/v1/jobs", json={"kind": "ping", "input": {}}, headers={"Idempotency-Key": key}
        )
        assert (422, "idempotency_key_invalid") == (status, problem["code"]), key


async def test_batch_is_all_or_nothing_and_names_the_index(api: Api) -> None:
    good = {"kind": "ping", "input": {}}

    status, problem, _ = await api.call(
        "POST", "/v1/jobs/batch", json={"jobs": [good, good | {"priority": 1000}]}
    )

    assert 422 == status
    assert ["/jobs/1/priority"] == [error["pointer"] for error in problem["errors"]]
    _, page, _ = await api.call("GET", "/v1/jobs")
    assert [] == page["data"]


async def test_batch_comes_back_in_order_and_replays(api: Api) -> None:
    jobs = [{"kind": "ping", "input": {"echo": n}} for n in range(1000)]
    headers = {"Idempotency-Key": "batch-1"}

    status, made, _ = await api.call("POST", "/v1/jobs/batch", json={"jobs": jobs}, headers=headers)
    again, same, response = await api.call("POST", "/v1/jobs/batch", json={"jobs": jobs}, headers=headers)

    assert (201, 201) == (status, again)
    assert list(range(1000)) == [job["input"]["echo"] for job in made["jobs"]]
    assert "true" == response.headers["Idempotency-Replayed"]
    assert [j["id"] for j in made["jobs"]] == [j["id"] for j in same["jobs"]]


async def test_list_walks_every_job_once_newest_first(api: Api) -> None:
    made = [(await api.create(user="ann"))["id"] for _ in range(7)]
    path, seen = "/v1/jobs?limit=3&fields=id", []

    while path:
        _, page, response = await api.call("GET", path, user="ann")
        seen += [job["id"] for job in page["data"]]
        path = str(URL(response.links["next"]["url"]).relative()) if "next" in response.links else ""

    assert made[::-1] == seen


@pytest.mark.parametrize("user", [None, "ann"])
async def test_list_filters_by_state_kind_tag_project_and_time(api: Api, user: str | None) -> None:
    project = str(uuid4())
    one = await api.create(user=user, tags=["red", "big"], project_id=project)
    await api.create(user=user, tags=["blue"])
    kind = one["kind"]

    for query in (
        "tag=red",
        f"project_id={project}",
        f"project_id={project}&state=pending,failed&kind={kind}",
    ):
        _, page, _ = await api.call("GET", f"/v1/jobs?{query}", user=user)
        assert [one["id"]] == [job["id"] for job in page["data"]]
    for query in (
        "state=failed",
        "created_before=2020-01-01T00:00:00Z",
        "created_after=2100-01-01T00:00:00%2B01:00",
    ):
        _, page, _ = await api.call("GET", f"/v1/jobs?{query}", user=user)
        assert [] == page["data"]


WRONG_QUERIES = [
    "limit=0", "limit=101", "limit=x", "state=done", "cursor=%21", "cursor=AAAA", "nothing=1", "limit=1&limit=2",
    "project_id=1", "fields=secret", "created_after=today", "tag=%00",
]  # fmt: skip


async def test_page_names_the_next_one_and_only_the_fields_asked_for(api: Api) -> None:
    for user in ("ann", "ann", "bob"):
        await api.create(user=user)

    _, page, response = await api.call("GET", "/v1/jobs?user_id=ann&limit=1&fields=id,user_id")
    link = response.headers["Link"]
    following = link[link.index("<") + 1 : link.index(">")]
    _, rest, last = await api.call("GET", following)

    assert link.endswith('; rel="next"')
    assert page["next_cursor"] in following
    assert [{"id", "user_id"}] * 2 == [set(job) for job in (*page["data"], *rest["data"])]
    assert ["ann", "ann"] == [job["user_id"] for job in (*page["data"], *rest["data"])]
    assert (None, None) == (rest["next_cursor"], last.headers.get("Link"))


async def test_wrong_query_is_a_422(api: Api) -> None:
    for query in WRONG_QUERIES:
        status, _, _ = await api.call("GET", f"/v1/jobs?{query}")
        assert 422 == status, query


async def test_unchanged_job_is_a_304(api: Api) -> None:
    job = await api.create()

    status, body, response = await api.call(
        "GET", f"/v1/jobs/{job['id']}", headers={"If-None-Match": 'W/"1"'}
    )

    assert (304, b"", 'W/"1"') == (status, body, response.headers["ETag"])


async def test_long_poll_answers_when_the_job_moves(api: Api) -> None:
    job = await api.create()
    poll = asyncio.create_task(
        api.call("GET", f"/v1/jobs/{job['id']}", headers={"If-None-Match": 'W/"1"', "Prefer": "wait=20"})
    )

    await api.claim()
    status, moved, _ = await poll

    assert (200, "processing") == (status, moved["state"])


async def test_long_poll_gives_up_with_a_304(api: Api) -> None:
    job = await api.create()

    status, _, response = await api.call(
        "GET", f"/v1/jobs/{job['id']}", headers={"If-None-Match": 'W/"1"', "Prefer": "wait=1"}
    )

    assert (304, "wait=1") == (status, response.headers["Preference-Applied"])


async def test_create_that_waits_gets_the_result(api: Api) -> None:
    create = asyncio.create_task(
        api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {}}, headers={"Prefer": "wait=20"})
    )
    claimed: list[tuple[UUID, int]] = await eventually(api.claim)
    await api.complete(claimed[0][1], '{"echo": 1}')

    status, job, response = await create

    assert (200, "completed", {"echo": 1}) == (status, job["state"], job["result"])
    assert f"/v1/jobs/{job['id']}" == response.headers["Location"]


@pytest.mark.parametrize("prefer", ["respond-async, wait=1", 'wait = "1"; soon'])
async def test_create_whose_wait_is_over_is_a_202(api: Api, prefer: str) -> None:
    status, job, response = await api.call(
        "POST", "/v1/jobs", json={"kind": "ping", "input": {}}, headers={"Prefer": prefer}
    )

    assert (202, "pending", "wait=1") == (status, job["state"], response.headers["Preference-Applied"])


async def test_cancel_is_idempotent_and_retry_revives(api: Api) -> None:
    job = await api.create()

    first, cancelled, _ = await api.call("POST", f"/v1/jobs/{job['id']}/cancel")
    again, _, _ = await api.call("POST", f"/v1/jobs/{job['id']}/cancel")
    retried, pending, _ = await api.call("POST", f"/v1/jobs/{job['id']}/retry")
    twice, problem, _ = await api.call("POST", f"/v1/jobs/{job['id']}/retry")

    assert (200, "cancelled", 200) == (first, cancelled["state"], again)
    assert (202, "pending") == (retried, pending["state"])
    assert (409, "not_retryable") == (twice, problem["code"])


async def test_keyed_retry_that_is_sent_twice_retries_once(api: Api) -> None:
    job = await api.create()
    path, key = f"/v1/jobs/{job['id']}/retry", {"Idempotency-Key": "again-1"}
    early, _, _ = await api.call("POST", path, headers=key)
    await api.call("POST", f"/v1/jobs/{job['id']}/cancel")

    first, one, _ = await api.call("POST", path, headers=key)
    second, same, response = await api.call("POST", path, headers=key)

    assert (409, 202, 202) == (early, first, second)
    assert (one, "true") == (same, response.headers["Idempotency-Replayed"])


async def test_key_left_by_a_dead_process_is_taken_over(api: Api) -> None:
    job = await api.create()
    path, key = f"/v1/jobs/{job['id']}/cancel", {"Idempotency-Key": "stop-1"}
    await api.call("POST", path, headers=key)
    await api.execute("update listingd.idempotency_keys set response = null")

    held, problem, response = await api.call("POST", path, headers=key)
    await api.execute("update listingd.idempotency_keys set created_at = now() - interval '2 minutes'")
    free, _, _ = await api.call("POST", path, headers=key)

    assert (409, "idempotency_in_flight", "1", 200) == (
        held,
        problem["code"],
        response.headers["Retry-After"],
        free,
    )


async def test_cancel_of_a_running_job_is_under_way(api: Api) -> None:
    job = await api.create()
    await api.claim()

    status, running, _ = await api.call("POST", f"/v1/jobs/{job['id']}/cancel")

    assert (202, "processing", True) == (status, running["state"], running["cancel_requested"])


async def test_erased_job_leaves_a_tombstone_only(api: Api) -> None:
    job = await api.create()
    [(job_id, fence)] = await api.claim()
    await api.add_asset(job_id, b"x")

    active, problem, _ = await api.call("DELETE", f"/v1/jobs/{job['id']}")
    await api.complete(fence)
    erased, _, _ = await api.call("DELETE", f"/v1/jobs/{job['id']}")
    gone, _, _ = await api.call("GET", f"/v1/jobs/{job['id']}")

    assert (409, "job_active", 204, 404) == (active, problem["code"], erased, gone)
    async with api.deps.db.acquire() as c:
        assert ["ping", "completed"] == list(await c.fetchrow("select kind, state from listingd.tombstones"))
        assert 0 == await c.fetchval("select count(*) from listingd.assets")


async def test_replay_after_an_erasure_is_still_the_first_answer(api: Api) -> None:
    headers = {"Idempotency-Key": "order-1"}
    body = {"kind": "ping", "input": {"echo": 1}}
    _, job, _ = await api.call("POST", "/v1/jobs", json=body, headers=headers)
    await api.call("POST", f"/v1/jobs/{job['id']}/cancel")
    await api.call("DELETE", f"/v1/jobs/{job['id']}")

    status, same, _ = await api.call("POST", "/v1/jobs", json=body, headers=headers)

    assert (201, job["id"]) == (status, same["id"])


async def test_row_that_python_cannot_read_is_still_shown(api: Api) -> None:
    """jsonb holds integers of thousands of digits; json.loads refuses them."""
    job = await api.create()
    await api.execute(
        "update listingd.jobs set input = jsonb_build_object('echo', (repeat('9', 5000))::numeric) where id = $1",
        UUID(job["id"]),
    )

    async with api.client.get(f"{api.url}/v1/jobs/{job['id']}") as response:
        assert 200 == response.status
        assert "9" * 5000 in await response.text()


async def test_failed_attempts_are_told(api: Api) -> None:
    job = await api.create()
    [(_, fence)] = await api.claim()
    await api.execute("select listingd.mark_job_failed($1, 'provider_failed', 'It said no.', true, 0)", fence)

    _, told, _ = await api.call("GET", f"/v1/jobs/{job['id']}")

    assert "pending" == told["state"]
    assert [(1, "provider_failed", "It said no.")] == [
        (a["number"], a["code"], a["message"]) for a in told["error"]["attempts"]
    ]


async def test_webhook_of_a_job_belongs_to_who_named_it(api: Api) -> None:
    """Its owner's job secret signs, and in their log it stands."""
    hook = {"webhook": {"url": "https://hooks.example/x", "events": ["job.completed"]}}
    by_user = await api.create(user="ann", **hook)
    by_service = await api.create(user_id="ann", **hook)

    async with api.deps.db.acquire() as c:
        stored = {row["id"]: row["webhook"] for row in await c.fetch("select id, webhook from listingd.jobs")}

    assert "ann" == json.loads(stored[UUID(by_user["id"])])["owner"]
    assert "" == json.loads(stored[UUID(by_service["id"])])["owner"]


async def test_private_webhook_url_is_refused_at_once(api: Api) -> None:
    job = {"kind": "ping", "input": {}, "webhook": {"url": "http://169.254.169.254/latest"}}

    _, one, _ = await api.call("POST", "/v1/jobs", json=job)
    _, batch, _ = await api.call(
        "POST", "/v1/jobs/batch", json={"jobs": [{"kind": "ping", "input": {}}, job]}
    )

    assert [("/webhook/url", "webhook_url")] == [(e["pointer"], e["code"]) for e in one["errors"]]
    assert ["/jobs/1/webhook/url"] == [e["pointer"] for e in batch["errors"]]
