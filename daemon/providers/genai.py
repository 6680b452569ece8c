"""Gemini through google-genai (extra `listingd[genai]`): the same protocol as gemini.py, natively async.

The HTTP client under it is ours: with aiohttp installed the SDK would otherwise use that, and quietly send
a request again after a dropped connection.
"""

from __future__ import annotations

import asyncio
import importlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from daemon.errors import Fate, ProviderError, TooLarge
from daemon.later import later
from daemon.providers import fates, gemini_wire
from daemon.providers.capped_client import classify_transport, open_client, open_sdk
from daemon.providers.gemini_wire import NAME, Reading, TokenPrices
from daemon.providers.protocols import JsonAnswer, JsonRequest

if TYPE_CHECKING:
    from daemon.imaging import codec
else:
    codec = later("daemon.imaging.codec")


class GenaiText:
    """A TextProvider. The SDK loads at the first call, in a thread."""

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str,
        model: str,
        prices: TokenPrices,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        max_answer_bytes: int = gemini_wire.MAX_ANSWER_BYTES,
    ) -> None:
        self._api_key = api_key
        self._base_url = base_url
        self._model = model
        self._prices = prices
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._names = fates.NameFailures()
        self._opening = asyncio.Lock()
        self._http: Any = None
        self._client: Any = None

    @property
    def name(self) -> str:
        return NAME

    @property
    def fingerprint(self) -> str:
        return f"genai/1:{urlsplit(self._base_url).hostname}:{self._model}"

    def estimate_usd(self, request: JsonRequest) -> Decimal:
        return gemini_wire.estimate_usd(request, self._prices)

    async def generate_json(self, request: JsonRequest, *, timeout_s: float) -> JsonAnswer:
        """One document. finish "MAX_TOKENS": cut short; ask again with a larger max_output_tokens.

        Errors: ProviderError, its data carrying cost_usd where the call is known to be billed.
        """
        model = request.model or self._model
        timeout_s = min(timeout_s, self._timeout_s)
        await self._open()
        try:
            async with asyncio.timeout(timeout_s):
                reading = await self._call(request, model)
        except TimeoutError as exc:
            raise fates.problem(NAME, Fate.AMBIGUOUS, "provider_timed_out") from exc
        self._names.clear()
        return gemini_wire.conclude(reading, self._prices, model)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def _open(self) -> None:
        async with self._opening:
            if self._client is None:
                self._client = await open_sdk(NAME, self._build)

    def _build(self) -> Any:
        genai = importlib.import_module("google.genai")
        self._http = open_client(self._max_answer_bytes, concurrency=self._concurrency)
        options = genai.types.HttpOptions(
            base_url=self._base_url, httpx_async_client=self._http, retry_options=None
        )
        return genai.Client(api_key=self._api_key, http_options=options)

    async def _call(self, request: JsonRequest, model: str) -> Reading:
        import httpx2

        types = importlib.import_module("google.genai.types")
        errors = importlib.import_module("google.genai.errors")
        parts = [types.Part.from_text(text=request.prompt)]
        parts += [
            types.Part.from_bytes(data=image, mime_type=codec.inspect(image).content_type)
            for image in request.images
        ]
        config = types.GenerateContentConfig(
            response_mime_type="application/json",
            response_schema=gemini_wire.reduce_schema(request.schema),
            max_output_tokens=request.max_output_tokens,
        )
        try:
            response = await self._client.aio.models.generate_content(
                model=model, contents=types.Content(role="user", parts=parts), config=config
            )
        except errors.APIError as exc:
            raise self._refusal(exc) from exc
        except TooLarge as exc:
            raise fates.problem(NAME, Fate.AMBIGUOUS, "answer_too_large") from exc
        except httpx2.HTTPError as exc:
            raise fates.problem(NAME, *classify_transport(exc, self._names)) from exc
        # json.loads of the body, and the SDK's own models of it
        except (ValueError, RecursionError, errors.UnknownApiResponseError) as exc:
            raise fates.problem(NAME, Fate.RETRY, "answer_unreadable", status=200) from exc
        return _read(response)

    def _refusal(self, exc: Any) -> ProviderError:
        response = exc.response
        body = response.content if response is not None else b""
        headers = response.headers if response is not None else {}
        return gemini_wire.refusal(int(exc.code), body, headers)


def _read(response: Any) -> Reading:
    """The SDK's answer in neutral words; `.text` is not touched, it joins thoughts and warns."""
    usage = response.usage_metadata
    finish, text = "", ""
    if response.candidates:
        first = response.candidates[0]
        finish = str(
            getattr(first.finish_reason, "value", first.finish_reason) or "FINISH_REASON_UNSPECIFIED"
        )
        parts = (first.content.parts if first.content else None) or []
        text = "".join(part.text for part in parts if part.text and not part.thought)
    feedback = response.prompt_feedback
    blocked = feedback.block_reason if feedback else None
    return Reading(
        text,
        finish,
        str(getattr(blocked, "value", blocked)) if blocked else "",
        (usage.prompt_token_count or 0) if usage else 0,
        (usage.total_token_count or 0) if usage else 0,
    )
