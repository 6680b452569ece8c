"""Paints without any model: real image processing on the seller's own pixels, free and repeatable.

Everything it delivers consists of the product's photograph and of surroundings drawn by code, so
`generated` is always False; `derived` says how a picture came about.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING

from daemon.errors import Fate, ListingdError, ProviderError
from daemon.later import later
from daemon.providers.protocols import PaintAnswer, PaintRequest, PartialImage, Usage

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from daemon.imaging import codec, colours, compose, detail, scenes
else:
    np, Image = later("numpy"), later("PIL.Image")
    codec, colours = later("daemon.imaging.codec"), later("daemon.imaging.colours")
    compose, detail = later("daemon.imaging.compose"), later("daemon.imaging.detail")
    scenes = later("daemon.imaging.scenes")

_MODEL = "offline-paint-1"


class OfflinePaint:
    """The PaintProvider of a machine without keys. As many pictures at a time as there are cores: more would only
    take memory, up to 0.6 GB each of a photo of 40 MP.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="offline-paint")

    @property
    def name(self) -> str:
        return "offline"

    @property
    def fingerprint(self) -> str:
        return _MODEL

    def estimate_usd(self, request: PaintRequest) -> Decimal:
        return Decimal(0)

    async def paint(
        self,
        request: PaintRequest,
        *,
        timeout_s: float,
        on_partial: PartialImage | None = None,
    ) -> PaintAnswer:
        """Slots angle, lifestyle, infographic (the empty backdrop), and every A+ role at any ratio.

        Errors: ProviderError permanent (cut-out unusable, unknown slot), retry (timeout_s is over).
        """
        try:
            async with asyncio.timeout(timeout_s):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, _paint, request)
        except TimeoutError as exc:
            raise ProviderError(
                f"Painting the {request.slot} picture took longer than {timeout_s:.0f} s.",
                provider=self.name, fate=Fate.RETRY, code="paint_timeout",
            ) from exc  # fmt: skip

    async def close(self) -> None:
        """Give up what has not begun, without waiting for what has."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _paint(request: PaintRequest) -> PaintAnswer:
    try:
        cutout = compose.read_cutout(request.cutout_png)
        picture, derived = _compose(request, cutout)
    except ListingdError as exc:
        raise ProviderError(
            exc.message, provider="offline", fate=Fate.PERMANENT, code=exc.code, hint=exc.hint
        ) from exc
    data = codec.encode_jpeg(np.asarray(picture), quality=97, max_bytes=30_000_000)
    return PaintAnswer(data, Usage(), _MODEL, generated=False, derived=derived)


def _compose(request: PaintRequest, cutout: Image.Image) -> tuple[Image.Image, str]:
    width, height, seed, wishes = request.width_px, request.height_px, request.seed, request.palette
    category = request.hints.get("category", "")
    if request.slot == "angle":
        turn = 1.0 if seed % 2 == 0 else -1.0
        picture = scenes.paint_studio(cutout, width, height, seed=seed, wishes=wishes, turn=turn)
        return picture, "perspective variant of the same photo: the product turned as a flat card"
    if request.slot == "lifestyle":
        picture = scenes.paint_lifestyle(cutout, width, height, seed=seed, wishes=wishes, category=category)
        return picture, "scene drawn by code around the cut-out product"
    if request.slot == "infographic":
        palette = colours.palette_of(compose.trim(cutout), wishes)
        return compose.to_image(scenes.paint_sweep(palette, width, height)), "backdrop drawn by code"
    if request.slot.startswith("aplus"):
        return _compose_aplus(request, cutout, category)
    raise ProviderError(
        f"The offline painter knows no slot {request.slot!r}.",
        provider="offline", fate=Fate.PERMANENT, code="slot_unknown",
    )  # fmt: skip


def _compose_aplus(request: PaintRequest, cutout: Image.Image, category: str) -> tuple[Image.Image, str]:
    """A scene for broad and large pictures; small ones alternate between scene, studio and close-up.

    hints["view"] ("scene", "studio", "detail") chooses, else the seed does.
    """
    width, height, seed, wishes = request.width_px, request.height_px, request.seed, request.palette
    views = ("scene", "studio", "detail")
    is_small = max(width, height) < 260
    is_square = 0.8 < width / height < 1.25
    by_seed = "studio" if is_small else views[seed % 3] if is_square else "scene"
    view = request.hints.get("view", by_seed)
    # Small pictures are composed larger and scaled down: fine edges and soft shadows need the room.
    grow = max(1.0, 900 / max(width, height))
    big_w, big_h = round(width * grow), round(height * grow)
    if view == "detail":
        close_up = detail.crop_detail(cutout, max(big_w, big_h), wishes)
        picture, derived = close_up.picture, "close-up of the seller's photo"
    elif view == "studio":
        picture = scenes.paint_studio(cutout, big_w, big_h, seed=seed, wishes=wishes, box=(0.8, 0.8))
        derived = "product on a backdrop drawn by code"
    else:
        picture = scenes.paint_lifestyle(cutout, big_w, big_h, seed=seed, wishes=wishes, category=category)
        derived = "scene drawn by code around the cut-out product"
    return compose.fit_frame(picture, width, height), derived
