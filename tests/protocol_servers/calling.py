"""One call of a real adapter against its protocol server, whichever provider it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from daemon.errors import ProviderError
from daemon.providers.cutout_http import HttpCutout
from daemon.providers.gemini import GeminiText
from daemon.providers.gemini_wire import TokenPrices
from daemon.providers.genai import GenaiText
from daemon.providers.openai_images import OpenAIImages
from daemon.providers.openai_shapes import ImagePrices
from daemon.providers.protocols import JsonRequest, PartialImage
from tests.protocol_servers import GeminiServer, OpenAIServer, ProtocolServer, RemoveBgServer
from tests.protocol_servers.samples import paint_request, product_photo

Call = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def calling(
    name: str,
    *,
    url: str | None = None,
    timeout_s: float = 10,
    on_partial: PartialImage | None = None,
) -> AsyncIterator[tuple[ProtocolServer, Call]]:
    """(server, call): name is openai, removebg, gemini (google-generativeai) or genai (google-genai).

    url: where to call instead of the server.
    """
    servers: dict[str, type[ProtocolServer]] = {"openai": OpenAIServer, "removebg": RemoveBgServer}
    async with servers.get(name, GeminiServer)() as server:
        provider: Any = _build(name, server, url)

        async def call() -> Any:
            if name == "openai":
                return await provider.paint(paint_request(), timeout_s=timeout_s, on_partial=on_partial)
            if name == "removebg":
                return await provider.cut_out(product_photo(), timeout_s=timeout_s)
            request = JsonRequest(prompt="p", schema={"type": "object", "properties": {}})
            return await provider.generate_json(request, timeout_s=timeout_s)

        try:
            yield server, call
        finally:
            await provider.close()


def _build(name: str, server: Any, url: str | None) -> Any:
    if name == "openai":
        return OpenAIImages(
            api_key=server.api_key,
            base_url=url or server.base_url,
            model="gpt-image-2.6-sunburst",
            quality="low",
            prices=ImagePrices(),
        )
    if name == "removebg":
        return HttpCutout(
            protocol="removebg",
            base_url=url or server.base_url,
            api_key=server.api_key,
            price_usd_per_credit=Decimal("0.2"),
        )
    kind = GenaiText if name == "genai" else GeminiText
    return kind(
        api_key=server.api_key, base_url=url or server.url, model="gemini-3.8-flash", prices=TokenPrices()
    )


async def fate_of(call: Call) -> ProviderError:
    """The error that a call ends with."""
    with pytest.raises(ProviderError) as caught:
        await call()
    return caught.value
