"""Cut-outs by remove.bg's protocol, rembg and withoutBG, over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from daemon.errors import Fate, ProviderError
from daemon.imaging import codec, cutout
from daemon.providers.cutout_http import HttpCutout
from daemon.providers.protocols import CutoutAnswer
from tests.protocol_servers import Fault, RembgServer, RemoveBgServer, WithoutBgServer
from tests.protocol_servers.pictures import encode_png
from tests.protocol_servers.samples import product_cutout, product_photo

Open = Callable[..., HttpCutout]


@pytest.fixture
async def server() -> AsyncIterator[RemoveBgServer]:
    async with RemoveBgServer() as running:
        yield running


@pytest.fixture
async def open_provider(server: RemoveBgServer) -> AsyncIterator[Open]:
    opened: list[HttpCutout] = []

    def build(**changes: Any) -> HttpCutout:
        given: dict[str, Any] = {
            "protocol": "removebg",
            "base_url": server.base_url,
            "api_key": server.api_key,
            "price_usd_per_credit": Decimal("0.20"),
        }
        opened.append(HttpCutout(**(given | changes)))
        return opened[-1]

    yield build
    for provider in opened:
        await provider.close()


@pytest.mark.usefixtures("no_blocking")
async def test_removebg_cuts_the_whole_frame(server: RemoveBgServer, open_provider: Open) -> None:
    answer = await open_provider().cut_out(product_photo(), timeout_s=20)

    picture = codec.decode(answer.png)
    assert (480, 640, 4) == picture.shape
    assert picture[240, 300, 3] == 255
    assert picture[5, 5, 3] == 0
    (call,) = server.journal.calls
    assert {"size": "auto", "type": "product", "format": "png"} == call.fields
    assert [("image_file", "image/jpeg")] == [(f.field, f.content_type) for f in call.files]


async def test_credits_charged_are_the_cost(server: RemoveBgServer, open_provider: Open) -> None:
    provider = open_provider()

    answer = await provider.cut_out(product_photo(), timeout_s=20)

    assert server.journal.billed_usd == answer.usage.cost_usd == provider.estimate_usd(640, 480)
    assert {"credits": "1"} == answer.usage.units


async def test_rate_headers_are_handed_on(open_provider: Open) -> None:
    answer = await open_provider().cut_out(product_photo(), timeout_s=20)

    assert answer.rate is not None
    assert (500, 499) == (answer.rate.limit, answer.rate.remaining)
    assert answer.rate.reset_s is not None
    assert 30 < answer.rate.reset_s <= 42


async def test_large_photo_asks_for_zip_and_gets_whole_pixels(
    server: RemoveBgServer, open_provider: Open
) -> None:
    """PNG answers end at 10 MP; the ZIP has colour and alpha apart."""
    server.max_pixels = 50_000_000

    answer = await open_provider().cut_out(product_photo(4000, 3000), timeout_s=60)

    assert "zip" == server.journal.calls[0].fields["format"]
    picture = codec.decode(answer.png)
    assert (3000, 4000, 4) == picture.shape
    assert abs(int(picture[1500, 1800, 0]) - 190) < 6


async def test_smaller_answer_lends_its_alpha_to_the_photo(
    server: RemoveBgServer, open_provider: Open
) -> None:
    """Sharpness is the photo's own: a scaled-up answer would blur the product."""
    server.max_pixels = 40_000
    photo = product_photo(kind="PNG")

    answer = await open_provider().cut_out(photo, timeout_s=20)

    picture = codec.decode(answer.png)
    assert (480, 640, 4) == picture.shape
    shown = picture[..., 3] > 0
    assert np.array_equal(codec.decode(photo)[shown], picture[shown, :3])
    assert picture[240, 300, 3] == 255


async def test_recorded_answer_of_removebg_is_read(
    server: RemoveBgServer, open_provider: Open, shared_data: Path
) -> None:
    """The real service's bytes and headers, as recorded."""
    photo = (shared_data / "removebg" / "person-in-field.jpg").read_bytes()
    cutout = (shared_data / "removebg" / "person-in-field.out.png").read_bytes()
    recorded = json.loads((shared_data / "removebg" / "recorded_responses.json").read_text())
    headers = next(
        i["headers"] for i in recorded["interactions"] if i.get("body_file") == "person-in-field.out.png"
    )
    server.always = Fault(body=cutout, content_type="image/png", headers=headers)

    answer = await open_provider().cut_out(photo, timeout_s=20)

    assert (333, 500) == codec.decode(answer.png).shape[:2]
    assert Decimal("0.05") == answer.usage.cost_usd
    assert answer.rate is not None
    assert 494 == answer.rate.remaining
    # Recorded in 2020: its reset lies in the past.
    assert 0 == answer.rate.reset_s


async def test_recorded_errors_of_removebg_are_understood(
    server: RemoveBgServer, open_provider: Open, shared_data: Path
) -> None:
    recorded = json.loads((shared_data / "removebg" / "recorded_responses.json").read_text())
    failed = [i for i in recorded["interactions"] if i["status"] >= 400 and i["method"] == "post"]
    fates = []
    for interaction in failed:
        server.faults.append(
            Fault(
                status=interaction["status"],
                body=interaction["body"].encode(),
                headers=interaction["headers"],
            )
        )
        with pytest.raises(ProviderError) as caught:
            await open_provider().cut_out(product_photo(), timeout_s=20)
        fates.append((interaction["status"], caught.value.fate))

    assert [(403, Fate.CONFIG), (400, Fate.PERMANENT)] == fates


async def test_place_and_camera_do_not_leave_the_house(server: RemoveBgServer, open_provider: Open) -> None:
    """EXIF holds GPS; the turn it asks for is made before."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Camera with a serial number"
    out = io.BytesIO()
    with Image.open(io.BytesIO(product_photo())) as photo:
        photo.save(out, "JPEG", exif=exif)

    answer = await open_provider().cut_out(out.getvalue(), timeout_s=20)

    assert b"Exif" not in server.journal.calls[0].files[0].head
    assert (640, 480) == codec.decode(answer.png).shape[:2]


@pytest.mark.parametrize("suffix", ["", "/", "/removebg"])
async def test_base_url_may_name_the_endpoint_or_not(
    server: RemoveBgServer, open_provider: Open, suffix: str
) -> None:
    await open_provider(base_url=server.base_url + suffix).cut_out(product_photo(), timeout_s=20)

    assert ["/v1.0/removebg"] == [c.path for c in server.journal.calls]


async def test_service_that_states_no_credits_costs_one(server: RemoveBgServer, open_provider: Open) -> None:
    server.always = Fault(body=product_cutout(), content_type="image/png", headers={"X-Credits-Charged": "?"})

    answer = await open_provider().cut_out(product_photo(), timeout_s=20)

    assert Decimal("0.20") == answer.usage.cost_usd
    assert "estimate" == answer.usage.units["priced_by"]


async def test_error_sent_with_status_200_is_an_error(server: RemoveBgServer, open_provider: Open) -> None:
    """Leonardo's way: the true status stands in errors[0].extensions."""
    body = json.dumps({"errors": [{"message": "no", "extensions": {"statusCode": 402}}]}).encode()
    server.always = Fault(body=body, content_type="application/json")

    with pytest.raises(ProviderError) as caught:
        await open_provider().cut_out(product_photo(), timeout_s=20)

    assert (Fate.BUDGET, 402) == (caught.value.fate, caught.value.status)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.new("RGB", (640, 480), (200, 30, 30)), "no transparency"),
        (Image.new("RGBA", (640, 480), (0, 0, 0, 0)), "next to nothing"),
        (Image.new("RGBA", (640, 480), (9, 9, 9, 254)), "whole photo"),
    ],
)
async def test_mask_that_is_no_product_is_refused(
    server: RemoveBgServer, open_provider: Open, picture: Image.Image, reason: str
) -> None:
    headers = {"X-Credits-Charged": "1"}
    server.always = Fault(body=encode_png(picture), content_type="image/png", headers=headers)

    with pytest.raises(ProviderError) as caught:
        await open_provider().cut_out(product_photo(), timeout_s=20)

    assert (Fate.PERMANENT, "cutout_unreliable") == (caught.value.fate, caught.value.code)
    assert reason in caught.value.data["reasons"][0].lower()
    assert "0.20" == caught.value.data["cost_usd"]


async def test_an_unusable_answer_that_was_not_charged_is_known_to_be_free(
    server: RemoveBgServer, open_provider: Open
) -> None:
    """An account without credits gets previews for nothing; what is not said counts as perhaps paid."""
    server.always = Fault(body=b"no picture", content_type="image/png", headers={"X-Credits-Charged": "0"})

    with pytest.raises(ProviderError) as caught:
        await open_provider().cut_out(product_photo(), timeout_s=20)

    assert (Fate.AMBIGUOUS, 0) == (caught.value.fate, Decimal(caught.value.data["cost_usd"]))


async def test_rembg_server_is_spoken_to() -> None:
    async with RembgServer() as rembg:
        provider = HttpCutout(protocol="rembg", base_url=rembg.url)

        answer = await provider.cut_out(product_photo(), timeout_s=20)

        assert [("file", "image/jpeg")] == [(f.field, f.content_type) for f in rembg.journal.calls[0].files]
        assert (480, 640, 4) == codec.decode(answer.png).shape
        assert 0 == answer.usage.cost_usd
        await provider.close()


async def test_withoutbg_container_is_spoken_to() -> None:
    async with WithoutBgServer() as container:
        provider = HttpCutout(protocol="withoutbg", base_url=container.url)

        answer = await provider.cut_out(product_photo(kind="PNG"), timeout_s=20)

        assert "image/png" == container.journal.calls[0].files[0].content_type
        assert (480, 640, 4) == codec.decode(answer.png).shape
        await provider.close()


async def test_lost_answer_of_a_free_server_is_just_tried_again() -> None:
    """Only what may have been billed is ambiguous."""
    async with RembgServer() as rembg:
        rembg.always = Fault(drop="before_answer")
        provider = HttpCutout(protocol="rembg", base_url=rembg.url)

        with pytest.raises(ProviderError) as caught:
            await provider.cut_out(product_photo(), timeout_s=20)

        assert Fate.RETRY is caught.value.fate
        await provider.close()


async def test_lost_answer_of_a_paid_service_is_ambiguous(
    server: RemoveBgServer, open_provider: Open
) -> None:
    server.always = Fault(drop="before_answer")

    with pytest.raises(ProviderError) as caught:
        await open_provider().cut_out(product_photo(), timeout_s=20)

    assert (Fate.AMBIGUOUS, "provider_hung_up") == (caught.value.fate, caught.value.code)
    assert 1 == len(server.journal.calls)
    assert Decimal("0.20") == server.journal.billed_usd


async def test_a_paid_answer_that_a_busy_machine_reads_slowly_is_not_thrown_away(
    open_provider: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is the provider's: what has come in time is paid for."""
    judge_mask = cutout.judge_mask

    def judge_late(answer: Any) -> Any:
        time.sleep(2)
        return judge_mask(answer)

    monkeypatch.setattr(cutout, "judge_mask", judge_late)

    answer = await open_provider().cut_out(product_photo(), timeout_s=2)

    assert Decimal("0.20") == answer.usage.cost_usd


async def test_a_cancel_while_a_paid_answer_is_read_does_not_lose_it(
    open_provider: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_mask, began, may_go_on = cutout.judge_mask, threading.Event(), threading.Event()

    def judge_late(answer: Any) -> Any:
        began.set()
        may_go_on.wait(20)
        return judge_mask(answer)

    monkeypatch.setattr(cutout, "judge_mask", judge_late)
    answers: list[CutoutAnswer] = []

    async def job() -> None:
        answers.append(await open_provider().cut_out(product_photo(), timeout_s=20))
        await asyncio.sleep(0)

    task = asyncio.create_task(job())
    await asyncio.to_thread(began.wait, 20)
    task.cancel()
    await asyncio.sleep(0)
    may_go_on.set()
    await asyncio.wait({task})

    assert [Decimal("0.20")] == [answer.usage.cost_usd for answer in answers]
    assert task.cancelled()


async def test_a_photo_with_broken_pixels_is_rejected_before_anything_is_sent(
    server: RemoveBgServer, open_provider: Open
) -> None:
    """As a codec's error it would count as a paid call with an unknown outcome."""
    with pytest.raises(ProviderError) as failed:
        await open_provider().cut_out(_break_pixels(product_photo(kind="PNG")), timeout_s=20)

    assert (Fate.PERMANENT, "photo_rejected") == (failed.value.fate, failed.value.code)
    assert "image_damaged" == failed.value.data["why"]
    assert not server.journal.calls


def _break_pixels(png: bytes) -> bytes:
    """The same header over pixel data that does not unpack."""
    at = png.index(b"IDAT") + 4
    return png[:at] + bytes(64) + png[at + 64 :]


async def test_redirect_is_not_followed_with_the_key(server: RemoveBgServer, open_provider: Open) -> None:
    server.always = Fault(status=307, headers={"Location": server.base_url + "/removebg"})

    with pytest.raises(ProviderError) as caught:
        await open_provider().cut_out(product_photo(), timeout_s=20)

    assert Fate.CONFIG is caught.value.fate
    assert 1 == len(server.journal.calls)
