"""Measures a finished image for the marketplace checks: what the bytes hold, not what they were meant to."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image, ImageCms

from daemon.amazon.images import Measured
from daemon.imaging import codec
from daemon.imaging.compose import fit_frame, to_float

BORDER_SHARE = 0.01  # the band along the edges that must be background, as a share of the shorter side
# A JPEG rings by a step or two around a pale product's edge: that is not product. Whiteness of the border
# is measured exactly, without this allowance.
NOT_WHITE_BELOW = 250
_BACKDROP_SIDE_PX = 256
_EDGE_SLOPE = 1.5  # Delta E per px of the small copy


def measure(data: bytes, *, generated: bool = False, fill: float = 0.0) -> Measured:
    """The values that `amazon.images.check_image` judges. fill: by the product's mask, where that is known.

    Errors: those of `codec.decode`.
    """
    picture = codec.decode(data)
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        mode, colour_space = image.mode, _colour_space(image)
        has_alpha, has_exif = image.has_transparency_data, bool(image.info.get("exif"))
    rgb = codec.flatten_on_white(picture)
    white_border, seen, edges_touched = _measure_white(rgb)
    return Measured(
        format=codec.inspect(data).format,
        mode=mode,
        colour_space=colour_space,
        has_alpha=has_alpha,
        has_exif=has_exif,
        width_px=rgb.shape[1],
        height_px=rgb.shape[0],
        size_bytes=len(data),
        white_border=white_border,
        fill=max(seen, fill),
        seen=seen,
        edges_touched=edges_touched,
        generated=generated,
    )


def measure_backdrop(picture: Image.Image) -> tuple[float, float, float]:
    """(share of the area in which something ends, the same of what ends within the frame, L that nearly all exceeds).

    The first is under 0.01 for an empty backdrop, however lit or grainy, and 0.1 with a product as tall as most of it.
    The second tells a small thing from a hard horizon, which runs out of the frame: 0 for the horizon, and 0.008 for
    a thing that takes a fourteenth of a side.
    """
    small = fit_frame(picture, _BACKDROP_SIDE_PX, _BACKDROP_SIDE_PX)
    lab = cv2.GaussianBlur(cv2.cvtColor(to_float(small), cv2.COLOR_RGB2LAB), (0, 0), 2)
    slope = np.hypot(cv2.Scharr(lab, -1, 1, 0), cv2.Scharr(lab, -1, 0, 1)) / 32
    edges = np.linalg.norm(slope, axis=2) > _EDGE_SLOPE
    _, _, boxes, _ = cv2.connectedComponentsWithStats(edges.astype(np.uint8))
    x, y, width, height, area = boxes[1:].T  # the first is what is no edge
    is_within = (x > 0) & (y > 0) & (x + width < edges.shape[1]) & (y + height < edges.shape[0])
    return (
        float(edges.mean()),
        float(area[is_within].sum() / edges.size),
        float(np.percentile(lab[..., 0], 5)),
    )


def _measure_white(rgb: codec.Picture) -> tuple[float, float, int]:
    """(share of pure white in the border band, what is not white of the longer side, sides of the frame touched)."""
    height, width = rgb.shape[:2]
    pure = (rgb == 255).all(axis=2)
    band = max(1, round(min(height, width) * BORDER_SHARE))
    inner = np.zeros((height, width), dtype=bool)
    inner[band : height - band, band : width - band] = True
    white_border = float(pure[~inner].mean())

    product = rgb.min(axis=2) < NOT_WHITE_BELOW
    if not product.any():
        return white_border, 0.0, 0
    rows, columns = np.flatnonzero(product.any(axis=1)), np.flatnonzero(product.any(axis=0))
    seen = max((rows[-1] - rows[0] + 1) / height, (columns[-1] - columns[0] + 1) / width)
    touched = (rows[0] == 0, rows[-1] == height - 1, columns[0] == 0, columns[-1] == width - 1)
    return white_border, float(seen), sum(map(int, touched))


def _colour_space(image: Image.Image) -> str:
    profile = image.info.get("icc_profile")
    if not profile:
        return "untagged"
    try:
        described = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "unreadable"
    return "sRGB" if "srgb" in described.lower() else described.strip()[:60]
