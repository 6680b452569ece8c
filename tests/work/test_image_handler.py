"""Kind `image`, with the offline providers on a drawn photo: what is made, what is refused."""

from __future__ import annotations

import asyncio
import threading
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from daemon.errors import Fate, Lost, ProviderError, Reject, Retry
from daemon.handlers import HANDLERS
from daemon.handlers.context import Asset, Providers
from daemon.handlers.wording import word_picture
from daemon.imaging import codec, provenance
from daemon.payloads import ImageInput, PingInput, Product, Slot
from daemon.providers import offline_paint
from daemon.providers.offline_cutout import OfflineCutout
from daemon.providers.offline_paint import OfflinePaint
from daemon.providers.offline_text import OfflineText
from daemon.providers.protocols import CutoutAnswer, PaintAnswer, PaintRequest, PartialImage, Usage
from tests.protocol_servers.pictures import paint_scene
from tests.support import eventually
from tests.work.fake_context import FakeContext, World
from tests.work.products import FACTS, as_png, draw_product, photo

OFFLINE = Providers(OfflineCutout(), OfflinePaint(), OfflineText())


class PaintServer(OfflinePaint):
    """Stands for a model behind the provider border: says `generated`, sends previews, may answer rubbish.

    looked_at: set by the test when enough was made of the previews.
    """

    def __init__(self, image: bytes, previews: tuple[bytes, ...] = (), *, generated: bool = True) -> None:
        self.image = image
        self.generated = generated
        self.previews = previews
        self.looked_at = asyncio.Event()
        self.requests: list[PaintRequest] = []

    @property
    def name(self) -> str:
        return "painter"

    async def paint(
        self, request: PaintRequest, *, timeout_s: float, on_partial: PartialImage | None = None
    ) -> PaintAnswer:
        self.requests.append(request)
        for i, preview in enumerate(self.previews):
            assert on_partial is not None
            on_partial(preview, i)
        if self.previews:
            await self.looked_at.wait()
        return PaintAnswer(self.image, Usage(Decimal("0.05")), "model-1", generated=self.generated)


class CutoutServer(OfflineCutout):
    """Stands for a service that answers with this PNG."""

    def __init__(self, png: bytes) -> None:
        self.png = png

    async def cut_out(self, photo: bytes, *, timeout_s: float) -> CutoutAnswer:
        return CutoutAnswer(self.png, Usage(), "cut-1")


def _context(
    slot: str, world: World | None = None, providers: Providers = OFFLINE, **more: Any
) -> FakeContext:
    world = world or World()
    fields = {"product": FACTS, "size_px": 1000, **more}
    return FakeContext(
        input=ImageInput.model_validate({"photo": world.add_photo(photo()), "slot": slot, **fields}),
        providers=providers, world=world,
    )  # fmt: skip


async def _make(ctx: FakeContext) -> dict[str, Any]:
    result = await HANDLERS["image"](ctx)
    assert isinstance(result, dict)
    return result


def _painted(side: int = 640) -> bytes:
    return codec.encode_jpeg(np.full((side, side, 3), 200, np.uint8))


@pytest.mark.parametrize(
    ("slot", "code", "made"),
    [
        ("main", "MAIN", "digitalCapture"),
        ("angle", "PT01", "composite"),
        ("lifestyle", "PT02", "composite"),
        ("infographic", "PT03", "composite"),
        ("detail", "PT04", "digitalCapture"),
        ("dimensions", "PT05", "composite"),
        ("in_the_box", "PT06", "composite"),
    ],
)
async def test_each_slot_becomes_a_checked_jpeg_that_tells_its_origin(
    slot: str, code: str, made: str
) -> None:
    ctx = _context(slot)

    result = await _make(ctx)

    saved = ctx.world.asset("image", slot)
    data = ctx.world.files[saved.id]
    told = provenance.read(data)
    assert result["asset_id"] == str(saved.id)
    assert (result["code"], result["generated"], result["provider"]) == (code, False, "offline")
    assert (saved.content_type, saved.width_px, saved.height_px) == ("image/jpeg", 1000, 1000)
    assert ctx.world.names[saved.id] == f"MUG-350.{code}.jpg"
    assert result["checks"] == ctx.world.checks[saved.id]
    assert {check["outcome"] for check in result["checks"]} <= {"pass", "warn"}
    assert told is not None
    assert told.made == made
    assert ctx.reports[-1][:2] == (5, 5)


async def test_what_a_paid_call_waits_for_goes_before_drawing() -> None:
    """A single picture has no pack that prepared its photo; one with the same photo finds it prepared."""
    world = World()
    ref = world.add_photo(photo(320, 340))

    await _make(_context("lifestyle", world, photo=ref))
    assert ["cutout", "first", "first", "paint:lifestyle", "pixels", "pixels"] == world.calls_and_pixels

    world.calls_and_pixels.clear()
    await _make(_context("main", world, photo=ref))
    assert ["pixels", "pixels"] == world.calls_and_pixels


async def test_main_image_passes_every_rule_of_its_own() -> None:
    result = await _make(_context("main"))

    own = {c["rule"]: c["outcome"] for c in result["checks"]}
    for rule in ("background_white", "product_fill", "own_pixels", "whole_product_in_frame"):
        assert own[rule] == "pass"


async def test_slots_of_one_photo_pay_for_one_cutout() -> None:
    world = World()
    ref = world.add_photo(photo())
    for slot in ("main", "detail", "dimensions"):
        wanted = ImageInput.model_validate({"photo": ref, "slot": slot, "product": FACTS, "size_px": 1000})
        await _make(FakeContext(input=wanted, providers=OFFLINE, world=world))

    assert world.calls == ["cutout"]


async def test_finished_image_is_not_made_again() -> None:
    ctx = _context("main")
    first = await _make(ctx)
    calls = list(ctx.world.calls)

    again = await _make(ctx)

    assert again["asset_id"] == first["asset_id"]
    assert len(ctx.world.assets) == 1
    assert ctx.world.calls == calls


async def test_picture_by_a_model_is_marked_as_generated() -> None:
    painter = PaintServer(_painted())
    ctx = _context("lifestyle", providers=Providers(OfflineCutout(), painter, OfflineText()))

    result = await _make(ctx)

    told = provenance.read(ctx.world.files[ctx.world.asset("image", "lifestyle").id])
    assert result["generated"] is True
    assert result["provider"] == "painter"
    assert told is not None
    assert told.made is provenance.Made.PAINTED_AROUND
    assert painter.requests[0].user_hash not in ("", "user-1")


def small_thing_on_a_backdrop() -> bytes:
    """A product that takes an eleventh of a side."""
    picture = np.full((640, 640, 3), 235, np.uint8)
    picture[380:438, 200:248] = (30, 110, 120)
    return codec.encode_jpeg(picture)


@pytest.mark.parametrize(
    ("painted", "why"),
    [
        (paint_scene(640, 640, as_png(draw_product())), "not empty"),
        (small_thing_on_a_backdrop(), "not empty"),
        (codec.encode_jpeg(np.full((640, 640, 3), 70, np.uint8)), "too dark"),
        (paint_scene(640, 640, None), ""),
    ],
    ids=["a product in it", "a small one", "dark", "as asked"],
)
async def test_painted_backdrop_that_is_none_gives_way_to_a_drawn_one(painted: bytes, why: str) -> None:
    """Two products on one sheet, or dark words on a dark ground, are delivered to nobody."""
    painter = PaintServer(painted)
    ctx = _context("infographic", providers=Providers(OfflineCutout(), painter, OfflineText()))

    result = await _make(ctx)

    told = [check["detail"] for check in result["checks"] if check["rule"] == "painted_backdrop"]
    assert [why in detail for detail in told] == ([True] if why else [])
    assert result["generated"] is not bool(why)
    kept = provenance.read(ctx.world.files[ctx.world.asset("image", "infographic").id])
    assert kept is not None
    assert kept.made is (provenance.Made.DRAWN if why else provenance.Made.PAINTED_AROUND)


async def test_backdrop_drawn_by_code_is_not_judged_again() -> None:
    """The offline painter darkens the backdrop of a light product itself."""
    dark = codec.encode_jpeg(np.full((640, 640, 3), 70, np.uint8))
    painter = PaintServer(dark, generated=False)
    ctx = _context("infographic", providers=Providers(OfflineCutout(), painter, OfflineText()))

    result = await _make(ctx)

    assert "painted_backdrop" not in {check["rule"] for check in result["checks"]}


class PreviewContext(FakeContext):
    """Its previews are saved, or never get saved, or meet `ends`; the painter answers as soon as one is tried."""

    ends: Exception | None = None
    is_stuck = False

    async def save_asset(self, data: bytes, *, role: str, **told: Any) -> Asset:
        if role != "partial":
            return await super().save_asset(data, role=role, **told)
        assert isinstance(self.providers.paint, PaintServer)
        try:
            if self.ends is not None:
                raise self.ends
            if not self.is_stuck:
                return await super().save_asset(data, role=role, **told)
        finally:
            self.providers.paint.looked_at.set()
        return await asyncio.Future()


def _preview_context() -> PreviewContext:
    painter = PaintServer(_painted(), previews=(b"rubbish", _painted(64)))
    made = _context("lifestyle", providers=Providers(OfflineCutout(), painter, OfflineText()), preview=True)
    return PreviewContext(input=made.input, providers=made.providers, world=made.world)


async def test_previews_are_saved_while_the_painter_works() -> None:
    ctx = _preview_context()

    await _make(ctx)

    assert [asset.role for asset in ctx.world.assets] == ["partial", "image"]


@pytest.mark.parametrize("ends", [None, Lost("not ours")])
async def test_a_paid_answer_neither_waits_for_a_preview_nor_is_lost_with_one(ends: Exception | None) -> None:
    ctx = _preview_context()
    ctx.ends, ctx.is_stuck = ends, ends is None

    async with asyncio.timeout(20):
        await _make(ctx)

    assert ["image"] == [asset.role for asset in ctx.world.assets]


async def test_answer_that_is_no_picture_fails_without_a_checkpoint() -> None:
    painter = PaintServer(b"<html>busy</html>")
    ctx = _context("lifestyle", providers=Providers(OfflineCutout(), painter, OfflineText()))

    with pytest.raises(ProviderError) as failed:
        await _make(ctx)

    assert (failed.value.code, failed.value.fate) == ("answer_unusable", Fate.PERMANENT)
    assert failed.value.data["cost_usd"] == "0.05", "it was billed all the same"
    assert not ctx.world.assets
    assert len(ctx.world.steps) == 1


async def test_a_painters_answer_is_looked_at_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a JPEG of 20 MB takes 50 to 90 ms to find; every other job would wait for it."""
    looked_in: list[str] = []
    inspect = codec.inspect

    def inspect_in(data: bytes) -> codec.PictureInfo:
        if data == painted:
            looked_in.append(threading.current_thread().name)
        return inspect(data)

    monkeypatch.setattr(codec, "inspect", inspect_in)
    painted = _painted()

    await _make(
        _context("lifestyle", providers=Providers(OfflineCutout(), PaintServer(painted), OfflineText()))
    )

    assert looked_in
    assert threading.main_thread().name not in looked_in


async def test_a_cancel_while_a_painters_answer_is_looked_at_does_not_lose_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inspect, began, may_go_on = codec.inspect, threading.Event(), threading.Event()
    painted = _painted()

    def inspect_late(data: bytes) -> codec.PictureInfo:
        if data == painted:
            began.set()
            may_go_on.wait(20)
        return inspect(data)

    monkeypatch.setattr(codec, "inspect", inspect_late)
    ctx = _context("lifestyle", providers=Providers(OfflineCutout(), PaintServer(painted), OfflineText()))

    task = asyncio.create_task(_make(ctx))
    await asyncio.to_thread(began.wait, 20)
    task.cancel()
    await asyncio.sleep(0)
    may_go_on.set()
    await asyncio.wait({task})

    assert task.cancelled()
    assert painted in [value.data for value in ctx.world.steps.values()]


async def test_offline_pictures_are_painted_as_many_at_a_time_as_there_are_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight pictures of an A+ document at once took 4 GB of a photo of 40 MP."""
    arrived: list[str] = []
    may_end = threading.Event()

    def paint(request: PaintRequest) -> PaintAnswer:
        arrived.append(request.slot)
        assert may_end.wait(10)
        return PaintAnswer(b"", Usage(), "model-1", generated=False)

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(offline_paint, "_paint", paint)
    painter = OfflinePaint()
    request = PaintRequest(slot="angle", cutout_png=b"", photos=(), prompt="", width_px=9, height_px=9)
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(painter.paint(request, timeout_s=30))
        await eventually(lambda: len(arrived) >= 2)
        await asyncio.to_thread(lambda: None)  # a third would have had its turn by now
        at_once = len(arrived)
        may_end.set()
    await painter.close()

    assert (2, 3) == (at_once, len(arrived))


async def test_second_photo_becomes_the_angle_without_a_painter() -> None:
    ctx = _context("angle")
    second = ctx.world.add_photo(photo(200, 380))
    assert isinstance(ctx.input, ImageInput)
    ctx.input = ctx.input.model_copy(update={"photos": (second,)})

    result = await _make(ctx)

    assert ctx.world.calls == ["cutout"]
    assert result["derived"] == "the seller's second photo"


async def test_forbidden_callout_is_left_out_and_reported() -> None:
    product = FACTS.model_copy(update={"bullets": (*FACTS.bullets, "Only $9.99 today")})

    result = await _make(_context("infographic", product=product))

    told = [check for check in result["checks"] if check.get("pointer") == "/product/bullets/3"]
    assert [(check["rule"], check["outcome"]) for check in told] == [("policy.price", "warn")]


@pytest.mark.parametrize("slot", ["infographic", "in_the_box"])
def test_list_marks_of_pasted_facts_are_taken_off(slot: Slot) -> None:
    """A tick before each bullet, as half of Amazon has it, refused the whole pack: the font draws no emoji."""
    pasted = ("✅ Strong legs: carry 120 kg", "【Easy to clean】goes into the dishwasher", "• Felt pads")
    product = Product(title="Chair", bullets=pasted, in_the_box=pasted)

    words = word_picture(slot, product)

    assert (
        "Strong legs: carry 120 kg",
        "Easy to clean: goes into the dishwasher",
        "Felt pads",
    ) == words.items


@pytest.mark.parametrize(
    ("slot", "facts", "code"),
    [
        ("infographic", {}, "facts_missing"),
        ("dimensions", {}, "facts_missing"),
        ("in_the_box", {}, "facts_missing"),
        ("infographic", {"bullets": ("Only $9.99", "Free shipping")}, "facts_refused"),
        ("infographic", {"bullets": ("お茶に",)}, "text_not_drawable"),
    ],
)
async def test_unusable_facts_are_refused_before_any_work(
    slot: str, facts: dict[str, Any], code: str
) -> None:
    ctx = _context(slot, product=Product(title="Mug", **facts))

    with pytest.raises(Reject) as refused:
        await _make(ctx)

    assert refused.value.code == code
    assert ctx.world.calls == []


async def test_mask_that_is_no_product_is_refused() -> None:
    whole = as_png(draw_product().convert("RGB"))
    ctx = _context("main", providers=Providers(CutoutServer(whole), OfflinePaint(), OfflineText()))

    with pytest.raises(Reject) as refused:
        await _make(ctx)

    assert refused.value.code == "cutout_unreliable"
    assert not ctx.world.assets


async def test_product_that_runs_out_of_the_photo_is_reported() -> None:
    cropped = draw_product().crop((0, 0, 420, 300))
    ctx = _context("main", providers=Providers(CutoutServer(as_png(cropped)), OfflinePaint(), OfflineText()))

    result = await _make(ctx)

    outcomes = {check["rule"]: check["outcome"] for check in result["checks"]}
    assert outcomes["whole_product_in_photo"] == "warn"


async def test_tiny_photo_is_told_to_come_out_blurred() -> None:
    """Of a product of 58 px, enlarged 34 times, only softness "in the zoom" was told."""
    tiny = as_png(draw_product(50, 60, margin=20))
    ctx = _context(
        "main", providers=Providers(CutoutServer(tiny), OfflinePaint(), OfflineText()), size_px=2000
    )

    result = await _make(ctx)

    (told,) = [check for check in result["checks"] if check["rule"] == "enlargement"]
    assert ("warn", 30.0) == (told["outcome"], told["measured"])
    assert "60 px" in told["detail"]
    assert "blurred" in told["detail"]


def _pale(shade: int, rim: int = 0) -> bytes:
    """A cut-out of one near white; rim: how many of its upper rows are darker, as a white mug's shaded mouth."""
    rgba = np.zeros((600, 500, 4), np.uint8)
    rgba[100:500, 100:400] = (shade, shade, shade, 255)
    rgba[100 : 100 + rim, 100:400, :3] = 180
    return codec.encode_png(rgba)


async def test_white_product_on_white_is_advised_another_background() -> None:
    """The advice, a plain background, was what the seller of a white mug had done already."""
    ctx = _context("main")
    ctx.world.photos = dict.fromkeys(
        ctx.world.photos, codec.encode_jpeg(np.full((900, 900, 3), 254, np.uint8))
    )

    with pytest.raises(ProviderError) as refused:
        await _make(ctx)

    assert "background of another colour than the product" in refused.value.message


async def test_product_blown_out_to_white_is_refused_for_what_it_is() -> None:
    """It was said to fill 0 % of the frame: a seller who reads that moves the camera, in vain."""
    ctx = _context("main", providers=Providers(CutoutServer(_pale(254)), OfflinePaint(), OfflineText()))

    with pytest.raises(Reject) as refused:
        await _make(ctx)

    assert "check_failed" == refused.value.code
    assert ["product_visible"] == [check["rule"] for check in refused.value.data["checks"]]
    assert "cannot be told from the white background" in refused.value.hint


async def test_pale_product_fills_what_its_mask_fills() -> None:
    """Of a white mug only the mouth is darker than white: measured by that, it filled half of the frame."""
    ctx = _context(
        "main", providers=Providers(CutoutServer(_pale(253, rim=40)), OfflinePaint(), OfflineText())
    )

    result = await _make(ctx)

    checks = {check["rule"]: check for check in result["checks"]}
    assert ("pass", 0.9) == (checks["product_fill"]["outcome"], checks["product_fill"]["measured"])
    assert "warn" == checks["product_visible"]["outcome"]


async def test_png_is_made_when_asked() -> None:
    ctx = _context("main", format="png")

    await _make(ctx)

    saved = ctx.world.asset("image", "main")
    assert saved.content_type == "image/png"
    assert ctx.world.names[saved.id] == "MUG-350.MAIN.png"


async def test_ping_fails_as_often_as_asked() -> None:
    ctx = FakeContext(input=PingInput(echo={"a": 1}, fail_times=1), providers=OFFLINE, kind="ping")

    with pytest.raises(Retry):
        await HANDLERS["ping"](ctx)
    ctx.attempt = 2

    assert await HANDLERS["ping"](ctx) == {"echo": {"a": 1}, "attempt": 2}
