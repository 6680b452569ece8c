"""The server itself: slow and silent clients, wrong hosts and methods, headers, CORS, gzip, limits, stopping."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from daemon.api.problem_pages import PAGES
from daemon.errors import Misconfigured
from daemon.http import ROUTES, serve
from daemon.settings import Http
from tests.api.application import IMAGE_JOB, SERVICE_KEY, Api
from tests.support import eventually


async def _raw(api: Api, data: bytes, *, then: bytes = b"") -> bytes:
    """Everything the server sends back to these bytes until it closes; `then` goes out after the first answer."""
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        async with asyncio.timeout(10):
            first = b""
            if then:
                first = await reader.readuntil(b"}")
                writer.write(then)
            return first + await reader.read()
    finally:
        writer.close()


async def test_silent_slow_head_and_slow_body_connections_are_closed(configured: Any) -> None:
    async with configured(header_timeout_s=0.3, body_timeout_s=0.3) as api:
        silent = await _raw(api, b"")
        slow_head = await _raw(api, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ")
        second = await _raw(api, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", then=b"GET /livez HTTP")
        slow_body = await _raw(
            api,
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n"
            b"Authorization: Bearer " + SERVICE_KEY.encode() + b"\r\n\r\n{",
        )

    assert (b"", b"") == (silent, slow_head)
    assert 1 == second.count(b"HTTP/1.1 200")
    assert slow_body.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in slow_body


async def test_no_http_is_a_problem_without_versions(api: Api) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
    ):
        answer = await _raw(api, data)
        assert re.match(rb"HTTP/1\.[01] 400", answer), answer[:100]
        assert b"application/problem+json" in answer
        assert not re.search(rb"(?i)aiohttp|python|traceback", answer)


@pytest.mark.parametrize(
    "target", [b"GET http://xn--a/livez", b"GET http://xn--/livez", b"CONNECT xn--a:443"]
)
async def test_target_whose_host_cannot_be_read_is_a_400_and_no_open_connection(
    api: Api, target: bytes
) -> None:
    """aiohttp gave no answer and left such connections open for ever."""
    answer = await _raw(api, target + b" HTTP/1.1\r\nHost: x\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 400")
    assert b"bad_request" in answer


async def test_too_large_heads_are_a_400(api: Api) -> None:
    """One long field, or a thousand: refused before anything is made of them."""
    many = b"".join(b"X-%d: a\r\n" % number for number in range(1000))
    for head in (b"X-A: " + b"a" * 9000 + b"\r\n", many):
        answer = await _raw(api, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
        assert re.match(rb"HTTP/1\.[01] 400", answer), (head[:20], answer[:100])


async def test_connections_beyond_the_cap_are_told_and_closed(configured: Any) -> None:
    async with configured(max_connections=2) as api:
        host, port = api.url.removeprefix("http://").split(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]

        async def refused() -> bytes:
            answer = await _raw(api, b"")
            return answer if answer.startswith(b"HTTP/1.1 503") else b""

        answer = await eventually(refused)
        for _, writer in held:
            writer.close()

    assert b"too_many_connections" in answer


async def test_every_answer_wears_security_headers(api: Api) -> None:
    for method, path in (
        ("GET", "/livez"),
        ("GET", "/v1/jobs/nothing"),
        ("GET", "/nowhere"),
        ("POST", "/v1/jobs"),
    ):
        _, _, response = await api.call(method, path)
        assert "listingd" == response.headers["Server"]
        assert "nosniff" == response.headers["X-Content-Type-Options"]
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Request-Id"]


async def test_request_id_is_taken_only_when_harmless(api: Api) -> None:
    _, _, kept = await api.call("GET", "/livez", headers={"X-Request-Id": "abc.1_2-3"})
    _, _, replaced = await api.call("GET", "/livez", headers={"X-Request-Id": "a b"})

    assert "abc.1_2-3" == kept.headers["X-Request-Id"]
    assert "a b" != replaced.headers["X-Request-Id"]


async def test_wrong_method_names_the_right_ones(api: Api) -> None:
    status, problem, response = await api.call("PUT", "/v1/jobs")

    assert (405, "method_not_allowed") == (status, problem["code"])
    assert {"GET", "HEAD", "POST", "OPTIONS"} == set(response.headers["Allow"].split(", "))


async def test_an_unknown_expectation_is_a_problem(api: Api) -> None:
    status, problem, answer = await api.call("GET", "/v1/jobs", headers={"Expect": "tea"})

    assert (417, "expectation_failed") == (status, problem["code"])
    assert problem["request_id"] == answer.headers["X-Request-Id"]


async def test_a_body_that_waits_for_100_continue_is_let_come(api: Api) -> None:
    status, job, _ = await api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {}}, expect100=True)

    assert (201, "ping") == (status, job["kind"])


async def test_missing_credentials_are_challenged(api: Api) -> None:
    status, problem, response = await api.call("GET", "/v1/jobs", headers={"Authorization": ""})

    assert (401, "unauthenticated") == (status, problem["code"])
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_unacceptable_type_is_a_406(api: Api) -> None:
    for accept, expected in (
        ("text/html", 406),
        ("application/*;q=0.5", 200),
        ("application/json;q=0", 406),
        ("a/b, */*", 200),
    ):
        status, _, _ = await api.call("GET", "/v1/jobs", headers={"Accept": accept})
        assert expected == status, accept


async def test_only_listed_hosts_are_served(configured: Any) -> None:
    async with configured(allowed_hosts=("api.example.com",)) as api:
        foreign, problem, _ = await api.call("GET", "/livez")
        own, _, _ = await api.call("GET", "/livez", headers={"Host": "API.example.com:443"})

    assert (421, "host_unknown", 200) == (foreign, problem["code"], own)


async def test_cors_is_for_listed_origins(configured: Any) -> None:
    async with configured(cors_origins=("https://app.example.com",)) as api:
        ask = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
        status, _, preflight = await api.call("OPTIONS", "/v1/jobs", headers=ask)
        _, _, own = await api.call("GET", "/v1/jobs", headers={"Origin": "https://app.example.com"})
        refused, _, _ = await api.call(
            "OPTIONS", "/v1/jobs", headers=ask | {"Origin": "https://evil.example.com"}
        )
        _, _, foreign = await api.call("GET", "/v1/jobs", headers={"Origin": "https://evil.example.com"})
        _, _, chosen = await api.call("GET", "/v1/usage", headers={"Origin": "https://app.example.com"})
        methods = {route.method for route in api.app[ROUTES]}

    assert 204 == status
    assert methods == set(preflight.headers["Access-Control-Allow-Methods"].split(", "))
    assert "Accept, Origin, Accept-Encoding" == chosen.headers["Vary"]
    assert "Idempotency-Key" in preflight.headers["Access-Control-Allow-Headers"]
    assert "https://app.example.com" == own.headers["Access-Control-Allow-Origin"]
    assert "Origin" in own.headers["Vary"]
    assert "Content-Range" in own.headers["Access-Control-Expose-Headers"]
    assert 405 == refused
    assert "Access-Control-Allow-Origin" not in foreign.headers


async def test_large_json_is_compressed_when_asked_for(api: Api) -> None:
    for wanted, encoding in (("gzip", b"gzip"), ("identity", b""), ("gzip;q=0", b"")):
        answer = await _raw(
            api,
            f"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept-Encoding: {wanted}\r\n\r\n".encode(),
        )
        head, _, body = answer.partition(b"\r\n\r\n")
        assert encoding == (re.search(rb"(?i)content-encoding: (\w+)", head) or [b"", b""])[1]
        if encoding:
            assert json.loads(gzip.decompress(body) if b"chunked" not in head else _unchunk(body))["openapi"]


def _unchunk(body: bytes) -> bytes:
    joined = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        joined, body = joined + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return gzip.decompress(joined)


async def test_users_are_limited_and_told_how_far(settings: Any, db: Any, storage: Any) -> None:
    from tests.api.application import running_api

    own = settings.model_copy(
        update={"http": Http(port=0), "limits": settings.limits.model_copy(update={"requests_per_minute": 2})}
    )
    async with running_api(own, db, storage) as api:
        answers = [await api.call("GET", "/v1/jobs", user="ann") for _ in range(3)]
        other, _, _ = await api.call("GET", "/v1/jobs", user="bob")
        service = [(await api.call("GET", "/v1/jobs"))[0] for _ in range(4)]

    assert [200, 200, 429] == [status for status, _, _ in answers]
    assert '"requests";q=2;w=60' == answers[0][2].headers["RateLimit-Policy"]
    assert answers[0][2].headers["RateLimit"].startswith('"requests";r=1;t=')
    assert 1 <= int(answers[2][2].headers["Retry-After"]) <= 30
    assert (200, [200] * 4) == (other, service)


async def test_only_trusted_proxies_name_the_client(configured: Any) -> None:
    seen: list[str | None] = []
    for proxies in ((), ("127.0.0.0/8", "10.0.0.0/8")):
        async with configured(trusted_proxies=proxies) as api:
            plain = api.keys.authenticate

            async def authenticate(request: Any, plain: Any = plain) -> Any:
                seen.append(request.remote)
                return await plain(request)

            api.keys.authenticate = authenticate
            forwarded = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9, 10.1.1.1"}
            status, _, _ = await api.call("POST", "/v1/jobs", json=IMAGE_JOB, headers=forwarded)
            assert 201 == status

    assert ["127.0.0.1", "203.0.113.9"] == seen


async def test_an_answer_behind_a_trusted_proxy_wears_all_its_headers(configured: Any) -> None:
    async with configured(trusted_proxies=("127.0.0.0/8",)) as api:
        headers = {"X-Forwarded-For": "203.0.113.9", "X-Request-Id": "mine"}
        _, _, answer = await api.call("GET", "/v1/jobs", user="ann", headers=headers)

    assert "mine" == answer.headers.get("X-Request-Id")
    assert {"Server-Timing", "RateLimit", "RateLimit-Policy"} <= answer.headers.keys()


async def test_draining_takes_no_new_work_but_answers(api: Api) -> None:
    job = await api.create()
    api.draining.append(True)

    status, problem, response = await api.call("POST", "/v1/jobs", json={"kind": "ping", "input": {}})
    read, _, _ = await api.call("GET", f"/v1/jobs/{job['id']}")
    ready, _, _ = await api.call("GET", "/readyz")
    alive, _, _ = await api.call("GET", "/livez")

    assert (503, "draining", "2") == (status, problem["code"], response.headers["Retry-After"])
    assert (200, 503, 200) == (read, ready, alive)
    assert "close" == response.headers["Connection"]


async def test_without_database_calls_answer_503_and_livez_200(api: Api) -> None:
    await api.deps.db.close()

    status, problem, response = await api.call("GET", "/v1/jobs")
    alive, _, _ = await api.call("GET", "/livez")

    assert (503, "unavailable", True, "1", 200) == (
        status, problem["code"], problem["retryable"], response.headers["Retry-After"], alive
    )  # fmt: skip


async def test_bug_is_a_500_that_says_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(type(api.deps.views), "read_project", broken)
    status, problem, response = await api.call("GET", "/v1/projects/0190c2e4-9b1a-7cc3-8b3f-0a3c7b1f9d11")

    assert (500, "internal") == (status, problem["code"])
    assert "hunter2" not in json.dumps(problem)
    assert problem["request_id"] == response.headers["X-Request-Id"]


async def test_address_in_use_is_an_operators_error(api: Api) -> None:
    from daemon.http import build_app

    taken = int(api.url.rpartition(":")[2])
    settings = api.deps.settings.model_copy(update={"http": Http(port=taken)})

    with pytest.raises(Misconfigured) as raised:
        async with serve(build_app(api.deps), settings):
            raise AssertionError("two servers on one port")
    assert "LISTINGD_HTTP__PORT" in raised.value.hint


async def test_pages_use_no_foreign_host(api: Api) -> None:
    for path in (
        "/",
        "/docs",
        "/static/docs.js",
        "/static/index.js",
        "/static/style.css",
        "/problems/invalid_input",
    ):
        status, body, response = await api.call("GET", path, headers={"Authorization": ""})
        assert 200 == status, path
        assert not re.search(rb"https?://", body), path
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        if response.content_type == "text/html":
            assert b'name="viewport"' in body, f"{path} is tiny on a phone"
            assert b"`" not in body, f"{path} shows marks of code"
            assert b'rel="icon"' in body, (
                f"{path} makes browsers ask for /favicon.ico, a 404 in every console"
            )
    for path in ("/static/secret", "/static/..%2f..%2fhttp.py", "/problems/none"):
        assert 404 == (await api.call("GET", path))[0], path


async def test_no_page_leads_to_docs_that_are_switched_off(configured: Any) -> None:
    async with configured(docs=False) as api:
        paths = ("/", *(f"/problems/{code}" for code in PAGES))
        pages = [(await api.call("GET", path))[1] for path in paths]
        switched_off = (await api.call("GET", "/docs"))[0]

    assert 404 == switched_off
    assert not any(b"/docs" in page or b"openapi" in page for page in pages)


async def test_system_pages_need_no_credentials(api: Api) -> None:
    for path in ("/livez", "/readyz", "/version", "/metrics", "/openapi.json"):
        status, _, _ = await api.call("GET", path, headers={"Authorization": ""})
        assert 200 == status, path


def test_every_error_code_of_the_api_has_a_page() -> None:
    """`type` of a problem is a link: it must lead somewhere."""
    daemon = Path(__file__).parent.parent.parent / "daemon"
    files = [
        *(daemon / "api").glob("*.py"),
        daemon / "errors.py",
        daemon / "queue.py",
        daemon / "steps.py",
        daemon / "imaging" / "codec.py",
    ]
    codes = {code for path in files for code in re.findall(r'\bcode ?= ?"([a-z_]+)"', path.read_text())}

    kept_inside = {"provider_failed", "retry", "rejected", "lost", "answered_late"}
    assert set() == codes - PAGES.keys() - kept_inside
