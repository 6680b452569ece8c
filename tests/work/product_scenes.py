"""Product photos with a known truth, drawn with numpy: a sweep with a gradient, a soft shadow, noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon.imaging.codec import Picture

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Scene:
    """photo: RGB; truth: the product's cover, 0..1."""

    photo: Picture
    truth: NDArray[np.float32]


def vase(size: int = 800, *, handle: bool = False) -> NDArray[np.float32]:
    """Cover of a vase, optionally with a see-through handle, antialiased."""
    big = np.zeros((size * 2, size * 2), np.uint8)
    y = np.arange(int(size * 0.36), int(size * 1.6))
    t = (y - y[0]) / (y[-1] - y[0])
    half = size * (0.16 + 0.13 * np.sin(np.pi * (0.15 + 0.8 * t)) ** 2)
    for row, width in zip(y, half, strict=True):
        big[row, int(size - width) : int(size + width)] = 255
    if handle:
        cv2.ellipse(
            big, (int(size * 1.27), int(size * 0.95)), (int(size * 0.2), int(size * 0.26)), 0, 0, 360, 255, 44
        )
    small = cv2.resize(big, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(small / 255.0, dtype=np.float32)


def shoot(
    cover: NDArray[np.float32],
    *,
    paint: Colour,
    sweep: Colour = (238, 239, 241),
    gradient: float = 8,
    shadow: float = 0.35,
    noise: float = 1.2,
    shading: float = 0.35,
    seed: int = 1,
) -> Scene:
    """A photo of one thing. shadow: how dark at its deepest, 0..1; shading: of the body, 0..1."""
    size = cover.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    ground = np.array(sweep, np.float32) - gradient * ((x - 0.4) ** 2 + (y - 0.3) ** 2)[..., None]
    rows, columns = np.flatnonzero(cover.max(axis=1) > 0.5), np.flatnonzero(cover.max(axis=0) > 0.5)
    middle, width = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0]
    floor = np.zeros_like(cover)
    cv2.ellipse(
        floor,
        (int(middle + width * 0.12), int(rows[-1] - 4)),
        (int(width * 0.55), int(width * 0.09)),
        0,
        0,
        360,
        1.0,
        -1,
    )
    soft = 0.55 * cv2.GaussianBlur(floor, (0, 0), size * 0.03) + 0.45 * cv2.GaussianBlur(
        floor, (0, 0), size * 0.009
    )
    ground = ground * (1 - shadow * soft[..., None])
    across = (x * size - middle) / max(1, width / 2)
    light = (
        1 - shading * np.clip(across * 0.8 + 0.25, 0, 1) ** 2 + 0.18 * np.exp(-(((across + 0.4) / 0.16) ** 2))
    )
    body = np.array(paint, np.float32) * light[..., None]
    photo = ground + (body - ground) * cover[..., None]
    photo = cv2.GaussianBlur(photo, (0, 0), 0.7)
    photo = photo + np.random.default_rng(seed).normal(size=photo.shape) * noise
    return Scene(np.clip(photo + 0.5, 0, 255).astype(np.uint8), cover)


def overlap(cover: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """Intersection over union of two covers."""
    return float(np.minimum(cover, truth).sum() / np.maximum(cover, truth).sum())
