"""What a cut-out carries besides its product: haze around it, and its shadow on the ground.

    alpha --faint, away from all that is solid--> haze: taken off
          --solid, a shadow by the photo--------> taken off where there is no doubt, the edge there made anew

Services leave both in their masks. A shadow kept as product is a grey streak on the white main image, makes the
product smaller in its frame, and the dimensions picture measures it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon.imaging import matte, segment
from daemon.imaging.codec import Picture

Mask = NDArray[np.bool_]

_SURE_ALPHA = 240
_SOLID_ALPHA = 128  # and hanging together with what is sure: the densest grains of a haze are not
_REACH = 0.01  # of the frame's long side: how far a soft edge, hair or motion blur reaches beyond solid alpha
_SEE_THROUGH = 0.3  # faint alpha of at least this share of the solid is the product's own: glass, a veil


def take_off_haze(rgba: Picture) -> Picture:
    """The cut-out (h x w x 4) without what is faint away from the product; faint parts that it encloses stay.

    The same array comes back where nothing is taken off. CPU: about 20 ms per megapixel.
    """
    alpha = np.ascontiguousarray(rgba[..., 3])
    small = _resize(alpha, segment.working_size(rgba), cv2.INTER_AREA)
    solid = segment.connected_to(small >= _SURE_ALPHA, small >= _SOLID_ALPHA)
    near = _grow(_fill(solid))
    haze = float(small[~near].sum())
    if haze == 0 or haze >= _SEE_THROUGH * float(small[solid].sum()):
        return rgba
    # Faded, not cut: a hard end in a haze would show. Full up to the solid parts' own edge.
    fade = cv2.GaussianBlur(near.astype(np.float32), (0, 0), _reach(near) / 3)
    kept = np.rint(np.clip(2.1 * fade - 1.05, 0, 1) * 255).astype(np.uint8)
    kept = _resize(kept, (rgba.shape[1], rgba.shape[0]), cv2.INTER_LINEAR)
    return np.dstack((rgba[..., :3], cv2.multiply(alpha, kept, scale=1 / 255)))


def take_off_shadow(rgba: Picture, photo: Picture) -> Picture:
    """The cut-out without the product's shadow on plain ground, as the colours of its photo (h x w x 3, of the
    same size) tell it. Whatever is not certain stays; then the same array comes back. CPU: 0.2 to 1 s.
    """
    kept, shadow = segment.part_shadow(photo, rgba[..., 3] >= _SOLID_ALPHA)
    if not shadow.any():
        return rgba
    around = _grow(shadow)
    rows, columns = (_frame(np.asarray(around.any(axis=axis)), 4 * _reach(around)) for axis in (1, 0))
    height, width = around.shape
    tall, wide = (
        slice(part.start * full // work, part.stop * full // work)
        for part, full, work in ((rows, rgba.shape[0], height), (columns, rgba.shape[1], width))
    )
    edge = matte.cut_with_soft_edge(photo[tall, wide], kept[rows, columns])
    size = (edge.shape[1], edge.shape[0])
    anew = _resize(around[rows, columns].astype(np.uint8), size, cv2.INTER_NEAREST).astype(bool)
    cleaned = rgba.copy()
    cleaned[tall, wide][anew] = edge[anew]
    return cleaned


def _reach(mask: Mask) -> int:
    height, width = mask.shape
    return max(2, int(_REACH * max(height, width)))


def _frame(lines: Mask, margin: int) -> slice:
    """From the first to the last line that is set, and a margin."""
    at = np.flatnonzero(lines)
    return slice(max(0, int(at[0]) - margin), min(len(lines), int(at[-1]) + margin + 1))


def _fill(mask: Mask) -> Mask:
    """The mask with all that it encloses."""
    return ~segment.connected_to_frame(~mask)


def _grow(mask: Mask) -> Mask:
    """The mask and what is within reach of it."""
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    return np.asarray(away <= _reach(mask))


def _resize(plane: NDArray[np.uint8], size: tuple[int, int], how: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(plane, size, interpolation=how), dtype=np.uint8)
