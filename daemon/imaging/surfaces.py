"""Painted surroundings of a scene: walls with window light, table tops of wood or stone, blurred props.

Everything is made from noise and geometry by a seeded generator, so that the same seed paints the same
picture. Pictures are float32 RGB 0..1.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from daemon.imaging.colours import RGB, from_lch, to_lch
from daemon.imaging.compose import FloatMask, FloatPicture, blur

Rng = np.random.Generator


def flat(colour: RGB, width: int, height: int) -> FloatPicture:
    """One colour everywhere."""
    return np.tile(np.asarray(colour, dtype=np.float32) / np.float32(255), (height, width, 1))


def clouds(
    rng: Rng, width: int, height: int, cells: tuple[int, int], octaves: int = 4
) -> npt.NDArray[np.float32]:
    """Smooth noise, mean 0, about -1..1. cells: (across, down) of the coarsest octave."""
    total = np.zeros((height, width), dtype=np.float32)
    weight, across, down = 1.0, cells[0], cells[1]
    for _ in range(octaves):
        grid = rng.standard_normal((down + 2, across + 2)).astype(np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        weight, across, down = weight * 0.5, min(across * 2, width), min(down * 2, height)
    return total / np.float32(2.2)


def wall(rng: Rng, colour: RGB, width: int, height: int, *, light_from_left: bool) -> FloatPicture:
    """A plastered wall: brighter on the side of the light, with faint unevenness."""
    picture = flat(colour, width, height)
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    if not light_from_left:
        x = 1 - x
    fall = 1.07 - 0.20 * x - 0.07 * y + 0.012 * clouds(rng, width, height, (3, 3))
    return np.asarray(picture * fall[..., None], dtype=np.float32)


def window_light(
    rng: Rng, width: int, height: int, *, light_from_left: bool, leaves: bool = True
) -> FloatMask:
    """Sunlight through a window, falling aslant: 1 where it is bright. With leaves, their soft shadows."""
    side = max(width, height)
    scale = 480 / side
    w, h = max(8, round(width * scale)), max(8, round(height * scale))
    mask = np.zeros((h, w), dtype=np.float32)
    pane_w, pane_h, gap = 0.19 * 480, 0.30 * 480, 0.026 * 480
    left = 0.10 * w + rng.uniform(-0.03, 0.03) * w
    top = -0.16 * h
    for row in range(3):
        for column in range(2):
            x0, y0 = left + column * (pane_w + gap), top + row * (pane_h + gap)
            corners = [(x0, y0), (x0 + pane_w, y0), (x0 + pane_w, y0 + pane_h), (x0, y0 + pane_h)]
            lean = [(x + 0.38 * y, y + 0.20 * x) for x, y in corners]
            cv2.fillPoly(mask, [np.rint(lean).astype(np.int32)], 1.0, cv2.LINE_AA)
    mask = blur(mask, 6.5)
    if leaves:
        mask *= 1 - 0.85 * blur(_branch(rng, w, h, (0.98 * w, -0.02 * h), 2.45, 0.95 * 480), 5.0)
    if not light_from_left:
        mask = mask[:, ::-1]
    large = cv2.resize(np.ascontiguousarray(mask), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.asarray(large, dtype=np.float32), 0, 1)


def table_top(
    rng: Rng, colour: RGB, width: int, height: int, *, wood: bool, planks: bool = False
) -> FloatPicture:
    """A horizontal surface seen slightly from above, filling the picture: far edge at the top."""
    span_w, span_h = 1600, 1200
    grain = (
        _wood(rng, span_w, span_h, planks=planks) if wood else 0.55 * clouds(rng, span_w, span_h, (7, 6), 6)
    )
    base = np.asarray(colour, dtype=np.float32) / np.float32(255)
    lightness, chroma, hue = to_lch(colour)
    deep = np.asarray(
        from_lch(lightness * 0.72, chroma * 1.25 + (0.01 if wood else 0), hue), dtype=np.float32
    ) / np.float32(255)
    share = np.clip(0.32 + 0.34 * grain, 0, 1)[..., None] * (0.75 if wood else 0.28)
    texture = (base * (1 - share) + deep * share).astype(np.float32)
    texture = np.concatenate([texture, texture[::-1]], axis=0)

    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    nearness = 0.42 + 0.58 * y  # the vanishing line lies above the far edge
    aspect = width / max(width, height)
    u = (x / nearness * 0.8 * aspect + 0.5) * (span_w - 1)
    v = (1 / nearness - 1) * 1.15 * span_h + np.zeros_like(u)
    seen = cv2.remap(texture, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_REFLECT)  # fmt: skip
    distance = np.clip(1 - y / 0.75, 0, 1)[..., None]
    far = blur(np.asarray(seen, dtype=np.float32), 0.004 * max(width, height))
    return np.asarray(seen * (1 - distance) + far * distance, dtype=np.float32)


def vase_with_branches(rng: Rng, width: int, height: int, centre_x: float, foot_y: float,
                       tall: float) -> tuple[FloatMask, FloatMask]:  # fmt: skip
    """Two masks of a prop for the blurred distance: a vase, and the branches in it. Lengths in px."""
    vase = np.zeros((height, width), dtype=np.float32)
    body = 0.42 * tall
    outline = []
    for side in (-1, 1):
        steps = np.linspace(0, 1, 24) if side < 0 else np.linspace(1, 0, 24)
        for t in steps:
            half = 0.07 + 0.16 * math.sin(math.pi * min(1.0, 0.18 + 0.86 * t)) ** 1.2
            outline.append((centre_x + side * half * body * 1.35, foot_y - body + t * body))
    cv2.fillPoly(vase, [np.rint(outline).astype(np.int32)], 1.0, cv2.LINE_AA)
    branches = np.zeros_like(vase)
    for _ in range(4):
        angle = rng.uniform(-0.55, 0.55)
        start = (centre_x + rng.uniform(-0.02, 0.02) * tall, foot_y - body * 0.98)
        branches = np.maximum(
            branches, _branch(rng, width, height, start, -math.pi / 2 + angle, 0.62 * tall, leaf=0.15)
        )
    return vase, branches


def _wood(rng: Rng, width: int, height: int, *, planks: bool) -> npt.NDArray[np.float32]:
    """Grain that runs from side to side: long streaks, drifting rings, optionally boards with seams."""
    drift = clouds(rng, width, height, (3, 5), 3)
    rows = np.arange(height, dtype=np.float32)[:, None] / height
    rings = np.sin(2 * np.pi * (9 * rows + 0.85 * drift))
    streaks = clouds(rng, width, height, (3, 240), 2)
    pores = clouds(rng, width, height, (26, 520), 1)
    grain = 0.42 * rings + 0.62 * streaks + 0.38 * pores
    if planks:
        board = height // 7
        for i in range(0, height, board):
            shift = int(rng.integers(0, width))
            grain[i : i + board] = np.roll(grain[i : i + board], shift, axis=1) + rng.uniform(-0.5, 0.5)
            grain[i : i + 4] += 1.9
    return np.asarray(grain, dtype=np.float32)


def _branch(rng: Rng, width: int, height: int, start: tuple[float, float], angle: float,
            length: float, leaf: float = 0.13) -> FloatMask:  # fmt: skip
    """A twig with pairs of leaves, as a mask."""
    mask = np.zeros((height, width), dtype=np.float32)
    x, y = start
    steps = 9
    bend = rng.uniform(-0.06, 0.06)
    for i in range(steps):
        angle += bend
        nx, ny = x + math.cos(angle) * length / steps, y + math.sin(angle) * length / steps
        cv2.line(
            mask, (round(x), round(y)), (round(nx), round(ny)), 1.0, max(1, round(length / 130)), cv2.LINE_AA
        )
        x, y = nx, ny
        if i == 0:
            continue
        size = leaf * length * (1.05 - 0.06 * i)
        for side in (-1, 1):
            turn = angle + side * rng.uniform(0.55, 0.95)
            centre = (round(x + math.cos(turn) * size * 0.55), round(y + math.sin(turn) * size * 0.55))
            axes = (max(1, round(size * 0.55)), max(1, round(size * rng.uniform(0.15, 0.22))))
            cv2.ellipse(mask, centre, axes, math.degrees(turn), 0, 360, 1.0, -1, cv2.LINE_AA)
    return mask
