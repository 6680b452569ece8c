"""The real openai SDK against a server that speaks the protocol: requests, answers, money, previews."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import date
from decimal import Decimal
from ipaddress import ip_network
from typing import Any

import pytest
from PIL import Image

from daemon.errors import Fate, ProviderError
from daemon.imaging import codec
from daemon.providers import openai_shapes
from daemon.providers.openai_images import OpenAIImages
from daemon.providers.openai_shapes import ImagePrices
from daemon.providers.protocols import PaintAnswer
from tests.protocol_servers import Fault, OpenAIServer
from tests.protocol_servers.samples import paint_request, product_cutout

LOOPBACK = ip_network("127.0.0.0/8")
Open = Callable[..., OpenAIImages]


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer() as running:
        yield running


@pytest.fixture
async def open_provider(server: OpenAIServer) -> AsyncIterator[Open]:
    opened: list[OpenAIImages] = []

    def build(**changes: Any) -> OpenAIImages:
        given: dict[str, Any] = {
            "api_key": server.api_key,
            "base_url": server.base_url,
            "model": "gpt-image-2.6-sunburst",
            "quality": "high",
            "prices": ImagePrices(),
        }
        opened.append(OpenAIImages(**(given | changes)))
        return opened[-1]

    yield build
    for provider in opened:
        await provider.close()


@pytest.mark.usefixtures("no_blocking")
async def test_picture_is_edited_from_cutout_and_photos(server: OpenAIServer, open_provider: Open) -> None:
    """One POST carries the references in order and nothing that the model would refuse."""
    request = paint_request()

    answer = await open_provider().paint(request, timeout_s=30)

    (call,) = server.journal.calls
    assert call.path == "/v1/images/edits"
    assert [f.field for f in call.files] == ["image[]", "image[]"]
    assert [f.content_type for f in call.files] == ["image/png", "image/jpeg"]
    assert hashlib.sha256(request.cutout_png).hexdigest() == call.files[0].sha256
    assert call.fields == {
        "model": "gpt-image-2.6-sunburst", "prompt": request.prompt, "n": "1", "size": "1600x1600",
        "quality": "high", "output_format": "png", "background": "opaque", "safety_identifier": "a" * 64,
    }  # fmt: skip
    info = codec.inspect(answer.image)
    assert (info.width_px, info.height_px) == (1600, 1600)
    assert answer.generated
    assert answer.request_id == call.request_id


async def test_cost_is_what_the_server_billed(server: OpenAIServer, open_provider: Open) -> None:
    answer = await open_provider().paint(paint_request(), timeout_s=30)

    assert server.journal.billed_usd == answer.usage.cost_usd > 0
    assert server.journal.calls[0].usage == answer.usage.units


@pytest.mark.parametrize("quality", ["low", "medium", "high", "xhigh", "max"])
@pytest.mark.parametrize("prompt", ["A red mug", "\u9676\u5668\u306e\u8d64\u3044\u30de\u30b0" * 2000])
async def test_estimate_is_never_below_the_bill(open_provider: Open, quality: str, prompt: str) -> None:
    """A budget that reserves less than is billed can be overshot."""
    provider = open_provider(quality=quality)
    request = paint_request(width_px=970, height_px=600, prompt=prompt)

    answer = await provider.paint(request, timeout_s=30)

    assert answer.usage.cost_usd <= provider.estimate_usd(request) <= 5 * answer.usage.cost_usd


async def test_rate_of_the_account_is_handed_on(open_provider: Open) -> None:
    answer = await open_provider().paint(paint_request(), timeout_s=30)

    assert answer.rate is not None
    assert (5, 4, 12.0) == (answer.rate.limit, answer.rate.remaining, answer.rate.reset_s)
    assert (99000, 360.0) == (answer.rate.tokens_remaining, answer.rate.tokens_reset_s)


async def test_previews_stream_only_when_asked_for(server: OpenAIServer, open_provider: Open) -> None:
    previews: list[tuple[str, int]] = []

    answer = await open_provider().paint(
        paint_request(),
        timeout_s=30,
        on_partial=lambda data, at: previews.append((codec.inspect(data).format, at)),
    )

    assert previews == [("PNG", 0), ("PNG", 1)]
    assert server.journal.calls[0].fields["partial_images"] == "2"
    assert server.journal.billed_usd == answer.usage.cost_usd


@pytest.mark.parametrize("model", ["gpt-image-2", "dall-e-2"])
async def test_a_reference_that_is_no_picture_is_rejected_before_anything_is_sent(
    server: OpenAIServer, open_provider: Open, model: str
) -> None:
    with pytest.raises(ProviderError) as failed:
        await open_provider().paint(paint_request(model=model, cutout_png=b"no picture"), timeout_s=30)

    assert (Fate.PERMANENT, "photo_rejected") == (failed.value.fate, failed.value.code)
    assert not server.journal.calls


async def test_model_and_quality_of_the_job_win(server: OpenAIServer, open_provider: Open) -> None:
    await open_provider().paint(paint_request(model="gpt-image-2", quality="max"), timeout_s=30)

    fields = server.journal.calls[0].fields
    assert ("gpt-image-2", "high") == (fields["model"], fields["quality"])


async def test_dalle_3_gets_its_own_request_and_only_paints_surroundings(
    server: OpenAIServer, open_provider: Open
) -> None:
    """The product's pixels stay the seller's: text to picture must not invent the product."""
    request = paint_request()

    answer = await open_provider(model="dall-e-3", quality="high").paint(request, timeout_s=30)

    (call,) = server.journal.calls
    assert call.path == "/v1/images/generations"
    assert call.fields["quality"] == "hd"
    assert call.fields["style"] == "natural"
    assert call.fields["response_format"] == "b64_json"
    assert call.fields["prompt"].startswith(openai_shapes.SCENE_ORDER)
    picture = codec.decode(answer.image)
    assert (190, 36, 44) == tuple(picture[int(0.7 * 1024), int(0.48 * 1024)])  # the mug's own red
    assert "seller's product pixels" in answer.derived


async def test_dalle_2_fills_what_is_transparent(server: OpenAIServer, open_provider: Open) -> None:
    answer = await open_provider(model="dall-e-2", quality="high").paint(paint_request(), timeout_s=30)

    (call,) = server.journal.calls
    assert call.path == "/v1/images/edits"
    assert [f.field for f in call.files] == ["image"]
    assert "quality" not in call.fields
    assert codec.inspect(answer.image).width_px == 1024


async def test_picture_behind_a_url_is_fetched_through_the_guard(
    server: OpenAIServer, open_provider: Open
) -> None:
    server.answer_with = "url"
    provider = open_provider(model="dall-e-3", allowed=(LOOPBACK,))

    answer = await provider.paint(paint_request(), timeout_s=30)

    assert [c.path for c in server.journal.calls] == ["/v1/images/generations", "/files/1.png"]
    assert codec.inspect(answer.image).width_px == 1024


async def test_url_into_the_private_network_is_not_fetched(server: OpenAIServer, open_provider: Open) -> None:
    server.answer_with = "url"

    with pytest.raises(ProviderError) as caught:
        await open_provider(model="dall-e-3").paint(paint_request(), timeout_s=30)

    assert [c.path for c in server.journal.calls] == ["/v1/images/generations"]
    assert caught.value.fate is Fate.AMBIGUOUS
    assert caught.value.data["why"] == "url_forbidden"
    assert Decimal(caught.value.data["cost_usd"]) > 0


async def test_per_image_price_counts_where_no_usage_is_stated(open_provider: Open) -> None:
    provider = open_provider(model="dall-e-3", prices=ImagePrices(per_image_usd=Decimal("0.04")))

    answer = await provider.paint(paint_request(), timeout_s=30)

    assert Decimal("0.04") == answer.usage.cost_usd == provider.estimate_usd(paint_request())


def test_a_usage_of_zeros_states_none() -> None:
    """Local servers fill it in so; by it no budget would ever hold."""
    zeros = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}

    assert openai_shapes.price_usage(zeros, ImagePrices()) is None


async def test_silent_server_ends_at_the_deadline(server: OpenAIServer, open_provider: Open) -> None:
    server.faults.append(Fault(delay_s=60))

    with pytest.raises(ProviderError) as caught:
        await open_provider().paint(paint_request(), timeout_s=0.5)

    assert (Fate.AMBIGUOUS, "provider_timed_out") == (caught.value.fate, caught.value.code)
    assert len(server.journal.calls) == 1


async def test_a_paid_answer_that_a_busy_machine_reads_slowly_is_not_thrown_away(
    open_provider: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is the provider's: what has come in time is paid for."""
    decode = codec.decode

    def decode_late(data: bytes) -> Any:
        time.sleep(2)
        return decode(data)

    monkeypatch.setattr(codec, "decode", decode_late)

    answer = await open_provider().paint(paint_request(), timeout_s=2)

    assert answer.usage.cost_usd > 0


async def test_a_cancel_while_a_paid_answer_is_read_does_not_lose_it(
    server: OpenAIServer, open_provider: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told afterwards: until then the step has an answer to book."""
    decode, began, may_go_on = codec.decode, threading.Event(), threading.Event()

    def decode_late(data: bytes) -> Any:
        if server.journal.billed:
            began.set()
            may_go_on.wait(20)
        return decode(data)

    monkeypatch.setattr(codec, "decode", decode_late)
    answers: list[PaintAnswer] = []

    async def job() -> None:
        answers.append(await open_provider().paint(paint_request(), timeout_s=20))
        await asyncio.sleep(0)

    task = asyncio.create_task(job())
    await asyncio.to_thread(began.wait, 20)
    for _ in range(2):  # cancelled, and abandoned later
        task.cancel()
        await asyncio.sleep(0)
    may_go_on.set()
    await asyncio.wait({task})

    assert [server.journal.billed_usd] == [answer.usage.cost_usd for answer in answers]
    assert task.cancelled()


async def test_cancelled_call_ends_at_once(server: OpenAIServer, open_provider: Open) -> None:
    server.latency_s = 60
    async with asyncio.TaskGroup() as group:
        call = group.create_task(open_provider().paint(paint_request(), timeout_s=60))
        await server.journal.until(1)
        call.cancel()

    assert call.cancelled()


@pytest.mark.parametrize(
    ("announced", "expected"),
    [
        ("2026-12-01", date(2026, 12, 1)),
        (1796083200, date(2026, 12, 1)),
        (None, None),
        ("soon", None),
        (1e30, None),
        (10**18, None),
        (float("inf"), None),
        (float("nan"), None),
    ],
)
async def test_announced_end_of_the_model_is_found(
    server: OpenAIServer, open_provider: Open, announced: Any, expected: date | None
) -> None:
    server.models["gpt-image-2.6-sunburst"] = announced

    notice = await open_provider().find_shutdown(timeout_s=5)

    assert expected == (notice.shutdown_on if notice else None)


async def test_server_without_a_model_list_warns_of_nothing(
    server: OpenAIServer, open_provider: Open
) -> None:
    server.always = Fault(status=404)

    assert await open_provider().find_shutdown(timeout_s=5) is None


async def test_a_client_that_cannot_be_built_warns_of_nothing(
    open_provider: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first job says why; the start goes on."""
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:9")

    assert await open_provider().find_shutdown(timeout_s=20) is None


async def test_key_and_prompt_stay_out_of_errors(server: OpenAIServer, open_provider: Open) -> None:
    """The API's own 401 quotes a part of the key."""
    with pytest.raises(ProviderError) as caught:
        await open_provider(api_key="sk-wrong-key").paint(paint_request(prompt="secret mug"), timeout_s=5)

    shown = f"{caught.value} {caught.value.data}"
    assert "sk-wrong" not in shown
    assert "secret mug" not in shown


@pytest.mark.parametrize(
    "ratio", [(970, 300), (300, 970), (970, 600), (2000, 2000), (4000, 1000), (220, 220)]
)
@pytest.mark.parametrize("model", ["gpt-image-2.6-sunburst", "gpt-image-1.5", "dall-e-3"])
def test_size_is_one_the_model_takes(model: str, ratio: tuple[int, int]) -> None:
    width, height = openai_shapes.fit_size(model, *ratio)

    if model == "gpt-image-2.6-sunburst":
        assert width % 16 == height % 16 == 0
        assert 655_360 <= width * height <= 8_294_400
        assert max(width, height) <= 3 * min(width, height)
    assert (width >= height) == (ratio[0] >= ratio[1])


def test_composed_scene_is_looked_at_as_a_picture() -> None:
    """The sample product is visible on a transparent canvas, whole and in the lower middle."""
    from daemon.providers.scene import set_in_scene

    canvas = set_in_scene(None, codec.decode(product_cutout()), 1024, 1024)

    box = Image.open(io.BytesIO(codec.encode_png(canvas))).getchannel("A").getbbox()
    assert box is not None
    assert 0 < box[0] < 512 < box[2] < 1024
    assert 512 < box[3] <= round(0.87 * 1024)
