"""The cut-out of a photo, paid once: images of a pack and A+ documents of the same photo share one step."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from decimal import Decimal

from daemon.handlers.context import JobContext, StepValue
from daemon.imaging import codec
from daemon.payloads import PhotoRef

# A ceiling for any provider; the adapter's own setting is usually tighter.
CUTOUT_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Cutout:
    """A product cut out of its photo.

    photo: the seller's bytes; png: RGBA PNG of the same frame; photo_sha256, sha256: of the two, hex;
    provider, model: who cut it; cost_usd: what this job paid for it now.
    """

    photo: bytes
    png: bytes
    photo_sha256: str
    sha256: str
    provider: str
    model: str
    cost_usd: Decimal


def hash_bytes(data: bytes) -> str:
    """SHA-256 in hex. Over 5 ms for a few megabytes: call it in a thread."""
    return hashlib.sha256(data).hexdigest()


async def cut_out_photo(ctx: JobContext, ref: PhotoRef) -> Cutout:
    """The product of the photo behind `ref`, through a step whose identity is the photo and the provider.

    Errors: those of ctx.load_photo and ctx.step.
    """
    photo = await ctx.load_photo(ref)
    photo_sha256 = await asyncio.to_thread(hash_bytes, photo)
    info = await asyncio.to_thread(codec.inspect, photo)
    provider = ctx.providers.cutout

    async def call() -> StepValue:
        answer = await provider.cut_out(photo, timeout_s=CUTOUT_TIMEOUT_S)
        return StepValue(
            usage=answer.usage,
            data=answer.png,
            content_type="image/png",
            document={"confidence": answer.confidence},
            model=answer.model,
            request_id=answer.request_id,
            rate=answer.rate,
        )

    value = await ctx.step(
        "cutout",
        provider=provider.name,
        identity=("cutout", provider.name, provider.fingerprint, photo_sha256),
        estimate_usd=provider.estimate_usd(info.width_px, info.height_px),
        call=call,
        rate_cost=provider.rate_cost(info.width_px, info.height_px),
    )
    assert value.data is not None
    return Cutout(
        photo=photo,
        png=value.data,
        photo_sha256=photo_sha256,
        sha256=await asyncio.to_thread(hash_bytes, value.data),
        provider=provider.name,
        model=value.model,
        cost_usd=Decimal(0) if value.reused else value.usage.cost_usd,
    )
