"""The adapters against the real providers: the smallest paid call of each."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from daemon.errors import Fate, ProviderError
from daemon.imaging import codec
from daemon.providers.cutout_http import HttpCutout
from daemon.providers.factory import REMOVE_BG_URL
from daemon.providers.gemini import GeminiText
from daemon.providers.gemini_wire import TokenPrices
from daemon.providers.genai import GenaiText
from daemon.providers.openai_images import OpenAIImages
from daemon.providers.openai_shapes import ImagePrices
from daemon.providers.protocols import JsonRequest
from tests.protocol_servers.samples import paint_request, product_photo


async def test_openai_edits_a_picture(openai_key: str) -> None:
    provider = OpenAIImages(
        api_key=openai_key,
        base_url="https://api.openai.com/v1",
        model="gpt-image-2.6-flare",
        quality="low",
        prices=ImagePrices(),
    )
    request = paint_request(width_px=1024, height_px=1024, user_hash="0" * 64)

    answer = await provider.paint(request, timeout_s=240)

    assert codec.inspect(answer.image).width_px == 1024
    assert 0 < answer.usage.cost_usd <= provider.estimate_usd(request)
    assert answer.request_id
    await provider.close()


async def test_openai_says_when_the_key_is_wrong(openai_key: str) -> None:
    provider = OpenAIImages(
        api_key="sk-no-such-key",
        base_url="https://api.openai.com/v1",
        model="gpt-image-2.6-flare",
        quality="low",
        prices=ImagePrices(),
    )

    with pytest.raises(ProviderError) as caught:
        await provider.paint(paint_request(), timeout_s=60)

    assert Fate.CONFIG is caught.value.fate
    await provider.close()


async def test_removebg_cuts_out(remove_bg_key: str) -> None:
    provider = HttpCutout(
        protocol="removebg",
        base_url=REMOVE_BG_URL,
        api_key=remove_bg_key,
        price_usd_per_credit=Decimal("0.20"),
    )

    answer = await provider.cut_out(product_photo(), timeout_s=60)

    assert codec.decode(answer.png).shape == (480, 640, 4)
    assert answer.rate is not None
    await provider.close()


@pytest.mark.parametrize("kind", [GeminiText, GenaiText])
async def test_gemini_fills_a_document(gemini_key: str, kind: type[GeminiText | GenaiText]) -> None:
    provider = kind(
        api_key=gemini_key,
        base_url="https://generativelanguage.googleapis.com",
        model="gemini-3.5-flash-lite",
        prices=TokenPrices(Decimal("0.3"), Decimal("2.5")),
    )
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}

    answer = await provider.generate_json(
        JsonRequest("Which colour has the mug?", schema, images=(product_photo(),)), timeout_s=60
    )

    assert "red" in json.loads(answer.text)["colour"].lower()
    assert answer.usage.cost_usd > 0
    await provider.close()
