"""Pictures and requests that tests of providers send."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageDraw

from daemon.providers.protocols import PaintRequest
from tests.protocol_servers.pictures import encode_png


def product_photo(width_px: int = 640, height_px: int = 480, kind: str = "JPEG") -> bytes:
    """A red mug on a near-white ground."""
    picture = Image.new("RGB", (width_px, height_px), (246, 246, 244))
    _draw_mug(picture, width_px, height_px)
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def product_cutout(width_px: int = 640, height_px: int = 480) -> bytes:
    """The same mug as RGBA PNG, transparent around it."""
    picture = Image.new("RGBA", (width_px, height_px))
    _draw_mug(picture, width_px, height_px)
    return encode_png(picture)


def _draw_mug(picture: Image.Image, width_px: int, height_px: int) -> None:
    draw = ImageDraw.Draw(picture)
    w, h = width_px, height_px
    draw.ellipse((0.58 * w, 0.35 * h, 0.78 * w, 0.65 * h), outline=(150, 24, 32), width=max(2, w // 30))
    draw.rounded_rectangle((0.30 * w, 0.22 * h, 0.66 * w, 0.80 * h), radius=w // 20, fill=(190, 36, 44))


def paint_request(**changes: Any) -> PaintRequest:
    given: dict[str, Any] = {
        "slot": "lifestyle",
        "cutout_png": product_cutout(),
        "photos": (product_photo(),),
        "prompt": "A red mug on a wooden table in morning light",
        "width_px": 2000,
        "height_px": 2000,
        "user_hash": "a" * 64,
    }
    return PaintRequest(**(given | changes))
