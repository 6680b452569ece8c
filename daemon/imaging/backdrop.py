"""What would be seen without the product: one smooth backdrop, or a wall above a ground.

    border --quadratic per channel-----------------------> a sweep
           --a step on the left and on the right side----> horizon --quadratic above, quadratic below--> two parts

Most sellers stand a product on a table in front of a wall. Each part of such a scene is as plain as a sweep;
one surface through both is right for neither. Where they meet any mixture of the two is backdrop as well.
Sizes are in pixels of the working copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]

MIN_STEP = 3.0  # Delta E between wall and ground: below this one surface does as well
MAX_MEETING = 0.03  # of the height: softer than this it is a sweep's curve and no horizon
MIN_KNOWN_PX = 200  # of a part: a surface through fewer is a guess
LEAST_HEIGHT = 64  # px: fewer rows do not show a step and what lies on either side
MAX_TILT = 0.2  # of the height, from side to side
_LOWEST, _HIGHEST = 0.9, 0.12  # where a horizon may lie, as shares of the height


@dataclass(frozen=True, slots=True)
class Horizon:
    """The straight line where a wall meets the ground. left, right: its y at the frame's sides (px);
    reach: how far from the line the two are mixed (px).
    """

    left: float
    right: float
    reach: float

    def height_over(self, height: int, width: int) -> Plane:
        """How far each pixel lies over the line (px, negative below it)."""
        line = np.linspace(self.left, self.right, width, dtype=np.float32)[None, :]
        return np.asarray(line - np.arange(height, dtype=np.float32)[:, None])


@dataclass(frozen=True, slots=True)
class Backdrop:
    """lab: what lies behind each pixel; noise: its median Delta E from the surface, per pixel;
    unevenness: 95th percentile of that, of the worse part.
    """

    lab: Plane
    noise: Plane
    unevenness: float


def find_horizon(lab: Plane) -> Horizon | None:
    """The horizon that both sides of the frame show, or None for a seamless backdrop."""
    height, width = lab.shape[:2]
    if height < LEAST_HEIGHT:
        return None
    band = max(2, round(0.03 * width))
    left, right = (_find_step(np.median(side, axis=1)) for side in (lab[:, :band], lab[:, -band:]))
    if left is None or right is None or abs(left[0] - right[0]) > MAX_TILT * height:
        return None
    return Horizon(left[0], right[0], max(left[1], right[1]))


def fit_backdrop(lab: Plane, known: Mask, horizon: Horizon | None) -> Backdrop:
    """The surfaces through what is known to be backdrop."""
    height, width = known.shape
    if horizon is not None:
        over = horizon.height_over(height, width)
        is_wall, is_ground = over > horizon.reach, over < -horizon.reach
    if horizon is None or min((known & is_wall).sum(), (known & is_ground).sum()) < MIN_KNOWN_PX:
        behind, noise, unevenness = _fit_surface(lab, known)
        return Backdrop(behind, np.full(known.shape, noise, dtype=np.float32), unevenness)
    wall, wall_noise, wall_unevenness = _fit_surface(lab, known & is_wall)
    ground, ground_noise, ground_unevenness = _fit_surface(lab, known & is_ground)
    # Where they meet, the mixture that comes nearest to what is seen.
    axis = ground - wall
    share = ((lab - wall) * axis).sum(axis=2) / np.maximum((axis * axis).sum(axis=2), 1)
    share = np.where(is_wall, 0, np.where(is_ground, 1, np.clip(share, 0, 1))).astype(np.float32)
    return Backdrop(
        np.asarray(wall + share[..., None] * axis, dtype=np.float32),
        np.where(over > 0, wall_noise, ground_noise).astype(np.float32),
        max(wall_unevenness, ground_unevenness),
    )


def _fit_surface(lab: Plane, known: Mask) -> tuple[Plane, float, float]:
    """(a quadratic surface per channel, its noise, its unevenness), outliers weighted down."""
    height, width = known.shape
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    rows = np.flatnonzero(known.ravel())
    rows = rows[:: max(1, len(rows) // 20_000)]
    at_x, at_y = x[rows % width], y[rows // width, 0]
    a = np.stack((np.ones_like(at_x), at_x, at_y, at_x * at_x, at_x * at_y, at_y * at_y), axis=-1)
    b = lab.reshape(-1, 3)[rows].astype(np.float64)
    weight = np.ones(len(rows))
    for _ in range(6):
        weighted = (a * weight[:, None]).T
        # The normal equations: six terms within -1..1 are far from singular, and it takes a tenth of the time.
        surface = np.linalg.lstsq(weighted @ a, weighted @ b, rcond=None)[0]
        apart = np.linalg.norm(b - a @ surface, axis=1)
        scale = max(0.6, 1.5 * float(np.median(apart)))
        weight = 1 / (1 + (apart / scale) ** 2) ** 2
    one, by_x, by_y, by_xx, by_xy, by_yy = (c.astype(np.float32) for c in surface[:, None, None, :])
    across, down = x.astype(np.float32)[None, :, None], y.astype(np.float32)[:, :, None]
    behind = one + across * (by_x + by_xx * across) + down * (by_y + by_xy * across + by_yy * down)
    return (
        np.asarray(behind, dtype=np.float32),
        float(np.median(apart)),
        float(np.percentile(apart, 95)),
    )


def _find_step(side: NDArray[np.float32]) -> tuple[float, float] | None:
    """(row, reach in px) of the one step in a side's colours from top to bottom (h x 3); None without one."""
    height = len(side)
    least, most = round(_HIGHEST * height), round(_LOWEST * height)
    gap = max(2, round(MAX_MEETING * height))
    coarse = max(1, height // 80)
    at = min(range(least, most, coarse), key=lambda row: _misfit(side, row, gap))
    at = min(range(at - coarse, at + coarse + 1), key=lambda row: _misfit(side, row, gap))
    above, below = _line_through(side, 0, at - gap), _line_through(side, at + gap, height)
    axis = below[at] - above[at]
    step2 = float((axis * axis).sum())
    whole = float(((side - _line_through(side, 0, height)) ** 2).sum())
    if step2 < MIN_STEP**2 or _misfit(side, at, gap) > 0.25 * whole:
        return None
    near = slice(at - gap, at + gap)
    share = ((side[near] - above[near]) @ axis) / step2
    mixed = np.flatnonzero((share > 0.1) & (share < 0.9)) if len(share) else np.empty(0, dtype=np.intp)
    row = at - gap + int(np.argmax(share > 0.5))
    reach = max(2.0, float(np.abs(mixed + at - gap - row).max()) + 2 if len(mixed) else 2.0)
    return float(row), reach


def _misfit(side: NDArray[np.float32], row: int, gap: int) -> float:
    """What a curve above and a curve below a row leave unexplained, the rows within the gap apart."""
    above, below = side[: row - gap], side[row + gap :]
    rest = float(((above - _line_through(side, 0, row - gap)[: row - gap]) ** 2).sum())
    return rest + float(((below - _line_through(side, row + gap, len(side))[row + gap :]) ** 2).sum())


def _line_through(side: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
    """The quadratic through some rows of a side, at all of them."""
    y = np.linspace(-1, 1, len(side))
    terms = np.stack((np.ones_like(y), y, y * y), axis=1)
    curve = np.linalg.lstsq(terms[start:stop], side[start:stop], rcond=None)[0]
    return np.asarray(terms @ curve, dtype=np.float32)
