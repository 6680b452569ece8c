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

    The same array comes back where nothing is taken off. CPU: about 30 ms per megapixel.
    """
    alpha = rgba[..., 3]
    solid = segment.connected_to(alpha >= _SURE_ALPHA, alpha >= _SOLID_ALPHA)
    near = _grow(_fill(solid), _reach(alpha))
    haze = float(alpha[~near].sum())
    if haze == 0 or haze >= _SEE_THROUGH * float(alpha[solid].sum()):
        return rgba
    # Faded, not cut: a hard end in a haze would show.
    fade = cv2.GaussianBlur(near.astype(np.float32), (0, 0), _reach(alpha) / 3)
    left = np.where(solid, alpha, np.where(near, alpha * np.clip(2 * fade - 1, 0, 1), 0))
    return np.dstack((rgba[..., :3], np.rint(left).astype(np.uint8)))


def take_off_shadow(rgba: Picture, photo: Picture) -> Picture:
    """The cut-out without the product's shadow on plain ground, as the colours of its photo (h x w x 3, of the
    same size) tell it. Whatever is not certain stays; then the same array comes back. CPU: 0.3 to 1 s.
    """
    kept, shadow = segment.part_shadow(photo, rgba[..., 3] >= _SOLID_ALPHA)
    if not shadow.any():
        return rgba
    height, width = rgba.shape[:2]
    large = cv2.resize(shadow.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
    edge = matte.cut_with_soft_edge(photo, kept)
    return np.where(_grow(large, _reach(rgba))[..., None], edge, rgba)


def _reach(plane: NDArray[np.uint8]) -> int:
    height, width = plane.shape[:2]
    return max(2, int(_REACH * max(height, width)))


def _fill(mask: Mask) -> Mask:
    """The mask with all that it encloses."""
    return ~segment.connected_to_frame(~mask)


def _grow(mask: Mask, reach_px: int) -> Mask:
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    return np.asarray(away <= reach_px)
