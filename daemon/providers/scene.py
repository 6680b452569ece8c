"""The seller's product set into surroundings that a text-to-picture model painted."""

from __future__ import annotations

import numpy as np
from PIL import Image

from daemon.imaging.codec import Picture
from daemon.imaging.compose import alpha_on_canvas, place, trim
from daemon.imaging.shadows import shade_ground

_BOX, _FOOT = 0.62, 0.86  # shares of the canvas: the product's box, and where it stands


def set_in_scene(scene: Picture | None, cutout: Picture, width_px: int, height_px: int) -> Picture:
    """The product in the lower middle of the scene with contact and cast shadow, RGB.

    Without a scene: on a transparent canvas, RGBA, for models that paint what is transparent.
    """
    placed = place(
        trim(Image.fromarray(cutout).convert("RGBA")),
        centre_x=width_px / 2, bottom=_FOOT * height_px, width_px=_BOX * width_px, height_px=_BOX * height_px,
    )  # fmt: skip
    if scene is None:
        canvas = Image.new("RGBA", (width_px, height_px))
        canvas.paste(placed.product, (placed.x, placed.y))
        return np.asarray(canvas, dtype=np.uint8)
    contact, cast = shade_ground(alpha_on_canvas(placed, width_px, height_px))
    light = (1 - 0.55 * np.clip(contact, 0, 1)) * (1 - 0.30 * np.clip(cast, 0, 1))
    shaded = Image.fromarray((scene * light[..., None]).astype(np.uint8))
    shaded.paste(placed.product, (placed.x, placed.y), placed.product)
    return np.asarray(shaded, dtype=np.uint8)
