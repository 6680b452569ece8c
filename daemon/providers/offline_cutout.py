"""The cut-out without any service: OpenCV on plain backgrounds, and an honest refusal on all others.

Serves `protocols.CutoutProvider`. Costs nothing, calls nobody; the pixel work runs in a thread.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING

from daemon.errors import Fate, ProviderError
from daemon.later import later
from daemon.providers.protocols import CutoutAnswer, Usage

if TYPE_CHECKING:
    from daemon.imaging import codec, cutout
else:
    codec, cutout = later("daemon.imaging.codec"), later("daemon.imaging.cutout")

_HINT = (
    "To cut out photos like this one, set LISTINGD_CUTOUT__PROTOCOL to removebg, rembg or withoutbg, with "
    "LISTINGD_CUTOUT__API_KEY and, for a service other than remove.bg itself, LISTINGD_CUTOUT__BASE_URL. "
    "removebg is spoken by remove.bg, Pixian, Cutmatte, PixMiller and CarveKit; rembg by `rembg s`; "
    "withoutbg by the withoutBG container."
)


class OfflineCutout:
    """Cuts out products on plain backgrounds; refuses with `cutout_unreliable` when it is not sure."""

    @property
    def name(self) -> str:
        return "offline"

    @property
    def fingerprint(self) -> str:
        return _name_model()

    def estimate_usd(self, width_px: int, height_px: int) -> Decimal:
        return Decimal(0)

    def rate_cost(self, width_px: int, height_px: int) -> float:
        return 1.0

    async def cut_out(self, photo: bytes, *, timeout_s: float) -> CutoutAnswer:
        """Errors: ProviderError PERMANENT cutout_unreliable; RETRY cutout_timeout; those of codec.decode."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.to_thread(_cut_out, photo)
        except TimeoutError as exc:
            raise ProviderError(
                f"Cutting out the product took longer than {timeout_s:.0f} s.",
                provider="offline",
                fate=Fate.RETRY,
                code="cutout_timeout",
                hint="The machine is overloaded: lower LISTINGD_WORKERS__CONCURRENCY or add a process.",
            ) from exc

    async def close(self) -> None:
        """Nothing is open."""


def _name_model() -> str:
    return f"offline-cutout-{cutout.VERSION}"


def _cut_out(photo: bytes) -> CutoutAnswer:
    found = cutout.cut_out(codec.decode(photo))
    if not found.is_sure:
        raise ProviderError(
            "The product could not be cut out of this photo reliably. "
            f"{found.reasons[0]} Take the photo on a plain, evenly lit background of another colour than the product, "
            "with space on all sides.",
            provider="offline",
            fate=Fate.PERMANENT,
            code="cutout_unreliable",
            hint=_HINT,
            data={"confidence": found.confidence, "reasons": list(found.reasons)},
        )
    return CutoutAnswer(
        png=codec.encode_png(found.rgba),
        usage=Usage(),
        model=_name_model(),
        confidence=found.confidence,
    )
