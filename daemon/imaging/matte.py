"""From a hard mask to a soft edge: alpha per pixel, and the background's colour taken out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon.imaging.codec import Picture

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice]  # rows, columns

_TILE_PX = 512
_MIN_CONTRAST = 12.0  # 8-bit steps between product and background below which colour says nothing of alpha


@dataclass(frozen=True, slots=True)
class _Edge:
    """A band along a mask's edge. share: of the product in each pixel, 0..1; product: its colour carried
    over the band; behind: the background's; known: where a colour of the product is in sight.
    """

    band: Mask
    share: Plane
    product: Plane
    behind: Plane
    known: Mask


def cut_with_soft_edge(picture: Picture, mask: Mask) -> Picture:
    """RGBA of the photo's full size from its RGB and a mask at any size.

    The mask is first moved onto the edge that the colours show, to half a pixel of its own size. Then, in
    a narrow band at full size, alpha comes from where the colour lies between the nearby product and the
    nearby background, and the product's colour replaces the mixture: no fringe shows on a new background.
    """
    height, width = picture.shape[:2]
    rgba = np.zeros((height, width, 4), dtype=np.uint8)
    scale = max(1.0, width / mask.shape[1])
    small = cv2.resize(picture, (mask.shape[1], mask.shape[0]), interpolation=cv2.INTER_AREA)
    settled = _settle(small.astype(np.float32), mask)
    soft = cv2.resize(settled, (width, height), interpolation=cv2.INTER_CUBIC)
    hard = soft > 0.5
    box = _box(hard, round(8 * scale) + 4)
    if box is None:
        return rgba
    reach = max(2, round(0.9 * scale + 0.8))
    # Tile by tile: the planes of a whole 40 MP photo took 4 GB, and most tiles hold no edge.
    for tile, seen in _tiles(box, margin=5 * reach + 2):
        rgba[tile] = _cut_tile(picture[seen], hard[seen], reach)[_within(tile, seen)]
    return rgba


def _cut_tile(picture: Picture, hard: Mask, reach: int) -> Picture:
    """RGBA of a part of the photo, right as far as its margin."""
    if hard.all() or not hard.any():
        return np.dstack((picture * hard[..., None], hard * np.uint8(255)))
    part = picture.astype(np.float32)
    edge = _edge(part, hard, reach=reach)
    # What is left of the background's noise must not stay as haze, nor nick the product.
    share = np.clip((edge.share - 0.06) / 0.88, 0, 1)
    alpha = np.where(edge.band, share, hard).astype(np.float32)[..., None]
    clean = (part - (1 - alpha) * edge.behind) / np.maximum(alpha, 0.05)
    # Dividing by a small alpha multiplies noise: there the colour of the product close by is the better guess.
    sure = np.clip((alpha - 0.35) / 0.5, 0, 1)
    clean = sure * clean + (1 - sure) * edge.product
    mixed = edge.band[..., None] & (alpha < 1) & edge.known[..., None]
    cut = np.dstack((np.where(mixed, clean, part), alpha * 255))
    cut[alpha[..., 0] <= 0] = 0
    return np.clip(cut + 0.5, 0, 255).astype(np.uint8)


def _tiles(box: Box, *, margin: int) -> Iterator[tuple[Box, Box]]:
    """(tile, the same with a margin) of a box, which none of them leaves."""
    rows, columns = box
    for top in range(rows.start, rows.stop, _TILE_PX):
        for left in range(columns.start, columns.stop, _TILE_PX):
            bottom, right = min(top + _TILE_PX, rows.stop), min(left + _TILE_PX, columns.stop)
            yield (
                (slice(top, bottom), slice(left, right)),
                (
                    slice(max(rows.start, top - margin), min(rows.stop, bottom + margin)),
                    slice(max(columns.start, left - margin), min(columns.stop, right + margin)),
                ),
            )


def _within(tile: Box, seen: Box) -> Box:
    """Where a tile lies in what was seen of it."""
    rows, columns = (
        slice(one.start - other.start, one.stop - other.start) for one, other in zip(tile, seen, strict=True)
    )
    return rows, columns


def _settle(colour: Plane, mask: Mask) -> Plane:
    """The mask, 0..1, with its edge where product and background mix half and half."""
    edge = _edge(colour, mask, reach=3)
    share = np.where(edge.band, edge.share, mask).astype(np.float32)
    solid = cv2.medianBlur((share > 0.5).astype(np.uint8), 5)
    # Keep the fine position where the median agrees; where it does not, a speck or a nick is taken out.
    share = np.where(solid > 0, np.maximum(share, 0.5 + 1e-3), np.minimum(share, 0.5 - 1e-3))
    return np.asarray(cv2.GaussianBlur(share.astype(np.float32), (0, 0), 0.6), dtype=np.float32)


def _edge(colour: Plane, mask: Mask, *, reach: int) -> _Edge:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    sure_in = cv2.erode(mask.astype(np.uint8), kernel, borderValue=1).astype(bool)
    sure_out = ~cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
    product, near_in = _spread(colour, sure_in, 0.8 * reach)
    behind, near_out = _spread(colour, sure_out, 0.8 * reach)
    axis = product - behind
    length2 = (axis**2).sum(axis=2)
    share = np.clip(((colour - behind) * axis).sum(axis=2) / np.maximum(length2, 1), 0, 1)
    # Where both look alike, or one of them is out of sight (hair lines), the mask itself decides.
    known = near_in > 1e-3
    trust = np.clip(np.sqrt(length2) / _MIN_CONTRAST - 0.5, 0, 1) * known * (near_out > 1e-3)
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.6)
    share = trust * share + (1 - trust) * blurred
    return _Edge(~sure_in & ~sure_out, np.asarray(share, dtype=np.float32), product, behind, known)


def _spread(colour: Plane, known: Mask, sigma: float) -> tuple[Plane, Plane]:
    """(colours of the known area carried outwards, how much of it is in sight)."""
    weight = known.astype(np.float32)
    near = cv2.GaussianBlur(weight, (0, 0), sigma)
    carried = cv2.GaussianBlur(colour * weight[..., None], (0, 0), sigma)
    return np.asarray(carried / np.maximum(near, 1e-5)[..., None], dtype=np.float32), np.asarray(near)


def _box(mask: Mask, margin: int) -> Box | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return (
        slice(max(0, int(rows[0]) - margin), min(mask.shape[0], int(rows[-1]) + margin + 1)),
        slice(max(0, int(columns[0]) - margin), min(mask.shape[1], int(columns[-1]) + margin + 1)),
    )
