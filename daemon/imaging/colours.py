"""Colours that suit a product: a small palette from its own pixels or from the seller's wishes.

All mixing happens in OKLCh, where equal steps look equal, so that a light tint of any product's colour is
calm and an accent of it is readable. Never touches the product's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

RGB = tuple[int, int, int]

_WARM_SAND = (75.0, 0.035)
_COOL_SAGE = (195.0, 0.020)


@dataclass(frozen=True, slots=True)
class Palette:
    """RGB 0..255 each. ground: backdrop of a drawn picture; panel: a step darker; wall: backdrop of a
    scene; accent: rules and marks; ink: headlines; muted: running text; light_product: the product is so
    light that it needs a darker backdrop.
    """

    ground: RGB
    panel: RGB
    wall: RGB
    accent: RGB
    ink: RGB
    muted: RGB
    light_product: bool


def from_lch(lightness: float, chroma: float, hue_deg: float) -> RGB:
    """The sRGB colour at OKLCh (0..1, about 0..0.4, degrees), clipped into the gamut.

    Source: Ottosson, "A perceptual color space for image processing", 2020.
    """
    a = chroma * math.cos(math.radians(hue_deg))
    b = chroma * math.sin(math.radians(hue_deg))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    red, green, blue = (_encode(min(1.0, max(0.0, v))) for v in linear)
    return red, green, blue


def to_lch(colour: RGB) -> tuple[float, float, float]:
    """OKLCh of an sRGB colour: lightness 0..1, chroma, hue in degrees 0..360."""
    red, green, blue = (_decode(v) for v in colour)
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    middle = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    lightness = 0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short
    a = 1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short
    b = 0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short
    return lightness, math.hypot(a, b), math.degrees(math.atan2(b, a)) % 360


def contrast(one: RGB, other: RGB) -> float:
    """Contrast ratio, 1..21. Source: WCAG 2.2, "contrast ratio"."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def palette_of(product: Image.Image, wishes: Sequence[str] = ()) -> Palette:
    """A palette for pictures around `product`.

    Shapes: product RGBA; wishes "#rrggbb", the first one gives the hue of the backdrops, the last one the
    accent.
    """
    mean_lightness, key, has_colour = _key_colour(product)
    light_product = mean_lightness > 0.80
    wanted = [_parse(text) for text in wishes]
    if wanted:
        _, wall_chroma, wall_hue = to_lch(wanted[0])
        _, accent_chroma, accent_hue = to_lch(wanted[-1])
        wall_chroma = min(wall_chroma, 0.06)
    else:
        accent_hue, accent_chroma = (key[2], key[1]) if has_colour else (60.0, 0.045)
        # A warm product stands out from a cool wall and the other way round.
        is_warm = has_colour and (key[2] < 105 or key[2] > 330)
        wall_hue, wall_chroma = _COOL_SAGE if is_warm else _WARM_SAND
    tint = min(accent_chroma if wanted else wall_chroma, 0.03)
    ground_hue = accent_hue if wanted else wall_hue
    return Palette(
        ground=from_lch(0.955 if light_product else 0.972, tint * 0.30, ground_hue),
        panel=from_lch(0.885 if light_product else 0.925, tint * 0.75, ground_hue),
        wall=from_lch(0.76 if light_product else 0.86, wall_chroma, wall_hue),
        accent=from_lch(0.50, min(max(accent_chroma, 0.05), 0.13), accent_hue),
        ink=from_lch(0.25, 0.015, accent_hue),
        muted=from_lch(0.43, 0.015, accent_hue),
        light_product=light_product,
    )


def _key_colour(product: Image.Image) -> tuple[float, tuple[float, float, float], bool]:
    """Mean lightness, the product's most telling colour, and whether that is a colour at all."""
    small = np.asarray(product.convert("RGBA").resize((96, 96), Image.Resampling.BOX), dtype=np.float32)
    seen = small[small[..., 3] > 200][:, :3]
    if len(seen) < 8:
        return 0.6, (0.6, 0.0, 0.0), False
    lab = cv2.cvtColor((seen / 255.0).reshape(-1, 1, 3), cv2.COLOR_RGB2LAB).reshape(-1, 3)
    groups = min(5, len(lab))
    cv2.setRNGSeed(7)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    no_labels = np.empty((0,), dtype=np.int32)
    _, labels, centres = cv2.kmeans(lab, groups, no_labels, stop, 2, cv2.KMEANS_PP_CENTERS)
    shares = np.bincount(labels.ravel(), minlength=groups) / len(lab)
    chroma = np.hypot(centres[:, 1], centres[:, 2])
    best = int(np.argmax(np.sqrt(shares) * chroma))
    rgb = cv2.cvtColor(centres[best].reshape(1, 1, 3).astype(np.float32), cv2.COLOR_LAB2RGB)
    red, green, blue = (round(float(v) * 255) for v in np.clip(rgb.ravel(), 0, 1))
    return float(lab[:, 0].mean()) / 100, to_lch((red, green, blue)), bool(chroma[best] > 14)


def _parse(text: str) -> RGB:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _luminance(colour: RGB) -> float:
    red, green, blue = (_decode(v) for v in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _decode(value: int) -> float:
    v = value / 255
    return v / 12.92 if v <= 0.04045 else float(((v + 0.055) / 1.055) ** 2.4)


def _encode(linear: float) -> int:
    v = linear * 12.92 if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(v * 255)
