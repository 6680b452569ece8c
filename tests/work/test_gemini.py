"""Both Google SDKs, behind one protocol, against a server that speaks Gemini's REST."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from daemon.errors import Fate, ProviderError
from daemon.providers import gemini_wire
from daemon.providers.gemini import GeminiText
from daemon.providers.gemini_wire import TokenPrices
from daemon.providers.genai import GenaiText
from daemon.providers.protocols import JsonRequest, Usage
from tests.protocol_servers import Fault, GeminiServer
from tests.protocol_servers.samples import product_photo

Open = Callable[..., GeminiText | GenaiText]


class Point(BaseModel):
    headline: str = Field(max_length=40, pattern="^[A-Z]")
    weight: int | None = None


class Draft(BaseModel):
    title: str = "untitled"
    tone: Literal["calm", "loud"]
    points: list[Point] = Field(min_length=2, max_length=5)


@pytest.fixture
async def server() -> AsyncIterator[GeminiServer]:
    async with GeminiServer() as running:
        yield running


@pytest.fixture(params=[GeminiText, GenaiText], ids=["generativeai", "genai"])
async def open_provider(request: pytest.FixtureRequest, server: GeminiServer) -> AsyncIterator[Open]:
    async for build in opener(request.param, server):
        yield build


@pytest.fixture
async def open_threaded(server: GeminiServer) -> AsyncIterator[Open]:
    async for build in opener(GeminiText, server):
        yield build


async def opener(kind: Any, server: GeminiServer) -> AsyncIterator[Open]:
    opened: list[Any] = []

    def build(**changes: Any) -> Any:
        given: dict[str, Any] = {
            "api_key": server.api_key,
            "base_url": server.url,
            "model": "gemini-3.8-flash",
            "prices": TokenPrices(),
        }
        opened.append(kind(**(given | changes)))
        return opened[-1]

    yield build
    for provider in opened:
        await provider.close()


def ask(**changes: Any) -> JsonRequest:
    given: dict[str, Any] = {"prompt": "Write about a mug", "schema": Draft.model_json_schema()}
    return JsonRequest(**(given | changes))


async def test_document_fits_the_schema(server: GeminiServer, open_provider: Open) -> None:
    answer = await open_provider().generate_json(ask(images=(product_photo(),)), timeout_s=20)

    Draft.model_validate({**json.loads(answer.text), "title": "A"})
    assert ("STOP", "gemini-3.8-flash") == (answer.finish, answer.model)
    (body,) = server.bodies
    parts = body["contents"][0]["parts"]
    assert "Write about a mug" == parts[0]["text"]
    assert "image/jpeg" == parts[1]["inlineData"]["mimeType"]
    assert body["generationConfig"].keys() == {"responseMimeType", "responseSchema", "maxOutputTokens"}


async def test_cost_is_what_the_server_billed_thoughts_included(
    server: GeminiServer, open_provider: Open
) -> None:
    server.thoughts_tokens = 5000
    provider = open_provider()

    answer = await provider.generate_json(ask(), timeout_s=20)

    assert server.journal.billed_usd == answer.usage.cost_usd
    assert answer.usage.cost_usd <= provider.estimate_usd(ask())


async def test_estimate_is_never_below_the_bill_whatever_the_language(
    server: GeminiServer, open_provider: Open
) -> None:
    """A budget that reserves less than is billed can be overshot."""
    request = ask(prompt="\u9676\u5668\u306e\u8d64\u3044\u30de\u30b0" * 1000, max_output_tokens=1000)
    server.thoughts_tokens, server.finish = 930, "MAX_TOKENS"
    provider = open_provider()

    answer = await provider.generate_json(request, timeout_s=20)

    assert 930 < answer.usage.units["output_tokens"] <= 1000
    assert answer.usage.cost_usd <= provider.estimate_usd(request)


async def test_answer_cut_short_is_handed_on_with_its_price(
    server: GeminiServer, open_provider: Open
) -> None:
    """It is paid for: the second round, with a larger limit, must start from its checkpoint."""
    server.finish = "MAX_TOKENS"

    answer = await open_provider().generate_json(ask(), timeout_s=20)

    assert "MAX_TOKENS" == answer.finish
    assert server.journal.billed_usd == answer.usage.cost_usd


@pytest.mark.parametrize(
    ("finish", "fate"),
    [
        ("SAFETY", Fate.PERMANENT),
        ("RECITATION", Fate.PERMANENT),
        ("BLOCKLIST", Fate.PERMANENT),
        ("PROHIBITED_CONTENT", Fate.PERMANENT),
        ("SPII", Fate.PERMANENT),
        ("LANGUAGE", Fate.PERMANENT),
        ("OTHER", Fate.RETRY),
        ("FINISH_REASON_UNSPECIFIED", Fate.RETRY),
        ("MALFORMED_RESPONSE", Fate.RETRY),
        (None, Fate.RETRY),
    ],
)
async def test_finish_reason_decides_the_fate(
    server: GeminiServer, open_provider: Open, finish: str | None, fate: Fate
) -> None:
    server.finish = finish

    with pytest.raises(ProviderError) as caught:
        await open_provider().generate_json(ask(), timeout_s=20)

    assert fate is caught.value.fate
    assert server.journal.billed_usd == Decimal(caught.value.data["cost_usd"])
    assert 1 == len(server.journal.calls)


async def test_finish_reason_the_sdk_does_not_know_is_retried(
    server: GeminiServer, open_threaded: Open
) -> None:
    """Over REST such reasons come as bare integers."""
    server.finish = 77

    with pytest.raises(ProviderError) as caught:
        await open_threaded().generate_json(ask(), timeout_s=20)

    assert (Fate.RETRY, "UNKNOWN_77") == (caught.value.fate, caught.value.data["finish"])


async def test_blocked_prompt_is_permanent(server: GeminiServer, open_provider: Open) -> None:
    server.block_reason = "PROHIBITED_CONTENT"

    with pytest.raises(ProviderError) as caught:
        await open_provider().generate_json(ask(), timeout_s=20)

    assert (Fate.PERMANENT, "text_blocked") == (caught.value.fate, caught.value.code)


async def test_delay_in_the_body_is_heeded(server: GeminiServer, open_provider: Open) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "38s"}]
    server.faults.append(Fault(status=429, details=details))

    with pytest.raises(ProviderError) as caught:
        await open_provider().generate_json(ask(), timeout_s=20)

    assert (Fate.RETRY, 38.0) == (caught.value.fate, caught.value.retry_after_s)


async def test_job_may_choose_the_model(server: GeminiServer, open_provider: Open) -> None:
    answer = await open_provider().generate_json(ask(model="gemini-3.5-flash-lite"), timeout_s=20)

    assert "gemini-3.5-flash-lite" == server.journal.calls[0].fields["model"] == answer.model


async def test_silent_server_ends_at_the_deadline(server: GeminiServer, open_provider: Open) -> None:
    server.faults.append(Fault(delay_s=60))
    provider = open_provider()

    with pytest.raises(ProviderError) as caught:
        await provider.generate_json(ask(), timeout_s=1)

    assert (Fate.AMBIGUOUS, "provider_timed_out") == (caught.value.fate, caught.value.code)
    assert 1 == len(server.journal.calls)


caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")


async def test_late_answer_of_a_cancelled_call_is_dropped_but_its_cost_recorded(
    server: GeminiServer, open_threaded: Open
) -> None:
    """The thread cannot be stopped; the books still need to know what it spent, and for whom."""
    told: asyncio.Queue[tuple[str, Usage, str]] = asyncio.Queue()
    provider = open_threaded(on_late_usage=lambda usage, model: told.put_nowait((caller.get(), usage, model)))
    server.latency_s = 0.5

    async def job() -> None:
        caller.set("job 7")
        await provider.generate_json(ask(), timeout_s=20)

    async with asyncio.TaskGroup() as group:
        call = group.create_task(job())
        await server.journal.until(1)
        call.cancel()

    async with asyncio.timeout(10):
        who, usage, model = await told.get()
    assert ("job 7", server.journal.billed_usd, "gemini-3.8-flash") == (who, usage.cost_usd, model)


async def test_threads_left_behind_count_towards_the_bound(server: GeminiServer, open_threaded: Open) -> None:
    """Else every cancelled job would add a thread and a paid call in flight."""
    provider = open_threaded(concurrency=2)
    server.latency_s = 0.3

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(provider.generate_json(ask(), timeout_s=20)) for _ in range(6)]
        await server.journal.until(1)
        calls[0].cancel()

    assert 2 == server.journal.most_at_once


async def test_call_that_never_got_a_thread_cost_nothing(server: GeminiServer, open_threaded: Open) -> None:
    provider = open_threaded(concurrency=1)
    server.latency_s = 1.0

    async with asyncio.TaskGroup() as group:
        group.create_task(provider.generate_json(ask(), timeout_s=20))
        await server.journal.until(1)
        with pytest.raises(ProviderError) as caught:
            await provider.generate_json(ask(), timeout_s=0.1)

    assert Fate.RETRY is caught.value.fate
    assert 1 == len(server.journal.calls)


async def test_a_machine_without_threads_costs_nothing_and_keeps_its_turns(
    server: GeminiServer, open_threaded: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TasksMax is reached: nothing was sent, and the turn must be there when threads are."""
    provider = open_threaded(concurrency=1)
    await provider.generate_json(ask(), timeout_s=20)  # the SDK is there, loaded by a thread

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(ProviderError) as caught:
            patch.setattr(threading.Thread, "start", refuse)
            await provider.generate_json(ask(), timeout_s=5)

        assert (Fate.RETRY, "no_thread", {}) == (caught.value.fate, caught.value.code, caught.value.data)
    await provider.generate_json(ask(), timeout_s=20)
    assert 2 == len(server.journal.calls)


async def test_two_adapters_do_not_share_keys(server: GeminiServer, open_threaded: Open) -> None:
    """The SDK's `configure` is global to the process."""
    first, second = open_threaded(), open_threaded(api_key="another-key")
    await first.generate_json(ask(), timeout_s=20)
    with pytest.raises(ProviderError):
        await second.generate_json(ask(), timeout_s=20)

    await first.generate_json(ask(), timeout_s=20)

    assert [200, 400, 200] == [call.status for call in server.journal.calls]


def test_schema_is_reduced_to_what_the_api_takes() -> None:
    reduced = gemini_wire.reduce_schema(Draft.model_json_schema())

    point = {
        "type": "OBJECT",
        "properties": {"headline": {"type": "STRING"}, "weight": {"type": "INTEGER", "nullable": True}},
        "required": ["headline"],
    }
    assert reduced == {
        "type": "OBJECT",
        "properties": {
            "title": {"type": "STRING"},
            "tone": {"type": "STRING", "enum": ["calm", "loud"], "format": "enum"},
            "points": {"type": "ARRAY", "items": point, "min_items": 2, "max_items": 5},
        },
        "required": ["tone", "points"],
    }


def test_union_of_objects_becomes_one_object() -> None:
    members = [
        {
            "type": "object",
            "properties": {"kind": {"const": "a"}, "text": {"type": "string"}},
            "required": ["kind"],
        },
        {
            "type": "object",
            "properties": {"kind": {"const": "b"}, "url": {"type": "string"}},
            "required": ["kind"],
        },
    ]

    reduced = gemini_wire.reduce_schema({"type": "array", "items": {"anyOf": members}})

    assert {"kind", "text", "url"} == reduced["items"]["properties"].keys()
    assert ["kind"] == reduced["items"]["required"]
    assert ["a", "b"] == reduced["items"]["properties"]["kind"]["enum"]


def test_endless_schema_is_refused() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}

    with pytest.raises(ValueError, match="too deeply"):
        gemini_wire.reduce_schema({"$defs": {"Node": node}, "$ref": "#/$defs/Node"})


@pytest.mark.parametrize(("prompt", "total"), [(-5, -1), (10**30, 10**31), (5, 3)])
def test_absurd_counts_cost_neither_less_than_nothing_nor_more_than_the_books_hold(
    prompt: int, total: int
) -> None:
    reading = gemini_wire.Reading("", "STOP", "", prompt_tokens=prompt, total_tokens=total)

    assert 0 <= gemini_wire.price(reading, TokenPrices()).cost_usd < 10**7
