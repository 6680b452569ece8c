"""The pictures of an A+ document: painted around the cut-out, fitted to their places, kept as assets.

One paid step a picture. All of them run at once, a few at a time; when one fails the others still finish,
because they may be paid already, and the next attempt finds their steps.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from daemon.amazon.aplus import ImageFacts, check_image_file
from daemon.amazon.aplus_build import ImagePlace
from daemon.amazon.aplus_limits import MAX_IMAGE_BYTES
from daemon.errors import ListingdError, Reject
from daemon.handlers.context import Asset, JobContext, StepValue
from daemon.handlers.cutouts import Cutout, hash_bytes
from daemon.handlers.painting import PAINT_TIMEOUT_S, paid_picture
from daemon.handlers.prompts import paint_prompt
from daemon.imaging import codec, compose, provenance
from daemon.imaging.typeset import Typesetter, Weight, require_drawable
from daemon.payloads import AplusInput, Style
from daemon.providers.protocols import PaintRequest

AT_ONCE = 8
"""As many as a lane lets through by default: more would only wait in it."""

GENERATION_SIZES: Mapping[tuple[int, int], tuple[int, int]] = {
    (970, 600): (1552, 960),
    (970, 300): (1584, 528),
    (300, 400): (768, 1024),
    (350, 175): (1280, 640),
    (150, 300): (640, 1280),
}
"""Shown size -> painted size: (nearly) the same ratio on a painter's 16 px grid; any other: 1024 x 1024."""

_SLOTS: Mapping[tuple[int, int], str] = {
    (970, 600): "aplus_header",
    (970, 300): "aplus_overlay",
    (300, 400): "aplus_tall",
    (350, 175): "aplus_wide",
    (150, 300): "aplus_tall",
}
_VIEWS = (
    "studio",
    "detail",
    "scene",
)  # by turns: three that stand side by side all differ, wherever they begin


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """A picture at its final size, saved. jpeg: the file; painter: who made it."""

    place: ImagePlace
    asset: Asset
    jpeg: bytes
    facts: ImageFacts
    painter: str


async def make_images(
    ctx: JobContext,
    wanted: AplusInput,
    places: Sequence[ImagePlace],
    cutout: Cutout | None,
    *,
    brand: str,
    on_done: Callable[[ImagePlace], None],
) -> list[FinishedImage]:
    """A finished picture for every place, in order. Without a cut-out only a company logo can be made.

    Errors: the first error of a picture, after all of them have ended.
    """
    slots = asyncio.Semaphore(AT_ONCE)
    finished: dict[str, FinishedImage] = {}
    failures: list[ListingdError] = []

    async def make(place: ImagePlace, number: int) -> None:
        async with slots:
            try:
                finished[place.slot] = await _make_image(ctx, wanted, place, number, cutout, brand)
            except ListingdError as exc:
                failures.append(exc)
            else:
                on_done(place)

    async with asyncio.TaskGroup() as group:
        for number, place in enumerate(places):
            group.create_task(make(place, number), name=f"aplus-image-{place.slot}")
    if failures:
        raise failures[0]
    return [finished[place.slot] for place in places]


async def _make_image(
    ctx: JobContext, wanted: AplusInput, place: ImagePlace, number: int, cutout: Cutout | None, brand: str
) -> FinishedImage:
    if place.module == "STANDARD_COMPANY_LOGO":
        jpeg = await ctx.in_thread(draw_wordmark, brand, place.width_px, place.height_px)
        return await _save(ctx, place, jpeg, painter="offline", generated=False)
    assert cutout is not None
    user_hash = hash_bytes(f"listingd:{ctx.user_id}".encode())
    request = _request(wanted, place, number, cutout, user_hash)
    value = await _paint(ctx, request, place, cutout)
    assert value.data is not None
    generated = bool((value.document or {}).get("generated"))
    painter = ctx.providers.paint.name
    made = provenance.Made.PAINTED_AROUND if generated else provenance.Made.DRAWN
    xmp = provenance.packet(made, provider=painter, model=value.model)
    jpeg = await ctx.in_thread(fit_image, value.data, place.width_px, place.height_px, xmp)
    return await _save(ctx, place, jpeg, painter=painter, generated=generated)


def _request(
    wanted: AplusInput, place: ImagePlace, number: int, cutout: Cutout, user_hash: str
) -> PaintRequest:
    size = (place.width_px, place.height_px)
    slot = _SLOTS.get(size, "aplus_square")
    width_px, height_px = GENERATION_SIZES.get(size, (1024, 1024))
    view = "scene" if slot in ("aplus_header", "aplus_overlay") else _VIEWS[number % len(_VIEWS)]
    # The topic is a wish like the seller's own: it says what this picture should bring out.
    wishes = "; ".join(filter(None, (wanted.style.prompt, place.topic and f"bring out: {place.topic}")))
    style = Style(prompt=wishes[:2000], background=wanted.style.background, palette=wanted.style.palette)
    prompt = paint_prompt(slot, wanted.product, style, width_px=width_px, height_px=height_px)
    seed = int.from_bytes(hashlib.sha256(f"{cutout.sha256}{place.slot}".encode()).digest()[:4], "big")
    return PaintRequest(
        slot=slot,
        cutout_png=cutout.png,
        photos=(),  # the cut-out says it all, and a photo may carry EXIF
        prompt=prompt.text,
        width_px=width_px,
        height_px=height_px,
        seed=seed,
        palette=wanted.style.palette,
        hints={
            "view": view,
            "category": f"{wanted.product.category or ''} {wanted.product.title}".strip(),
            "background": wanted.style.background,
        },
        user_hash=user_hash,
    )


async def _paint(ctx: JobContext, request: PaintRequest, place: ImagePlace, cutout: Cutout) -> StepValue:
    painter = ctx.providers.paint

    async def call() -> StepValue:
        answer = await painter.paint(request, timeout_s=PAINT_TIMEOUT_S)
        return await paid_picture(answer, painter.name)

    decisive = json.dumps(
        [request.prompt, request.seed, request.width_px, request.height_px, request.palette,
         dict(request.hints), request.model, request.quality],
        sort_keys=True,
    )  # fmt: skip
    return await ctx.step(
        f"paint:{place.slot}",
        provider=painter.name,
        identity=(
            "aplus_image",
            painter.name,
            painter.fingerprint,
            request.slot,
            cutout.sha256,
            hashlib.sha256(decisive.encode()).hexdigest(),
        ),
        estimate_usd=painter.estimate_usd(request),
        call=call,
    )


async def _save(
    ctx: JobContext, place: ImagePlace, jpeg: bytes, *, painter: str, generated: bool
) -> FinishedImage:
    facts = await ctx.in_thread(measure_image, jpeg)
    asset = await ctx.find_asset("aplus_image", place.slot)
    if asset is None or asset.sha256 != await ctx.in_thread(hash_bytes, jpeg):
        asset = await ctx.save_asset(
            jpeg,
            role="aplus_image",
            content_type="image/jpeg",
            slot=place.slot,
            width_px=facts.width_px,
            height_px=facts.height_px,
            checks=[check.as_json() for check in check_image_file(facts)],
            generated=generated,
            provider=painter,
            file_name=place.file_name,
        )
    return FinishedImage(place, asset, jpeg, facts, painter)


def fit_image(data: bytes, width_px: int, height_px: int, xmp: bytes) -> bytes:
    """A painted picture as JPEG of exactly this size, at most 2 MB, RGB, with its provenance."""
    picture = Image.fromarray(codec.flatten_on_white(codec.decode(data)))
    fitted = compose.fit_frame(picture, width_px, height_px)
    return codec.encode_jpeg(np.asarray(fitted), max_bytes=MAX_IMAGE_BYTES, xmp=xmp)


def draw_wordmark(brand: str, width_px: int, height_px: int) -> bytes:
    """The brand's name set in plain type on white, as JPEG: what stands in for a logo that nobody gave.

    Errors: Reject text_not_drawable, brand_too_long.
    """
    require_drawable([("brand", brand)])
    canvas = Image.new("RGB", (width_px, height_px), (255, 255, 255))
    typesetter = Typesetter()
    width, height = width_px * 0.84, height_px * 0.7
    block = typesetter.fit(brand, Weight.BOLD, width_px=width, height_px=height, max_px=96, min_px=8)
    if block is None:
        raise Reject("The brand's name is too long to be set as a logo.", code="brand_too_long")
    top = (height_px - block.height_px) / 2
    typesetter.draw(ImageDraw.Draw(canvas), block, width_px / 2, top, (34, 34, 34), "centre")
    xmp = provenance.packet(provenance.Made.DRAWN, provider="offline", model="wordmark-1")
    return codec.encode_jpeg(np.asarray(canvas), max_bytes=MAX_IMAGE_BYTES, xmp=xmp)


def measure_image(data: bytes) -> ImageFacts:
    """What the file's own header says."""
    with Image.open(io.BytesIO(data)) as image:
        return ImageFacts(image.width, image.height, len(data), image.format or "", image.mode)
