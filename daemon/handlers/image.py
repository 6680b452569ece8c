"""Kind `image`: one listing image.

    photo -> cut-out (a step shared by the pack) -> painted surroundings (a step) -> drawn -> checked -> saved

The main image is never painted. Words and measures are drawn from the seller's facts. What fails one of
Amazon's checks is not delivered.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from daemon.amazon import rules
from daemon.amazon.checks import Check, has_failed
from daemon.amazon.images import check_image
from daemon.errors import Fate, ListingdError, ProviderError, Reject
from daemon.handlers.context import Asset, JobContext
from daemon.handlers.cutouts import Cutout, cut_out_photo
from daemon.handlers.painting import Painted, paint_picture
from daemon.handlers.recent import Recent
from daemon.handlers.slots import SLOTS, require_facts
from daemon.handlers.wording import Wording, report_left_out, word_picture
from daemon.imaging import codec, provenance, scenes
from daemon.imaging.colours import palette_of
from daemon.imaging.compose import fit_frame, place_on_white, read_cutout, to_image, trim
from daemon.imaging.cutout import MaskVerdict, edge_contact, judge_mask
from daemon.imaging.detail import crop_detail
from daemon.imaging.dimensions import Measures, draw_dimensions
from daemon.imaging.drawings import MAX_BOX_ITEMS, MAX_CALLOUTS, draw_sheet
from daemon.imaging.measure import measure, measure_backdrop
from daemon.payloads import ImageInput, PhotoRef

STAGES = ("photo", "paint", "draw", "check", "save")
_MAX_ENLARGEMENT = 2.0  # beyond this a product looks soft in the zoom
_MAX_SOFT_ENLARGEMENT = 4.0  # and beyond this blurred in the listing itself
_MAX_BACKDROP_EDGES = 0.02  # share of the area; an empty backdrop has a third of it at most
_MAX_BACKDROP_OUTLINES = 0.004  # the same of what ends within the frame; an empty backdrop has none
_BY_CODE = "backdrop drawn by code"
_MIN_BACKDROP_LIGHTNESS = 60.0  # L: below it the sheet's dark text cannot be read
_verdicts: Recent[MaskVerdict] = Recent(256)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished picture before encoding, how it came to be, and what its making had to report.

    fill: what the product's mask takes of the main image.
    """

    picture: Image.Image
    made: provenance.Made
    checks: tuple[Check, ...] = ()
    derived: str = ""
    fill: float = 0.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """data as saved; checks: measured on exactly these bytes, then those of the drawing."""

    data: bytes
    info: codec.PictureInfo
    checks: tuple[Check, ...] = field(default=())


async def make_image(ctx: JobContext) -> dict[str, Any]:
    """{asset_id, slot, code, generated, provider, derived, checks}.

    Errors: Reject facts_missing, facts_refused, text_not_drawable, cutout_unreliable, check_failed;
    ProviderError; those of the context.
    """
    wanted = ctx.input
    assert isinstance(wanted, ImageInput)
    code = rules.code_of(wanted.slot)
    if (saved := await ctx.find_asset("image", wanted.slot)) is not None:
        return _describe(saved, wanted.slot, code)
    require_facts((wanted.slot,), wanted.product)
    words = word_picture(wanted.slot, wanted.product)

    _report(ctx, "photo")
    second_view = wanted.slot == "angle" and bool(wanted.photos)
    cutout = await cut_out_usable(ctx, wanted.photos[0] if second_view else wanted.photo)
    painted: Painted | None = None
    if SLOTS[wanted.slot].maker == "painter" and not second_view:
        _report(ctx, "paint")
        painted = await paint_picture(ctx, wanted, cutout)
    _report(ctx, "draw")
    drawn = await ctx.in_thread(_draw, wanted, cutout, painted, words)
    _report(ctx, "check")
    provider, model = (painted.provider, painted.model) if painted else (cutout.provider, cutout.model)
    generated = drawn.made is provenance.Made.PAINTED_AROUND
    encoded = await ctx.in_thread(_encode, wanted, drawn, provider=provider, model=model, generated=generated)
    _require_passed(wanted.slot, encoded.checks)
    _report(ctx, "save")
    asset = await ctx.save_asset(
        encoded.data,
        role="image",
        content_type=encoded.info.content_type,
        slot=wanted.slot,
        width_px=encoded.info.width_px,
        height_px=encoded.info.height_px,
        checks=[check.as_json() for check in encoded.checks],
        generated=generated,
        provider=provider,
        derived=drawn.derived,
        file_name=rules.file_name(wanted.product.sku or "product", code, encoded.info.format),
    )
    ctx.progress(len(STAGES), len(STAGES), "done")
    return _describe(asset, wanted.slot, code)


async def cut_out_usable(ctx: JobContext, photo: PhotoRef) -> Cutout:
    """The photo's cut-out after a look at its mask, whoever made it.

    Errors: Reject cutout_unreliable.
    """
    cutout = await cut_out_photo(ctx, photo)
    verdict = await _verdicts.find(cutout.sha256, lambda: ctx.in_thread(_judge, cutout.png, first=True))
    if not verdict.usable:
        raise Reject(
            f"The product could not be cut out of its photo: {' '.join(verdict.reasons)}",
            code="cutout_unreliable",
            hint="Use a photo of the whole product on a plain background, or configure another cut-out provider.",
            data={"fill": verdict.fill, "edge_contact": verdict.edge_contact, "parts": verdict.parts},
        )
    return cutout


def _judge(png: bytes) -> MaskVerdict:
    return judge_mask(codec.decode(png))


def _describe(asset: Asset, slot: str, code: str) -> dict[str, Any]:
    """The result, the same whether this attempt or an earlier one saved the picture."""
    return {"asset_id": str(asset.id), "slot": slot, "code": code, "generated": asset.generated,
            "provider": asset.provider, "derived": asset.derived, "checks": list(asset.checks)}  # fmt: skip


def _report(ctx: JobContext, stage: str) -> None:
    ctx.progress(STAGES.index(stage), len(STAGES), stage)


def _draw(wanted: ImageInput, cutout: Cutout, painted: Painted | None, words: Wording) -> Drawn:
    """The picture of the slot, RGB, size_px square."""
    product = read_cutout(cutout.png)
    size_px, wishes = wanted.size_px, wanted.style.palette
    if painted is not None:
        surroundings = fit_frame(Image.fromarray(_decode_painted(painted)), size_px, size_px)
        made = provenance.Made.PAINTED_AROUND if painted.generated else provenance.Made.DRAWN
        if wanted.slot != "infographic":
            return Drawn(surroundings, made, derived=painted.derived)
        # Only a model may do something else than it was asked for.
        told = _judge_backdrop(surroundings) if painted.generated else None
        if told is None:
            return _draw_words(wanted, product, surroundings, words, made, painted.derived)
        sheet = _draw_words(wanted, product, _sweep(wanted, product), words, provenance.Made.DRAWN, _BY_CODE)
        return replace(sheet, checks=(*sheet.checks, told))
    if wanted.slot == "main":
        placed = place_on_white(product, size_px)
        checks = (_check_enlargement(product, size_px), _check_cropping(product))
        return Drawn(placed.picture, provenance.Made.CAPTURED, checks, fill=placed.fill)
    if wanted.slot == "detail":
        close_up = crop_detail(product, size_px, wishes)
        return Drawn(close_up.picture, provenance.Made.CAPTURED, (
            Check("detail_pixels", "pass" if close_up.source_px >= 1000 else "warn", close_up.source_px, 1000,
                  f"The close-up shows {close_up.source_px} px of the photo."),
            Check("detail_sharpness", "warn" if close_up.is_soft else "pass", round(close_up.sharpness, 1),
                  detail="The photo is soft here." if close_up.is_soft else "The photo is sharp here."),
        ), "close-up of the seller's photo")  # fmt: skip
    if wanted.slot == "angle":
        picture = scenes.paint_studio(product, min(size_px, 2400), min(size_px, 2400), seed=1, wishes=wishes)
        return Drawn(
            fit_frame(picture, size_px, size_px), provenance.Made.DRAWN, derived="the seller's second photo"
        )
    backdrop = _sweep(wanted, product)
    if wanted.slot == "in_the_box":
        return _draw_words(wanted, product, backdrop, words, provenance.Made.DRAWN, "")
    given = wanted.product.dimensions
    assert given is not None
    measures = Measures(given.length, given.width, given.height, given.unit)
    drawing = draw_dimensions(product, backdrop, measures, wishes=wishes)
    return Drawn(drawing.picture, provenance.Made.DRAWN)


def _sweep(wanted: ImageInput, product: Image.Image) -> Image.Image:
    """An empty backdrop in the product's own colours."""
    palette = palette_of(trim(product), wanted.style.palette)
    return to_image(scenes.paint_sweep(palette, wanted.size_px, wanted.size_px))


def _draw_words(
    wanted: ImageInput, product: Image.Image, backdrop: Image.Image, words: Wording, made: provenance.Made,
    derived: str,
) -> Drawn:  # fmt: skip
    is_box = wanted.slot == "in_the_box"
    drawing = draw_sheet(
        product, backdrop, title=words.title, items=words.items, overline=words.overline, numbered=is_box,
        max_items=MAX_BOX_ITEMS if is_box else MAX_CALLOUTS, wishes=wanted.style.palette,
    )  # fmt: skip
    return Drawn(drawing.picture, made, (*words.checks, *report_left_out(drawing.left_out)), derived)


def _decode_painted(painted: Painted) -> codec.Picture:
    """A painter's answer is as hostile as an upload."""
    try:
        return codec.flatten_on_white(codec.decode(painted.image))
    except ListingdError as exc:
        raise ProviderError(
            f"The painter's answer cannot be used: {exc.message}",
            provider=painted.provider, fate=Fate.PERMANENT, code="answer_unusable",
        ) from exc  # fmt: skip


def _check_enlargement(product: Image.Image, size_px: int) -> Check:
    """Warn when the product's own pixels had to be stretched far."""
    own_px = max(trim(product).size)
    factor = 0.90 * size_px / own_px
    if factor <= _MAX_ENLARGEMENT:
        return Check("enlargement", "pass", round(factor, 2), _MAX_ENLARGEMENT, "The photo is large enough.")
    looks = "soft in the zoom" if factor <= _MAX_SOFT_ENLARGEMENT else "blurred, which Amazon refuses"
    return Check(
        "enlargement", "warn", round(factor, 2), _MAX_ENLARGEMENT,
        f"The product has {own_px} px in the photo; enlarged {factor:.1f} times it looks {looks}. Use a larger photo.",
    )  # fmt: skip


def _judge_backdrop(picture: Image.Image) -> Check | None:
    """Painters put the product, or a dark room, where an empty and light backdrop was asked for; None: as asked."""
    edges, outlines, lightness = measure_backdrop(picture)
    is_empty = edges <= _MAX_BACKDROP_EDGES and outlines <= _MAX_BACKDROP_OUTLINES
    if is_empty and lightness >= _MIN_BACKDROP_LIGHTNESS:
        return None
    said = f"too dark for text (L {lightness:.0f})" if is_empty else "not empty"
    is_small = edges <= _MAX_BACKDROP_EDGES and not is_empty
    measured, limit = (outlines, _MAX_BACKDROP_OUTLINES) if is_small else (edges, _MAX_BACKDROP_EDGES)
    return Check(
        "painted_backdrop", "warn", round(measured, 3), limit,
        f"The painted backdrop was {said}; one drawn by code takes its place. Retry the picture for another.",
    )  # fmt: skip


def _check_cropping(product: Image.Image) -> Check:
    """Warn when the product runs out of the photo: Amazon wants the whole product in the main image."""
    touches = edge_contact(np.asarray(product.getchannel("A")) >= 128)
    said = (
        "The product touches the photo's edge and may be cropped." if touches else "The photo shows it whole."
    )
    return Check("whole_product_in_photo", "warn" if touches else "pass", round(touches, 4), 0, said)


def _encode(wanted: ImageInput, drawn: Drawn, *, provider: str, model: str, generated: bool) -> Encoded:
    """The bytes with their provenance, and the checks measured on them.

    A PNG over Amazon's weight limit becomes a JPEG, with a warning.
    """
    pixels = np.asarray(drawn.picture)
    packet = provenance.packet(drawn.made, provider=provider, model=model)
    extra: tuple[Check, ...] = ()
    data = codec.encode_png(pixels, xmp=packet) if wanted.format == "png" else b""
    if len(data) > rules.MAX_BYTES:
        said = "The PNG was heavier than Amazon takes, so this is a JPEG."
        extra = (Check("format_asked", "warn", len(data), rules.MAX_BYTES, said),)
        data = b""
    if not data:
        data = codec.encode_jpeg(pixels, max_bytes=rules.MAX_BYTES, xmp=packet)
    checks = check_image(wanted.slot, measure(data, generated=generated, fill=drawn.fill))
    return Encoded(data, codec.inspect(data), (*checks, *drawn.checks, *extra))


def _require_passed(slot: str, checks: tuple[Check, ...]) -> None:
    """Refuse to deliver what Amazon would refuse. Errors: Reject check_failed."""
    if not has_failed(checks):
        return
    failed = [check for check in checks if check.outcome == "fail"]
    named = "; ".join(f"{c.rule} is {c.measured}, limit {c.limit}" for c in failed)
    raise Reject(
        f"The {slot} image breaks Amazon's rules: {named}.",
        code="check_failed",
        hint=" ".join(check.detail for check in failed),
        data={"checks": [check.as_json() for check in failed]},
    )
