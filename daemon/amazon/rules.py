"""Amazon's rules for listing images as data: slots, codes, sizes, limits, file names.

Source: Amazon Seller Central, "Product image requirements" and "Image file names", read 2026-11-23.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.errors import InvalidInput

MAIN = "MAIN"
SECONDARY_CODES = tuple(f"PT{n:02d}" for n in range(1, 9))

MAX_BYTES = 10_000_000
MIN_SIDE_PX = 500
ZOOM_SIDE_PX = 1000
RECOMMENDED_SIDE_PX = 1600
MAX_SIDE_PX = 10_000
MIN_FILL = 0.85
FORMATS = ("JPEG", "PNG", "TIFF", "GIF")
PREFERRED_FORMAT = "JPEG"

_CODES = {
    "main": MAIN, "angle": "PT01", "lifestyle": "PT02", "infographic": "PT03", "detail": "PT04",
    "dimensions": "PT05", "in_the_box": "PT06",
}  # fmt: skip
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "GIF": "gif"}
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Numbers an image of one role must keep. None: the rule does not apply to this role.

    Sides in px, weight in bytes, shares 0..1. min_white_border: share of the border band that is exactly
    255,255,255; below warn_white_border the image passes with a warning.
    """

    min_side_px: int = MIN_SIDE_PX
    zoom_side_px: int = ZOOM_SIDE_PX
    recommended_side_px: int = RECOMMENDED_SIDE_PX
    max_side_px: int = MAX_SIDE_PX
    max_bytes: int = MAX_BYTES
    formats: tuple[str, ...] = FORMATS
    preferred_format: str = PREFERRED_FORMAT
    min_fill: float | None = None
    min_white_border: float | None = None
    may_be_generated: bool = True


MAIN_LIMITS = ImageLimits(min_fill=MIN_FILL, min_white_border=1.0, may_be_generated=False)
SECONDARY_LIMITS = ImageLimits()


def limits_of(slot: str) -> ImageLimits:
    """The limits for a slot of a pack."""
    return MAIN_LIMITS if slot == "main" else SECONDARY_LIMITS


def code_of(slot: str, slots: Sequence[str] | None = None) -> str:
    """Amazon's variant code: MAIN, PT01 and so on. With `slots`, codes are dealt without gaps in that order.

    Errors: InvalidInput slot_unknown.
    """
    if slot not in _CODES:
        raise InvalidInput(
            f"There is no image slot {slot!r}.", code="slot_unknown", hint=f"Use one of {', '.join(_CODES)}."
        )
    if slots is None or slot == "main":
        return _CODES[slot]
    return SECONDARY_CODES[[s for s in slots if s != "main"].index(slot)]


def file_name(identifier: str, code: str, image_format: str = PREFERRED_FORMAT) -> str:
    """`<SKU or ASIN>.<VARIANT>.<ext>`, for example B07ABCD123.MAIN.jpg.

    Amazon splits the name at its dots: a dot or anything unusual within the identifier becomes a dash.
    """
    parts = _IDENTIFIER.findall(identifier)
    return f"{'-'.join(parts) or 'product'}.{code}.{_EXTENSIONS[image_format]}"
