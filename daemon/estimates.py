"""What a job would cost: the configured providers' own estimates of the calls it would make. Calls nothing.

An upper bound: results that are stored already are not paid again, and a product without facts skips modules.
"""

from __future__ import annotations

from decimal import Decimal

from daemon.amazon.aplus_limits import LIMITS, AplusModule
from daemon.handlers.slots import SLOTS, plan_slots
from daemon.payloads import AplusInput, ImageInput, PackInput, Payload, Slot
from daemon.providers.protocols import JsonRequest, PaintRequest, Providers

PHOTO_PX = 2000  # assumed side of the photo; cut-out services price by image or by megapixel
MOST_BLOCKS = 4  # of a module whose pictures follow the seller's points
PLANNED: tuple[AplusModule, ...] = (
    "STANDARD_HEADER_IMAGE_TEXT", "STANDARD_THREE_IMAGE_TEXT", "STANDARD_IMAGE_TEXT_OVERLAY",
)  # fmt: skip
"""The modules with pictures of a document whose modules are left to us."""


def estimate_usd(job_input: Payload, providers: Providers) -> Decimal:
    """USD of all calls of a job, its children included."""
    cutout = providers.cutout.estimate_usd(PHOTO_PX, PHOTO_PX)
    match job_input:
        case ImageInput():
            return cutout + _painting(job_input, (job_input.slot,), providers)
        case PackInput():
            # The children share one cut-out: the ledger pays the same call once.
            return cutout + _painting(job_input, plan_slots(job_input.slots, job_input.product), providers)
        case AplusInput():
            text = providers.text.estimate_usd(JsonRequest(prompt="", schema={}))
            if job_input.photo is None:
                return text
            count = sum(_count_images(module) for module in job_input.modules or PLANNED)
            return (
                text + cutout + count * providers.paint.estimate_usd(_request("lifestyle", 1024, None, None))
            )
        case _:
            return Decimal(0)


def _count_images(module: AplusModule) -> int:
    return sum(MOST_BLOCKS if "*" in path else 1 for path in LIMITS[module].images)


def _painting(job: ImageInput | PackInput, slots: tuple[Slot, ...], providers: Providers) -> Decimal:
    return sum(
        (
            providers.paint.estimate_usd(_request(slot, job.size_px, job.model, job.quality))
            for slot in slots
            if SLOTS[slot].maker == "painter"
        ),
        Decimal(0),
    )


def _request(slot: str, size_px: int, model: str | None, quality: str | None) -> PaintRequest:
    return PaintRequest(
        slot=slot, cutout_png=b"", photos=(), prompt="", width_px=size_px, height_px=size_px,
        model=model, quality=quality,
    )  # fmt: skip
