"""Pictures around the real product, composed without any model: a lifestyle scene, a studio view, banners.

Seen from front to back: product, its contact and cast shadow, a table or floor, blurred props, a wall in
window light. The light always comes from one side and every shadow agrees with it. The product's own
pixels are scaled, given at most three percent of light and shade, and otherwise left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from daemon.imaging import codec, surfaces
from daemon.imaging.colours import RGB, Palette, from_lch, palette_of, to_lch
from daemon.imaging.compose import (
    FloatMask,
    FloatPicture,
    Placed,
    alpha_on_canvas,
    blur,
    place,
    to_float,
    to_image,
    trim,
)  # fmt: skip
from daemon.imaging.shadows import shade_ground

_FURNITURE = ("furniture", "chair", "sofa", "table", "desk", "lamp", "shelf", "stool", "rug", "bed")
_STONE = ("beauty", "cosmetic", "skin", "perfume", "jewel", "bath", "health", "electronic", "tech", "phone")


@dataclass(frozen=True, slots=True)
class Frame:
    """Where things stand, as shares of the canvas: the product's box and foot, the table's far edge."""

    centre_x: float
    foot: float
    box_width: float
    box_height: float
    horizon: float


def paint_lifestyle(
    cutout: Image.Image, width: int, height: int, *, seed: int, wishes: tuple[str, ...] = (), category: str = "",
    frame: Frame | None = None,
) -> Image.Image:  # fmt: skip
    """The product in a room: on a table, or on the floor when it is furniture. RGB, width x height px."""
    rng = np.random.default_rng(seed)
    product = trim(cutout)
    palette = palette_of(product, wishes)
    words = category.lower()
    on_floor = any(word in words for word in _FURNITURE)
    stone = not on_floor and any(word in words for word in _STONE)
    frame = frame or _frame_for(product, width, height, on_floor=on_floor)
    light_from_left = bool(frame.centre_x > 0.55 or (frame.centre_x > 0.45 and rng.random() < 0.7))

    placed = place(
        product, centre_x=frame.centre_x * width, bottom=frame.foot * height,
        width_px=frame.box_width * width, height_px=frame.box_height * height,
    )  # fmt: skip
    room = _paint_room(rng, palette, frame, width, height, stone=stone, on_floor=on_floor,
                       light_from_left=light_from_left)  # fmt: skip
    scene = _stand(room, placed, light_from_left=light_from_left, strength=0.66)
    return _finish(rng, scene)


def paint_studio(
    cutout: Image.Image, width: int, height: int, *, seed: int, wishes: tuple[str, ...] = (), turn: float = 0.0,
    box: tuple[float, float] = (0.76, 0.78),
) -> Image.Image:  # fmt: skip
    """The product on a light seamless sweep, optionally turned a little (see turn_product). RGB."""
    rng = np.random.default_rng(seed)
    product = trim(cutout)
    palette = palette_of(product, wishes)
    if turn:
        # It is shown smaller than the frame; turned at its own size a large photo takes gigabytes in floats.
        product.thumbnail((max(width, height), max(width, height)), Image.Resampling.LANCZOS)
        product = turn_product(product, turn)
    light_from_left = turn >= 0
    sweep = paint_sweep(palette, width, height)
    scaled_height = min(box[1] * height, box[0] * width * product.height / product.width)
    foot = 0.5 * height + 0.5 * scaled_height + 0.02 * height
    placed = place(
        product, centre_x=width / 2, bottom=foot, width_px=box[0] * width, height_px=box[1] * height
    )
    return _finish(rng, _stand(sweep, placed, light_from_left=light_from_left, strength=0.46), grain=0.003)


def paint_sweep(palette: Palette, width: int, height: int) -> FloatPicture:
    """A seamless studio backdrop without product: light, a pool of light in the middle."""
    ground, panel = (
        np.asarray(c, dtype=np.float32) / np.float32(255) for c in (palette.ground, palette.panel)
    )
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    sweep = np.empty((height, width, 3), dtype=np.float32)
    for rows in codec.bands(height):
        away = np.clip(np.sqrt((0.8 * x) ** 2 + (0.9 * (y[rows] + 0.15)) ** 2) - 0.25, 0, 1.2) / 1.2
        floor = 1 / (1 + np.exp(-(y[rows] - 0.42) * 9)) * 0.35
        share = np.clip(away**1.4 * 0.9 + floor, 0, 1)[..., None]
        sweep[rows] = ground * (1 - share) + panel * share
    return sweep


def turn_product(product: Image.Image, turn: float) -> Image.Image:
    """The cut-out as a flat card turned about its upright axis. turn: -1..1, 1 is about 14 degrees.

    Honest geometry of the same photograph: nothing is invented, no hidden side appears.
    """
    width, height = product.size
    narrow = 1 - 0.055 * abs(turn)
    # The far edge recedes by the card's width, seen from three times its longer side.
    taper = 0.07 * abs(turn) * height * width / max(width, height)
    new_width = width * narrow
    near_left = turn > 0
    left = (0.0, height + 0.0) if near_left else (taper, height - taper * 0.5)
    right = (taper, height - taper * 0.5) if near_left else (0.0, height + 0.0)
    source = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    target = np.array(
        [[0, left[0]], [new_width, right[0]], [new_width, right[1]], [0, left[1]]], dtype=np.float32
    )
    # Premultiplied, so that no colour comes in from outside; float, so that the overshoot of the filter at
    # the edge is the same in colour and alpha and cancels out.
    pixels = np.asarray(product, dtype=np.float32)
    pixels = np.concatenate([pixels[..., :3] * pixels[..., 3:] / 255, pixels[..., 3:]], axis=2)
    warped = cv2.warpPerspective(
        pixels, cv2.getPerspectiveTransform(source, target), (round(new_width), height), flags=cv2.INTER_CUBIC
    )
    alpha = warped[..., 3:]
    straight = np.where(alpha > 1, warped[..., :3] * 255 / np.maximum(alpha, 1), 0)
    merged = np.rint(np.clip(np.concatenate([straight, alpha], axis=2), 0, 255)).astype(np.uint8)
    return Image.fromarray(merged)


def _frame_for(product: Image.Image, width: int, height: int, *, on_floor: bool) -> Frame:
    """A calm place for a product of this shape in a frame of this shape."""
    ratio = width / height
    if ratio > 2.4:  # a banner: text stands on the left
        return Frame(0.74, 0.90, 0.40, 0.78, 0.66)
    if ratio > 1.35:
        return Frame(0.64, 0.87, 0.50, 0.70, 0.64)
    if ratio < 0.8:
        return Frame(0.5, 0.85, 0.82, 0.60, 0.66)
    wide = product.width > 1.3 * product.height
    if on_floor:
        return Frame(0.51, 0.89, 0.76, 0.66, 0.70)
    slender = product.height > 1.9 * product.width
    return Frame(0.53, 0.87 if slender else 0.84, 0.72 if wide else 0.62, 0.74 if slender else 0.645, 0.635)


def _paint_room(
    rng: surfaces.Rng, palette: Palette, frame: Frame, width: int, height: int, *, stone: bool, on_floor: bool,
    light_from_left: bool,
) -> FloatPicture:  # fmt: skip
    horizon = round(frame.horizon * height)
    wall = surfaces.wall(rng, palette.wall, width, height, light_from_left=light_from_left)
    light = surfaces.window_light(rng, width, height, light_from_left=light_from_left)
    wall *= 1 + (0.16 * light[..., None] - 0.05) * np.array([1.0, 0.96, 0.86], dtype=np.float32)

    side = max(width, height)
    if width <= 2.4 * height:  # a banner has words where the prop would stand
        wall = _paint_prop(
            rng, wall, palette, frame, horizon, on_floor=on_floor, light_from_left=light_from_left
        )
    if on_floor:
        wall[horizon - round(0.035 * height) : horizon] *= 1.06  # a skirting board
        wall[horizon - round(0.037 * height) : horizon - round(0.035 * height)] *= 0.93

    wall = blur(wall, 0.0022 * side)
    table_height = height - horizon
    surface = surfaces.table_top(
        rng, _surface_colour(palette, stone=stone), width, table_height, wood=not stone, planks=on_floor
    )
    y = np.linspace(0, 1, table_height, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    fall = 1.06 - 0.15 * (x if light_from_left else 1 - x) - 0.06 * y
    patch = surfaces.window_light(rng, width, table_height, light_from_left=light_from_left, leaves=False)
    surface *= (fall + 0.07 * blur(patch, 0.02 * side))[..., None]
    bounce = np.exp(-y * 7)[..., None] * 0.18  # a surface seen flat mirrors a little of the wall behind it
    surface = surface * (1 - bounce) + wall[horizon - 1 : horizon].mean(axis=1, keepdims=True) * bounce

    full = np.concatenate([wall[:horizon], surface], axis=0).astype(np.float32)
    soft = blur(full, 0.0045 * side)
    rows = np.arange(height, dtype=np.float32)[:, None, None]
    edge = np.exp(-(((rows - horizon) / (0.022 * height)) ** 2))
    full = full * (1 - edge) + soft * edge
    seam = np.exp(-(((rows - horizon + 0.004 * height) / (0.010 * height)) ** 2)) * 0.10
    return np.asarray(full * (1 - seam), dtype=np.float32)


def _paint_prop(
    rng: surfaces.Rng, wall: FloatPicture, palette: Palette, frame: Frame, horizon: int, *, on_floor: bool,
    light_from_left: bool,
) -> FloatPicture:  # fmt: skip
    """A vase with branches, far out of focus, on the side where the product leaves room."""
    height, width = wall.shape[:2]
    side, tall = max(width, height), 0.50 * min(width, height) * (1.15 if on_floor else 1)
    is_left = frame.centre_x > 0.6 or not light_from_left
    prop_x = (frame.centre_x + (-0.36 if is_left else 0.34)) * width
    vase, branches = surfaces.vase_with_branches(rng, width, height, prop_x, horizon + 0.012 * height, tall)
    lightness, _, hue = to_lch(palette.wall)
    wall = _cover(wall, from_lch(lightness - 0.20, 0.035, 130), 0.62 * blur(branches, 0.0085 * side))
    wall = _cover(wall, from_lch(min(0.93, lightness + 0.05), 0.014, hue), blur(vase, 0.0085 * side))
    across = (np.arange(width, dtype=np.float32) - prop_x) / (0.13 * tall)
    round_shade = 0.13 + 0.10 * np.tanh(across if light_from_left else -across)
    shaded = wall * (1 - blur(vase, 0.006 * side)[..., None] * round_shade[None, :, None])
    return np.asarray(shaded, dtype=np.float32)


def _surface_colour(palette: Palette, *, stone: bool) -> RGB:
    if stone:
        return from_lch(0.90 if not palette.light_product else 0.80, 0.008, to_lch(palette.wall)[2])
    return from_lch(0.74 if not palette.light_product else 0.64, 0.062, 66)


def _stand(scene: FloatPicture, placed: Placed, *, light_from_left: bool, strength: float) -> FloatPicture:
    """The product standing in the scene with its shadows."""
    height, width = scene.shape[:2]
    alpha = alpha_on_canvas(placed, width, height)
    contact, cast = shade_ground(alpha, light_from_left=light_from_left)
    dark = np.array([0.10, 0.085, 0.08], dtype=np.float32)
    for mask, share in ((cast, strength), (contact, strength + 0.20)):
        share_map = np.clip(mask * share, 0, 0.92)[..., None]
        scene = scene * (1 - share_map) + scene * dark * 2.0 * share_map
    return np.asarray(_lay(scene, placed, alpha, light_from_left=light_from_left), dtype=np.float32)


def _lay(scene: FloatPicture, placed: Placed, alpha: FloatMask, *, light_from_left: bool) -> FloatPicture:
    height, width = alpha.shape
    canvas = Image.new("RGB", (width, height))
    canvas.paste(placed.product.convert("RGB"), (placed.x, placed.y))
    pixels = to_float(canvas)
    ramp = (np.arange(width, dtype=np.float32) - placed.x) / max(1, placed.product.width)
    ramp = np.clip(ramp if light_from_left else 1 - ramp, 0, 1)
    pixels = np.clip(pixels * (1.015 - 0.045 * ramp)[None, :, None], 0, 1)
    return np.asarray(scene * (1 - alpha[..., None]) + pixels * alpha[..., None], dtype=np.float32)


def _cover(picture: FloatPicture, colour: RGB, mask: FloatMask) -> FloatPicture:
    tint = np.asarray(colour, dtype=np.float32) / np.float32(255)
    return np.asarray(picture * (1 - mask[..., None]) + tint * mask[..., None], dtype=np.float32)


def _finish(rng: surfaces.Rng, scene: FloatPicture, grain: float = 0.007) -> Image.Image:
    """Film grain against banding, and a hint of vignette."""
    height, width = scene.shape[:2]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    vignette = 1 - 0.035 * np.clip(x**2 + y**2 - 0.5, 0, 2)
    noise = rng.standard_normal((height, width), dtype=np.float32) * np.float32(grain)
    return to_image(np.asarray(scene * vignette[..., None] + noise[..., None], dtype=np.float32))
