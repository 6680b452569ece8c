"""One picture from the painter, through a step: prompt, identity, previews while it works."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from PIL import Image

from daemon.errors import Fate, ListingdError, Lost, ProviderError
from daemon.handlers.context import JobContext, StepValue
from daemon.handlers.cutouts import Cutout, hash_bytes
from daemon.handlers.prompts import paint_prompt
from daemon.handlers.recent import Recent
from daemon.imaging import codec
from daemon.imaging.compose import fit_frame
from daemon.payloads import ImageInput
from daemon.providers.protocols import PaintAnswer, PaintRequest
from daemon.shield import finish

PAINT_TIMEOUT_S = 420.0  # a ceiling for any painter; the adapter's own setting is tighter
MAX_PAINT_PX = 2000  # models stop near 8 MP and get no better above this; larger pictures are enlarged
_PREVIEWS_WAITING = 4
_photos: Recent[bytes] = Recent(8)  # at 20 MB at most


@dataclass(frozen=True, slots=True)
class Painted:
    """image: the painter's bytes, still untrusted; generated and derived as in PaintAnswer."""

    image: bytes
    generated: bool
    derived: str
    provider: str
    model: str


async def paint_picture(ctx: JobContext, wanted: ImageInput, cutout: Cutout) -> Painted:
    """The picture for wanted.slot around the cut-out, square, at most MAX_PAINT_PX.

    Errors: ProviderError, and those of ctx.step.
    """
    painter = ctx.providers.paint
    size_px = min(wanted.size_px, MAX_PAINT_PX)
    prompt = paint_prompt(wanted.slot, wanted.product, wanted.style, width_px=size_px, height_px=size_px)
    photo = await clean_photo(ctx, cutout)
    request = PaintRequest(
        slot=wanted.slot,
        cutout_png=cutout.png,
        photos=(photo,),
        prompt=prompt.text,
        width_px=size_px,
        height_px=size_px,
        seed=int(cutout.sha256[:7], 16),
        palette=wanted.style.palette,
        hints={"category": f"{wanted.product.category or ''} {wanted.product.title}".strip(),
               "background": wanted.style.background},
        user_hash=hash_bytes(f"listingd:{ctx.user_id}".encode()),
        model=wanted.model,
        quality=wanted.quality,
    )  # fmt: skip

    async def call() -> StepValue:
        answer = await _paint_with_previews(ctx, request) if wanted.preview else await painter.paint(
            request, timeout_s=PAINT_TIMEOUT_S
        )  # fmt: skip
        return await paid_picture(answer, painter.name)

    value = await ctx.step(
        f"paint:{wanted.slot}",
        provider=painter.name,
        identity=(
            "paint", wanted.slot, painter.fingerprint, cutout.sha256, hash_bytes(photo), prompt.version,
            hash_bytes(prompt.text.encode()), f"{size_px}x{size_px}", ",".join(request.palette),
            request.hints["category"], request.hints["background"], wanted.model or "", wanted.quality or "",
        ),
        estimate_usd=painter.estimate_usd(request),
        call=call,
    )  # fmt: skip
    assert value.data is not None
    told = value.document or {}
    return Painted(
        image=value.data,
        generated=bool(told.get("generated", True)),
        derived=str(told.get("derived", "")),
        provider=painter.name,
        model=value.model,
    )


async def _paint_with_previews(ctx: JobContext, request: PaintRequest) -> PaintAnswer:
    """The answer; previews that arrive before it are saved as assets of role "partial" meanwhile.

    It is paid for: neither a preview that takes its time nor one that cannot be saved holds it up.
    """
    previews: asyncio.Queue[bytes] = asyncio.Queue(_PREVIEWS_WAITING)

    def on_partial(image: bytes, _index: int) -> None:
        if not previews.full():  # a preview that nobody could save in time is not worth waiting for
            previews.put_nowait(image)

    async def save_previews() -> None:
        while True:
            image = await previews.get()
            try:
                small = await ctx.in_thread(_shrink_preview, image)
                await ctx.save_asset(small, role="partial", content_type="image/jpeg", slot=request.slot,
                                     generated=True, provider=ctx.providers.paint.name)  # fmt: skip
            except Lost:
                return  # the step itself finds out, with the answer in its books
            except ListingdError:
                continue  # an unreadable preview says nothing about the finished picture

    saving = asyncio.create_task(save_previews(), name=f"previews {request.slot}")
    try:
        return await ctx.providers.paint.paint(request, timeout_s=PAINT_TIMEOUT_S, on_partial=on_partial)
    finally:
        saving.cancel()


async def paid_picture(answer: PaintAnswer, provider: str) -> StepValue:
    """What a step keeps of a painter's answer, also when it is cancelled meanwhile. Errors: ProviderError as
    _inspect_answer.
    """
    # The end of a JPEG of 20 MB takes 50 to 90 ms to find (2 cores, 2026-11-29).
    info = await finish(asyncio.to_thread(_inspect_answer, answer, provider))
    return StepValue(
        usage=answer.usage,
        data=answer.image,
        content_type=info.content_type,
        document={"generated": answer.generated, "derived": answer.derived},
        model=answer.model,
        request_id=answer.request_id,
        rate=answer.rate,
    )


def _inspect_answer(answer: PaintAnswer, provider: str) -> codec.PictureInfo:
    """An answer that is no picture is kept out of the store. Errors: ProviderError permanent, with what it cost."""
    try:
        return codec.inspect(answer.image)
    except ListingdError as exc:
        raise ProviderError(
            f"The painter's answer cannot be used: {exc.message}",
            provider=provider, fate=Fate.PERMANENT, code="answer_unusable",
            data={"cost_usd": str(answer.usage.cost_usd)},
        ) from exc  # fmt: skip


async def clean_photo(ctx: JobContext, cutout: Cutout) -> bytes:
    """The cut-out's photo as painters take it: upright JPEG without camera data. Made once for a pack."""
    return await _photos.find(cutout.photo_sha256, lambda: ctx.in_thread(_clean, cutout.photo, first=True))


def _clean(photo: bytes) -> bytes:
    return codec.encode_jpeg(codec.decode(photo), quality=95, max_bytes=20_000_000)


def _shrink_preview(image: bytes) -> bytes:
    picture = Image.fromarray(codec.flatten_on_white(codec.decode(image)))
    scale = min(1.0, 768 / max(picture.size))
    small = fit_frame(picture, round(picture.width * scale), round(picture.height * scale))
    return codec.encode_jpeg(np.asarray(small), quality=80)
