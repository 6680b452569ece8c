"""The close-up: which part of a product is worth looking at, and whether the photo is sharp enough there."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from daemon.imaging import codec
from daemon.imaging.colours import palette_of
from daemon.imaging.compose import FloatMask, blur, reach_of, trim

_WORK_PX = 320
_SOFT_SHARPNESS = 25.0  # variance of the Laplacian; photos out of focus measure below (own measurements)


@dataclass(frozen=True, slots=True)
class CloseUp:
    """picture: RGB square; source_px: side of the region in the photo's own pixels; cover: share of the
    region that is product, 0..1; sharpness: variance of the Laplacian of its grey values (0..255 scale).
    """

    picture: Image.Image
    source_px: int
    cover: float
    sharpness: float

    @property
    def is_soft(self) -> bool:
        return self.sharpness < _SOFT_SHARPNESS


def crop_detail(cutout: Image.Image, size_px: int, wishes: tuple[str, ...] = ()) -> CloseUp:
    """The most telling square of the product, enlarged to size_px.

    The region is between a third and 64 % of the product's longer side, larger when the photo has few
    pixels, and lies on the product; where a little background is in it, a calm tint stands there.

    Shapes: cutout RGBA, the photo's full frame.
    Errors: Reject cutout_empty.
    """
    product = trim(cutout)
    width, height = product.size
    long_side, short_side = max(width, height), min(width, height)
    # As many of the photo's own pixels as possible up to 1000, but never so much that it is no close-up.
    side = round(min(max(1000, 0.34 * long_side), 0.64 * long_side, max(0.34 * long_side, 0.9 * short_side)))

    scale = _WORK_PX / long_side
    work = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = np.asarray(product.resize(work, Image.Resampling.BOX))
    x, y, cover = _best_window(
        np.ascontiguousarray(small[..., :3]),
        np.asarray(small[..., 3], dtype=np.float32) / np.float32(255),
        round(side * scale),
    )
    # A product narrower than the window stands in its middle; the crop reaches past its edges there.
    x_px = round(min(x / scale, width - side)) if width > side else round((width - side) / 2)
    y_px = round(min(y / scale, height - side)) if height > side else round((height - side) / 2)
    region = product.crop((x_px, y_px, x_px + side, y_px + side))

    sharpness = _measure_sharpness(region)
    ground = Image.new("RGB", region.size, palette_of(product, wishes).panel)
    ground.paste(region, (0, 0), region)
    picture = ground.resize((size_px, size_px), Image.Resampling.LANCZOS)
    if size_px > 1.15 * side:
        picture = _crispen(picture, sigma_px=min(2.5, 0.6 * size_px / side))
    return CloseUp(picture, side, cover, sharpness)


def _measure_sharpness(region: Image.Image) -> float:
    """Variance of the Laplacian inside the product; its silhouette does not count."""
    grey = np.asarray(region.convert("RGB").convert("L"), dtype=np.float32)
    inside = cv2.erode(np.asarray(region.getchannel("A")), np.ones((7, 7), np.uint8)) > 250
    values = cv2.Laplacian(grey, cv2.CV_32F)[inside]
    return float(values.var()) if values.size else 0.0


def _best_window(pixels: npt.NDArray[np.uint8], mask: FloatMask, side: int) -> tuple[int, int, float]:
    """Top left corner of the window with most going on inside the product, and its share of product."""
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB).astype(np.float32)
    inner = cv2.erode(mask, np.ones((5, 5), np.uint8))
    edges = np.zeros_like(mask)
    for channel, weight in ((0, 1.0), (1, 1.4), (2, 1.4)):
        plane = lab[..., channel]
        gx, gy = cv2.Sobel(plane, cv2.CV_32F, 1, 0), cv2.Sobel(plane, cv2.CV_32F, 0, 1)
        edges += weight * np.sqrt(gx * gx + gy * gy)
    # Clipped, so that one hard edge does not beat a finely worked area. The silhouette does not count.
    inside = edges[inner > 0.5]
    ceiling = float(np.percentile(inside, 97)) if inside.size else 1.0
    energy = np.asarray(np.minimum(edges, ceiling) * inner, dtype=np.float32)
    height, width = mask.shape
    side_x, side_y = min(side, width), min(side, height)
    rim = max(1, round(0.06 * side))
    whole = _window_means(energy, side_x, side_y)
    sums = whole.copy()
    if min(side_x, side_y) > 4 * rim:
        # What the frame cuts through counts against a window: a mark on the product is shown whole.
        core = _window_means(energy, side_x - 2 * rim, side_y - 2 * rim)[rim:-rim, rim:-rim]
        core_area, area = (side_x - 2 * rim) * (side_y - 2 * rim), side_x * side_y
        border = (whole * area - core * core_area) / (area - core_area)
        sums = core - 0.8 * np.maximum(border, 0)
        sums -= float(sums.min())
    covers = _window_means(mask, side_x, side_y)
    centre_y = (np.arange(sums.shape[0], dtype=np.float32)[:, None] + side_y / 2) / height - 0.5
    centre_x = (np.arange(sums.shape[1], dtype=np.float32)[None, :] + side_x / 2) / width - 0.5
    calm = 1 - 0.25 * (centre_x**2 + centre_y**2)
    score = sums * calm * np.clip(covers, 0, 1) ** 2
    y, x = np.unravel_index(int(np.argmax(score)), score.shape)
    return int(x), int(y), float(covers[y, x])


def _window_means(values: FloatMask, width: int, height: int) -> npt.NDArray[np.float64]:
    total = cv2.integral(values, sdepth=cv2.CV_64F)
    sums = (
        total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    )
    return np.asarray(sums / (width * height), dtype=np.float64)


def _crispen(picture: Image.Image, *, sigma_px: float) -> Image.Image:
    pixels = np.asarray(picture)
    crisp = np.empty_like(pixels)
    for rows, around, own in codec.bands_around(len(pixels), reach_of(sigma_px)):
        part = pixels[around].astype(np.float32)
        sharp = part[own] + 0.5 * (part[own] - blur(part, sigma_px)[own])
        crisp[rows] = np.rint(np.clip(sharp, 0, 255))
    return Image.fromarray(crisp)
