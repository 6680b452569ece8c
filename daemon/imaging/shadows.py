"""Shadows of a product that stands on something: where it touches, and where it keeps the light away.

    alpha -> ground line (where each column's foot stands) -> contact shadow, cast shadow

All masks are h x w float32, 0 = lit, 1 = fully shaded, over the whole canvas.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from daemon.imaging.compose import FloatMask, blur

_WORK_PX = 900  # shadows are soft: they are drawn small and enlarged
_FOOT_SLOPE = 0.22  # how steeply the ground line may climb between feet (a view slightly from above)


def shade_ground(
    alpha: FloatMask, *, light_from_left: bool = True, reach: float = 0.60, rise: float = 0.19
) -> tuple[FloatMask, FloatMask]:
    """Contact and cast shadow of what stands on a horizontal surface, lit from one side and above.

    alpha: the product on the canvas, 0..1; reach, rise: how far the shadow of the product's top falls to
    the side and to the back, as shares of the product's height.
    """
    height, width = alpha.shape
    scale = min(1.0, _WORK_PX / max(height, width))
    small = cv2.resize(alpha, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    small = np.asarray(small, dtype=np.float32)
    if not light_from_left:
        small = np.ascontiguousarray(small[:, ::-1])
    contact, cast = _shade(np.asarray(small, dtype=np.float32), reach, rise)
    if not light_from_left:
        contact, cast = contact[:, ::-1], cast[:, ::-1]
    return _enlarge(contact, width, height), _enlarge(cast, width, height)


def ground_line(alpha: FloatMask) -> npt.NDArray[np.float32]:
    """For each column the y (px) of the ground under the product, from its feet; NaN where it has none."""
    height, width = alpha.shape
    solid = alpha > 0.5
    has_product = solid.any(axis=0)
    lowest = height - 1 - np.argmax(solid[::-1], axis=0)
    ground = np.where(has_product, lowest, -1e6).astype(np.float32)
    for x in range(1, width):
        ground[x] = max(ground[x], ground[x - 1] - _FOOT_SLOPE)
    for x in range(width - 2, -1, -1):
        ground[x] = max(ground[x], ground[x + 1] - _FOOT_SLOPE)
    ground[~has_product] = np.nan
    return ground


def _shade(alpha: FloatMask, reach: float, rise: float) -> tuple[FloatMask, FloatMask]:
    height, width = alpha.shape
    ground = ground_line(alpha)
    columns = np.flatnonzero(~np.isnan(ground))
    if len(columns) == 0:
        empty = np.zeros_like(alpha)
        return empty, empty
    filled = np.interp(np.arange(width), columns, ground[columns]).astype(np.float32)
    rows = np.arange(height, dtype=np.float32)[:, None]
    above = filled[None, :] - rows  # height over the ground, px
    top = float(np.max(np.where(alpha > 0.5, above, 0)))
    tall = max(top, 1.0)

    touching = alpha * np.clip(1 - above / (0.035 * tall + 3), 0, 1)
    touching = np.roll(touching, max(1, round(0.004 * tall)), axis=0)
    contact = np.clip(1.15 * blur(touching, 0.007 * tall + 0.6) + 0.75 * blur(touching, 0.03 * tall), 0, 1)

    # Flatten the ground to one level, project, and lay the result back on the ground line.
    level = float(np.max(filled))
    grid_x, grid_y = np.meshgrid(np.arange(width, dtype=np.float32), rows.ravel())
    flat = _sample(alpha, grid_x, grid_y - (level - filled)[None, :])
    # A point `up` over the ground falls to (x + reach·up, ground - rise·up): looked up from its target.
    up = (level - grid_y) / rise
    near = _sample(flat, grid_x - reach * up, level - up)
    near[up < 0] = 0
    far_share = np.clip(up / tall, 0, 1)
    soft = np.zeros_like(near)
    sigmas = (0.006, 0.018, 0.04, 0.075)
    for i, sigma in enumerate(sigmas):
        weight = np.clip(1 - np.abs(far_share * (len(sigmas) - 1) - i), 0, 1)
        soft += weight * blur(near, sigma * tall + 0.6)
    soft *= 1 - 0.55 * far_share
    cast = _sample(np.asarray(soft, dtype=np.float32), grid_x, grid_y + (level - filled)[None, :])
    return np.asarray(contact, dtype=np.float32), blur(cast, 0.01 * tall)


def _sample(
    picture: FloatMask, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    found = cv2.remap(
        picture, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT, borderValue=0,
    )  # fmt: skip
    return np.asarray(found, dtype=np.float32)


def _enlarge(mask: FloatMask, width: int, height: int) -> FloatMask:
    large = cv2.resize(np.ascontiguousarray(mask), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.asarray(large, dtype=np.float32), 0, 1)
