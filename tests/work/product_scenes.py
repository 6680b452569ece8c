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


# --- many scenes: any product before any backdrop --------------------------------------------------------

PRODUCTS = ("vase", "mug", "chair", "plant", "ring", "box", "two tones", "label", "glass")
BACKDROPS = ("plain", "gradient", "table", "glossy table", "boards", "clutter")


def draw_scene(product: str, backdrop: str, seed: int) -> Scene:
    """A photo of one of PRODUCTS before one of BACKDROPS; place, paint, light and noise follow the seed."""
    rng = np.random.default_rng(seed)
    height, width = [(560, 560), (480, 640), (660, 500)][seed % 3]
    cover, colours = _draw_product(rng, product, height, width)
    foot = int(np.flatnonzero(cover.max(axis=1) > 0.5)[-1])
    ground = _draw_backdrop(rng, backdrop, height, width, foot)
    ground = _shade(rng, ground, cover, foot)
    if backdrop == "glossy table":
        ground = _mirror(ground, cover, colours, foot, float(rng.uniform(0.1, 0.3)))
    if product == "glass":
        rim = cover - cv2.erode(cover, np.ones((5, 5), np.uint8))
        colours = 0.8 * ground + 0.2 * colours - 60 * rim[..., None]
    photo = ground + (colours - ground) * cover[..., None]
    photo = cv2.GaussianBlur(photo, (0, 0), float(rng.uniform(0.5, 1.0)))
    photo = photo + rng.normal(size=photo.shape) * rng.uniform(0.4, 2.0)
    return Scene(np.clip(photo + 0.5, 0, 255).astype(np.uint8), cover)


def _draw_product(
    rng: np.random.Generator, product: str, height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(cover, colours h x w x 3) of a product somewhere in the middle of the frame."""
    big = np.zeros((2 * height, 2 * width), np.uint8)
    size = 2 * min(height, width) * rng.uniform(0.5, 0.66)
    x, foot = width * rng.uniform(0.9, 1.1), 2 * height * rng.uniform(0.8, 0.88)
    paint = _paint(rng)
    colours = np.tile(np.array(paint, np.float32), (height, width, 1))

    def fill(points: list[tuple[float, float]], value: int = 255) -> None:
        """A polygon in shares of the product's size, x from its middle and y up from its foot."""
        cv2.fillPoly(big, [np.array([(x + u * size, foot - v * size) for u, v in points], np.int32)], value)

    def oval(
        u: float, v: float, a: float, b: float, turn: float = 0, value: int = 255, line: int = -1
    ) -> None:
        centre = int(x + u * size), int(foot - v * size)
        cv2.ellipse(big, centre, (int(a * size), int(b * size)), turn, 0, 360, value, line)

    if product in ("vase", "two tones", "label", "glass"):
        t = np.linspace(0, 1, 40)
        half = rng.uniform(0.14, 0.2) + 0.12 * np.sin(np.pi * (0.1 + 0.8 * t)) ** 2
        sides = list(zip(half, t, strict=True))
        fill([*sides, *((-h, v) for h, v in reversed(sides))])
    elif product == "mug":
        oval(0.3, 0.42, 0.2, 0.24, line=max(6, int(0.06 * size)))
        fill([(-0.3, 0), (0.26, 0), (0.3, 0.8), (-0.34, 0.8)])
    elif product == "chair":
        fill([(-0.4, 0.35), (0.42, 0.33), (0.5, 0.6), (0.3, 0.6), (0.15, 0.95), (-0.45, 1.0)])
        for u in (-0.3, 0.0, 0.32):
            fill([(u, 0.36), (u + 0.05, 0.36), (u + 0.035 + 0.2 * u, 0.0), (u + 0.2 * u, 0.0)])
    elif product == "plant":
        fill([(-0.17, 0), (0.17, 0), (0.22, 0.45), (-0.22, 0.45)])
    elif product == "ring":
        oval(0, 0.45, 0.42, 0.45, line=max(8, int(rng.uniform(0.05, 0.12) * size)))
        fill([(-0.3, -0.02), (0.3, -0.02), (0.3, 0.06), (-0.3, 0.06)])
    else:
        fill([(-0.45, 0), (0.45, 0), (0.45, 0.7), (-0.45, 0.7)])
    if product == "plant":
        pot = big.copy()
        for _ in range(36):
            turn, far = rng.uniform(-100, 100), rng.uniform(0.05, 0.38)
            oval(far * np.sin(np.radians(turn)), 0.5 + abs(far * np.cos(np.radians(turn))), 0.03, 0.09, turn)
        green = np.array((rng.uniform(60, 120), rng.uniform(120, 170), rng.uniform(40, 80)), np.float32)
        is_pot = cv2.resize(pot, (width, height), interpolation=cv2.INTER_AREA)[..., None] / 255
        leaf = green * (
            1 + 0.3 * cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 3)[..., None] * 8
        )
        colours = np.where(is_pot > 0.5, colours, leaf)
    rows = np.arange(height)[:, None, None]
    if product == "two tones":
        other = np.array(_paint(rng), np.float32)
        colours = np.where(rows < (foot - rng.uniform(0.3, 0.7) * size) / 2, colours, other)
    if product == "label":
        label = np.zeros((height, width), np.float32)
        top, bottom = int((foot - 0.6 * size) / 2), int((foot - 0.35 * size) / 2)
        label[top:bottom, int((x - 0.12 * size) / 2) : int((x + 0.12 * size) / 2)] = 1
        colours = np.where(label[..., None] > 0, np.array(_paint(rng, pale=True), np.float32), colours)
    across = (np.arange(width) * 2 - x) / size
    light = 1 - rng.uniform(0, 0.4) * np.clip(across * 1.6 + 0.3, 0, 1) ** 2
    small = cv2.resize(big, (width, height), interpolation=cv2.INTER_AREA)
    return (small / 255).astype(np.float32), (colours * light[None, :, None]).astype(np.float32)


def _paint(rng: np.random.Generator, *, pale: bool = False) -> Colour:
    """Any paint, one in three of them pale."""
    if pale or rng.random() < 0.33:
        level = rng.uniform(205, 252)
        return int(level), int(level + rng.uniform(-6, 3)), int(level + rng.uniform(-14, 3))
    red, green, blue = rng.uniform(20, 225, size=3)
    return int(red), int(green), int(blue)


def _draw_backdrop(
    rng: np.random.Generator, backdrop: str, height: int, width: int, foot: int
) -> NDArray[np.float32]:
    y, x = (np.mgrid[0:height, 0:width] / max(height, width)).astype(np.float32)
    wall = np.array(_paint(rng, pale=rng.random() < 0.6), np.float32)
    steep = rng.uniform(4, 14) if backdrop == "plain" else rng.uniform(20, 60)
    sweep = wall - steep * ((x - rng.uniform(0, 0.8)) ** 2 + (y - rng.uniform(0, 0.5)) ** 2)[..., None]
    if backdrop in ("plain", "gradient"):
        return np.asarray(sweep, dtype=np.float32)
    if backdrop == "clutter":
        coarse = rng.uniform(30, 230, size=(rng.integers(4, 9), rng.integers(4, 9), 3)).astype(np.float32)
        way = cv2.INTER_NEAREST if rng.random() < 0.5 else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(coarse, (width, height), interpolation=way), dtype=np.float32)
    table = np.array(_paint(rng, pale=rng.random() < 0.4), np.float32)
    table = table + rng.uniform(-20, 20) * (y - 0.7)[..., None] + rng.uniform(-12, 12) * x[..., None]
    if backdrop == "boards":
        grain = cv2.resize(
            rng.normal(size=(height // 3, 12)).astype(np.float32),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        table = table + rng.uniform(2, 14) * grain[..., None]
        for at in rng.uniform(0, width, size=6):
            cv2.line(
                table, (int(at), 0), (int(at + rng.uniform(-60, 60)), height), (60, 55, 50), 1, cv2.LINE_AA
            )
    line = foot - rng.uniform(0.1, 0.35) * height + rng.uniform(-0.04, 0.04) * height * (x * 2 - 1)
    share = np.clip((y * max(height, width) - line) / rng.uniform(1, 8) + 0.5, 0, 1)
    return np.asarray(sweep + share[..., None] * (table - sweep), dtype=np.float32)


def _shade(
    rng: np.random.Generator, ground: NDArray[np.float32], cover: NDArray[np.float32], foot: int
) -> NDArray[np.float32]:
    columns = np.flatnonzero(cover.max(axis=0) > 0.5)
    middle, wide = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0]
    floor = np.zeros_like(cover)
    at = int(middle + rng.uniform(-0.2, 0.2) * wide), foot - 3
    cv2.ellipse(floor, at, (int(0.55 * wide), int(0.08 * wide)), 0, 0, 360, 1.0, -1)
    soft = 0.55 * cv2.GaussianBlur(floor, (0, 0), 16) + 0.45 * cv2.GaussianBlur(floor, (0, 0), 5)
    return np.asarray(ground * (1 - rng.uniform(0, 0.6) * soft[..., None]), dtype=np.float32)


def _mirror(
    ground: NDArray[np.float32], cover: NDArray[np.float32], colours: NDArray[np.float32], foot: int,
    strength: float,
) -> NDArray[np.float32]:  # fmt: skip
    """The product upside down in the table, fading and blurred."""
    height = len(ground)
    rows = np.clip(2 * foot - np.arange(height), 0, height - 1)
    fade = (
        strength * np.clip(1 - (np.arange(height) - foot) / (0.3 * height), 0, 1) * (np.arange(height) > foot)
    )
    seen = cv2.GaussianBlur(cover[rows], (0, 0), 5) * fade[:, None]
    image = cv2.GaussianBlur(colours[rows], (0, 0), 5)
    return np.asarray(ground + (image - ground) * seen[..., None], dtype=np.float32)


def worst_blot(cover: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """The largest connected area that is wrongly in or out, as a share of the product; thin rims apart."""
    wrong = ((cover > 0.5) != (truth > 0.5)).astype(np.uint8)
    wrong = cv2.morphologyEx(wrong, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(wrong)
    return float(stats[1:, cv2.CC_STAT_AREA].max(initial=0) / (truth > 0.5).sum())
