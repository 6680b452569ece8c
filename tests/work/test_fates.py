"""Every row of the shared table of error classes, driven over the wire by the real SDKs.

The table is the oracle: for each row the real adapter makes one call, the server sees exactly one request,
and the error carries the fate that the row names.
"""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from daemon.errors import Fate
from daemon.providers import capped_client, cutout_http, fates, gemini, rates
from tests.protocol_servers import Fault, OpenAIServer
from tests.protocol_servers.calling import calling, fate_of
from tests.protocol_servers.error_classes import Case, http_cases


@pytest.mark.parametrize("case", http_cases(), ids=str)
async def test_row_of_the_table_over_the_wire(case: Case) -> None:
    async with calling(case.provider) as (server, call):
        server.always = case.fault

        error = await fate_of(call)

        assert case.fate == error.fate
        assert case.fault.status == error.status
        assert 1 == len(server.journal.calls)
        assert 0 == server.journal.billed_usd


@pytest.mark.parametrize("case", [c for c in http_cases() if c.provider == "gemini"], ids=str)
async def test_row_of_the_table_over_the_wire_by_google_genai(case: Case) -> None:
    async with calling("genai") as (server, call):
        server.always = case.fault

        error = await fate_of(call)

        assert (case.fate, case.fault.status) == (error.fate, error.status)
        assert 1 == len(server.journal.calls)


@pytest.mark.parametrize("name", ["openai", "removebg", "gemini", "genai"])
async def test_timeout_is_ambiguous(name: str) -> None:
    """Rows openai.APITimeoutError and requests ReadTimeout."""
    async with calling(name, timeout_s=1) as (server, call):
        server.always = Fault(delay_s=60)

        error = await fate_of(call)

        assert Fate.AMBIGUOUS is error.fate
        assert 1 == len(server.journal.calls)


@pytest.mark.parametrize("name", ["openai", "removebg", "gemini", "genai"])
async def test_refused_connection_is_retried(name: str) -> None:
    """Rows openai.APIConnectionError and requests ConnectionError: nothing was sent, nothing is billed."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    async with calling(name, url=url) as (server, call):
        error = await fate_of(call)

        assert (Fate.RETRY, "provider_unreachable") == (error.fate, error.code)
        assert [] == server.journal.calls


@pytest.mark.parametrize("name", ["openai", "removebg", "gemini", "genai"])
async def test_a_proxy_that_opens_no_way_is_retried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider was never reached: nothing is billed."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        async with calling(name, url="https://provider.invalid/v1") as (_, call):
            error = await fate_of(call)

    assert (Fate.RETRY, "provider_unreachable") == (error.fate, error.code)


@pytest.mark.parametrize("name", ["openai", "gemini", "genai"])
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "gopher://127.0.0.1:9"])
async def test_a_proxy_that_we_cannot_speak_to_is_the_operators_matter(
    name: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent: any error but the provider's own would count as a call that was perhaps paid."""
    monkeypatch.setenv("https_proxy", proxy)
    async with calling(name, url="https://127.0.0.1:9/v1") as (_, call):
        error = await fate_of(call)

    assert (Fate.CONFIG, "provider_unopened") == (error.fate, error.code)


@pytest.mark.parametrize("name", ["openai", "removebg", "gemini", "genai"])
@pytest.mark.parametrize("drop", ["before_answer", "mid_body"])
async def test_connection_lost_after_sending_is_ambiguous(name: str, drop: Any) -> None:
    """The note of row openai.APIConnectionError: the picture is lost and still billed."""
    async with calling(name) as (server, call):
        server.always = Fault(drop=drop)

        error = await fate_of(call)

        assert (Fate.AMBIGUOUS, "provider_hung_up") == (error.fate, error.code)
        assert 1 == len(server.journal.calls)
        assert server.journal.billed_usd > 0


@pytest.mark.parametrize("name", ["openai", "removebg", "gemini", "genai"])
@pytest.mark.parametrize("how", ["no TLS", "reset", "silent"])
async def test_a_handshake_that_fails_is_retried(
    name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stood, and still nothing of the request was sent: nothing is billed."""
    for module in (capped_client, cutout_http, gemini):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.5)
    is_over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        if how == "silent":
            await is_over.wait()
        if how == "no TLS":
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            writer.close()
        else:
            writer.transport.abort()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with calling(name, url=f"https://127.0.0.1:{port}/v1", timeout_s=5) as (_, call):
            error = await fate_of(call)
        is_over.set()

    assert (Fate.RETRY, "provider_unreachable") == (error.fate, error.code)


@pytest.mark.parametrize("name", ["openai", "removebg", "gemini", "genai"])
async def test_unknown_host_becomes_config_after_three_in_a_row(name: str) -> None:
    """One failure may be the resolver's; a host that is gone needs a person. `.invalid` never resolves."""
    async with calling(name, url="http://provider.invalid/v1") as (_, call):
        errors = [await fate_of(call) for _ in range(3)]

    assert [Fate.RETRY, Fate.RETRY, Fate.CONFIG] == [error.fate for error in errors]


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        ({"code": "moderation_blocked", "type": "image_generation_user_error"}, Fate.PERMANENT),
        ({"code": "insufficient_quota", "type": "insufficient_quota"}, Fate.BUDGET),
        ({"code": "billing_hard_limit_reached"}, Fate.BUDGET),
        ({"code": "rate_limit_exceeded"}, Fate.RETRY),
        ({"code": "server_error", "type": "server_error"}, Fate.RETRY),
        ({"code": None, "type": "invalid_request_error"}, Fate.PERMANENT),
    ],
)
async def test_error_event_in_a_stream_is_classified_by_its_code(error: Any, fate: Fate) -> None:
    """Row openai.APIError without status_code."""
    previews: list[int] = []
    async with calling("openai", on_partial=lambda _, at: previews.append(at)) as (server, call):
        assert isinstance(server, OpenAIServer)
        server.stream_error = {"message": "no", **error}

        caught = await fate_of(call)

        assert (fate, None) == (caught.fate, caught.status)
        assert 1 == len(server.journal.calls)
        assert [0, 1] == previews


@pytest.mark.parametrize("name", ["openai", "removebg", "gemini", "genai"])
@pytest.mark.parametrize(
    "body", [b"<html>captive portal</html>", b"{}", b"[" * 50_000, b'{"data": [7]}', b""]
)
async def test_answer_that_is_no_answer_is_retried(name: str, body: bytes) -> None:
    """Row openai.APIResponseValidationError."""
    async with calling(name) as (server, call):
        kind = "application/json" if body[:1] in (b"{", b"[") else "text/html"
        server.always = Fault(body=body, content_type=kind)

        error = await fate_of(call)

        assert Fate.RETRY is error.fate
        assert 1 == len(server.journal.calls)


async def test_moderation_details_are_kept() -> None:
    async with calling("openai") as (server, call):
        details = {"moderation_details": {"moderation_stage": "input", "categories": ["violence"]}}
        server.always = Fault(status=400, code="moderation_blocked", details=details)

        error = await fate_of(call)

    assert ("input", ["violence"]) == (error.data["moderation_stage"], error.data["categories"])
    assert "req_openai_1" == error.request_id


def test_status_429_is_classified_by_code_before_status() -> None:
    code = fates.Fault(429, code="credit_balance_exhausted")

    assert Fate.BUDGET is fates.classify(fates.OPENAI, code)[0]


def test_every_outcome_has_words_for_the_seller() -> None:
    tables = (*fates.OPENAI, *fates.REMOVEBG, *fates.GEMINI)

    assert {row.ours for row in tables} <= fates.MESSAGES.keys()


HOUR_S = 3600.0


@pytest.mark.parametrize(
    ("header", "expected_s"),
    [
        ("7", 7.0), ("0", 0.0), ("-3", 0.0), ("1.5", 1.5), ("86400", HOUR_S), ("1e300", HOUR_S),
        ("inf", HOUR_S), ("nan", HOUR_S), ("soon", None), ("", None), (None, None),
        ("Mon, 23 Nov 2026 12:00:20 GMT", 20.0), ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", HOUR_S), ("Mon, 23 Nov 2026 12:00:20", 20.0),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_never_over_an_hour(
    header: str | None, expected_s: float | None
) -> None:
    now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    assert expected_s == rates.parse_retry_after_s(header, now=now)


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [("6m0s", 360.0), ("20ms", 0.02), ("1h2m3.5s", HOUR_S), ("59.5s", 59.5), ("38s", 38.0), ("x", None),
     ("6m0", None), ("", None), ("1" * 1_000_000 + "x", None)],
)  # fmt: skip
def test_durations_of_the_providers_are_read(text: str, expected_s: float | None) -> None:
    assert expected_s == rates.parse_duration_s(text)


@pytest.mark.parametrize("name", ["openai", "removebg"])
async def test_server_s_delay_reaches_the_caller(name: str) -> None:
    """As seconds, as a date, absent, absurd."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    seen = []
    async with calling(name) as (server, call):
        for headers in ({"Retry-After": "7"}, {"Retry-After": soon}, {"Retry-After": "99999999"}):
            server.faults.append(Fault(status=429, code="rate_limit_exceeded", headers=headers))
            seen.append((await fate_of(call)).retry_after_s or 0)

    assert 7 == seen[0]
    assert 20 < seen[1] <= 30
    assert HOUR_S == seen[2]


async def test_reset_of_the_window_stands_in_for_a_missing_retry_after() -> None:
    """remove.bg: X-RateLimit-Reset minus now."""
    async with calling("removebg") as (server, call):
        server.faults.append(Fault(status=429))

        error = await fate_of(call)

    assert 30 < (error.retry_after_s or 0) <= 42
    assert 500 == error.data["rate"]["limit"]


async def test_reset_of_the_window_is_no_delay_when_the_server_only_failed() -> None:
    """The header stands in every answer of remove.bg."""
    async with calling("removebg") as (server, call):
        server.faults.append(Fault(status=500))

        error = await fate_of(call)

    assert error.retry_after_s is None
