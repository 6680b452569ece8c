"""Renders the sample photos: an insulated bottle on a near-white sweep, as a small studio would shoot it.

    python examples/make_sample_photo.py        writes sample_photo.jpg and sample_photo_angle.jpg beside it

Everything is computed (sphere tracing a signed distance field under area lights), so the pictures carry no
rights of anybody and come out the same each time. They have what makes a cut-out hard: a soft contact
shadow, a light gradient, sensor noise, a see-through carry loop, pale steel beside a pale background.
Units are millimetres; y is up; the camera looks along -z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[Any]

WIDTH, HEIGHT = 1800, 2400
OVERSAMPLING = 2
BODY, BOOT, STEEL, LID = range(4)
ALBEDO = np.array([[0.012, 0.105, 0.125], [0.62, 0.17, 0.085], [0.0, 0.0, 0.0], [0.022, 0.023, 0.026]])
F0 = np.array([[0.06] * 3, [0.04] * 3, [0.56, 0.56, 0.57], [0.045] * 3])
GLOSS = (48.0, 14.0, 90.0, 34.0)  # exponent of the specular lobe


@dataclass(frozen=True)
class Shot:
    """One camera position. turn: of the bottle about its axis, radians."""

    name: str
    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    zoom: float
    turn: float
    seed: int


SHOTS = (
    Shot("sample_photo.jpg", (0, 215, 1150), (0, 136, 0), 3.45, math.radians(24), 11),
    Shot("sample_photo_angle.jpg", (0, 470, 1060), (0, 132, 0), 3.35, math.radians(42), 12),
)


# --- the bottle -------------------------------------------------------------------------------------


def _rounded(r: Field, y: Field, radius: float, low: float, high: float, corner: float) -> Field:
    """Distance to an upright cylinder with rounded edges."""
    qr, qy = r - (radius - corner), np.abs(y - (low + high) / 2) - ((high - low) / 2 - corner)
    outside = np.hypot(np.maximum(qr, 0), np.maximum(qy, 0))
    return outside + np.minimum(np.maximum(qr, qy), 0) - corner


def _smooth_union(a: Field, b: Field, k: float) -> Field:
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
    return b + (a - b) * h - k * h * (1 - h)


def distances(p: Field, turn: float) -> Field:
    """Distance from points (n x 3) to each part: n x 4 (body, boot, steel ring, lid with its loop)."""
    c, s = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    x, z = c * p[:, 0] + s * p[:, 2], c * p[:, 2] - s * p[:, 0]
    y, r = p[:, 1], np.hypot(p[:, 0], p[:, 2])
    body = _smooth_union(_rounded(r, y, 36.5, 10, 202, 19), _rounded(r, y, 24.5, 180, 219, 1.5), 13)
    boot = _rounded(r, y, 37.6, 0.0, 32, 4.5)
    ring = _rounded(r, y, 26.6, 214.5, 221, 1.4)
    angle = np.arctan2(z, x)
    flutes = 0.45 * np.cos(44 * angle) * np.clip((y - 222) / 3, 0, 1) * np.clip((241 - y) / 3, 0, 1)
    lid = _rounded(r, y, 28.5, 220.4, 247, 4.5) + flutes * (r > 20)
    around = np.hypot(x, np.maximum(y - 249, 0) * 0.93) - 19.5
    band = np.hypot(np.maximum(np.abs(around) - 2.6, 0), np.maximum(np.abs(z) - 5.2, 0)) - 1.9
    below = np.maximum(248 - 14 - y, 0)
    loop = np.hypot(np.maximum(band, 0), below) + np.minimum(band, 0)
    return np.stack((body, boot, ring, _smooth_union(lid, loop, 4)), axis=1)


def normals(p: Field, turn: float) -> Field:
    steps = np.float32(0.12) * np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32)
    n = sum((e * distances(p + e, turn).min(axis=1)[:, None] for e in steps), np.zeros_like(p))
    return n / np.linalg.norm(n, axis=1, keepdims=True)


# --- the studio -------------------------------------------------------------------------------------


def _edge(x: Field) -> Field:
    """0 to 1 across a soft edge at 0."""
    return 0.5 + 0.5 * np.tanh(x / 2)


def studio(d: Field) -> Field:
    """Radiance of the room in directions d (n x 3): softboxes, flags, white sweep."""

    def panel(azimuth: float, half: float, low: float, high: float, soft: float) -> Field:
        az = np.degrees(np.arctan2(d[:, 0], d[:, 2])) - azimuth
        az = np.abs((az + 180) % 360 - 180)
        el = np.degrees(np.arcsin(np.clip(d[:, 1], -1, 1)))
        return _edge((half - az) / soft) * _edge((el - low) / soft) * _edge((high - el) / soft)

    up = np.clip(d[:, 1], -1, 1)
    grey = 0.14 + 0.35 * np.clip(-up * 4, 0, 1) + 0.25 * np.clip(up, 0, 1)
    grey = grey + panel(180, 62, -20, 60, 6) * 0.55  # the sweep behind the product
    grey = grey * (1 - 0.9 * panel(-106, 13, -25, 75, 3)) * (1 - 0.9 * panel(108, 14, -25, 75, 3))
    light = 6.0 * panel(-58, 17, -14, 56, 2.0) + 2.8 * panel(66, 6.5, -20, 60, 1.6)
    light = light + 2.6 * _edge((np.degrees(np.arcsin(up)) - 62) / 4)
    return np.stack(
        (grey * 1.0 + light * 1.0, grey * 1.0 + light * 0.99, grey * 1.02 + light * 0.965), axis=1
    )


def _look_up(table: Field, u: Field, v: Field) -> Field:
    """Bilinear values of a table (rows x columns x any) at columns u and rows v."""
    u, v = np.clip(u, 0, table.shape[1] - 1.001), np.clip(v, 0, table.shape[0] - 1.001)
    column, row = u.astype(int), v.astype(int)
    fu, fv = (u - column)[:, None], (v - row)[:, None]
    upper = table[row, column] * (1 - fu) + table[row, column + 1] * fu
    lower = table[row + 1, column] * (1 - fu) + table[row + 1, column + 1] * fu
    return np.asarray(upper * (1 - fv) + lower * fv, dtype=np.float32)


class Probe:
    """The studio blurred by a lobe, looked up by direction."""

    def __init__(self, exponent: float | None) -> None:
        """exponent None: diffuse (cosine over the hemisphere)."""
        rows, columns = 48, 96
        theta = (np.arange(rows) + 0.5) / rows * np.pi
        phi = (np.arange(columns) + 0.5) / columns * 2 * np.pi - np.pi
        t, f = np.meshgrid(theta, phi, indexing="ij")
        d = np.stack((np.sin(t) * np.sin(f), np.cos(t), np.sin(t) * np.cos(f)), axis=-1)
        d = d.reshape(-1, 3).astype(np.float32)
        weight = np.maximum(d @ d.T, 0) ** np.float32(exponent or 1.0) * np.sin(t).reshape(1, -1)
        table = (weight @ studio(d)) / weight.sum(axis=1, keepdims=True)
        table = table.reshape(rows, columns, 3).astype(np.float32)
        self._table = np.concatenate((table[:, -2:], table, table[:, :2]), axis=1)

    def __call__(self, d: Field) -> Field:
        u = (np.arctan2(d[:, 0], d[:, 2]) / (2 * np.pi) + 0.5) * 96 - 0.5 + 2
        v = np.arccos(np.clip(d[:, 1], -1, 1)) / np.pi * 48 - 0.5
        return _look_up(self._table, u, v)


def floor_light(p: Field) -> Field:
    """Light reaching floor points (n x 3, y = 0), 1 where nothing is in the way: n x 3.

    The bottle stands for an upright cylinder here, which each ray meets in closed form.
    """
    count = 900
    k = np.arange(count) + 0.5
    up = np.sqrt(1 - k / count)
    turn = k * np.pi * (3 - math.sqrt(5))
    flat = np.sqrt(1 - up**2)
    d = np.stack((flat * np.sin(turn), up, flat * np.cos(turn)), axis=1).astype(np.float32)
    radiance = studio(d) + 0.35
    total = np.zeros_like(p)
    for direction, light in zip(d, radiance, strict=True):
        length = math.hypot(direction[0], direction[2]) + 1e-6
        hx, hz = direction[0] / length, direction[2] / length
        along = -(p[:, 0] * hx + p[:, 2] * hz)
        aside = p[:, 0] * hz - p[:, 2] * hx
        hidden = np.zeros(len(p), np.float32)
        for radius, low, high in ((36.4, 0.8, 32), (36.0, 32, 195), (25.5, 195, 246)):
            half = np.sqrt(np.maximum(radius**2 - aside**2, 0))
            enter = np.maximum(along - half, 0) * direction[1] / length
            leave = (along + half) * direction[1] / length
            hidden = np.maximum(hidden, (half > 0) & (leave > low) & (enter < high))
        total += (1 - hidden)[:, None] * light
    return total / radiance.sum(axis=0)


# --- the picture ------------------------------------------------------------------------------------


def camera(shot: Shot, width: int, height: int) -> tuple[Field, Field]:
    """(eye, unit ray directions height*width x 3)."""
    eye = np.array(shot.eye, np.float32)
    forward = np.array(shot.target, np.float32) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, np.array([0, 1, 0], np.float32))
    right /= np.linalg.norm(right)
    above = np.cross(right, forward)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    sx, sy = (x + 0.5 - width / 2) / height, (height / 2 - y - 0.5) / height
    d = forward * np.float32(shot.zoom) + sx[..., None] * right + sy[..., None] * above
    d = d.reshape(-1, 3)
    return eye, (d / np.linalg.norm(d, axis=1, keepdims=True)).astype(np.float32)


def trace(eye: Field, d: Field, turn: float) -> tuple[Field, NDArray[np.bool_]]:
    """(distance along each ray, whether it meets the bottle)."""
    t = np.full(len(d), np.linalg.norm(eye) - 260, np.float32)
    hit = np.zeros(len(d), bool)
    live = np.arange(len(d))
    for _ in range(110):
        step = distances(eye + d[live] * t[live, None], turn).min(axis=1)
        hit[live[step < 0.015]] = True
        t[live] += step * 0.9
        live = live[(step >= 0.015) & (t[live] < 1700)]
        if not len(live):
            break
    return t, hit


def grain(p: Field, turn: float, seed: int) -> tuple[Field, Field]:
    """(fine relief of the powder coat n x 3, laser engraving 0..1) at points of the body."""
    angle = np.arctan2(p[:, 0], p[:, 2]) - turn + math.radians(24)
    u, v = angle * 36.5, p[:, 1]
    noise = np.random.default_rng(seed).normal(size=(512, 512, 3)).astype(np.float32)
    relief = _look_up(cv2.GaussianBlur(noise, (0, 0), 1.1) * 2.2, (u * 5.5) % 511, (v * 5.5) % 511)
    engraved = np.zeros_like(u)
    for height, shift, width in ((112.5, 0.0, 0.6), (107.5, 0.9, 0.6), (102.5, 1.8, 0.6)):
        crest = height + 4.2 * np.exp(-(((u - 2 * shift + 4) / 5.5) ** 2)) + 0.7 * np.sin(u / 3.4 + shift)
        inside = np.clip((14.5 - np.abs(u)) / 0.3, 0, 1)
        engraved = np.maximum(engraved, np.clip((width - np.abs(v - crest)) / 0.18, 0, 1) * inside)
    sun = np.abs(np.hypot(u - 7.5, v - 122.5) - 3.4)
    engraved = np.maximum(engraved, np.clip((0.5 - sun) / 0.18, 0, 1))
    return relief, engraved.astype(np.float32)


def shade(p: Field, d: Field, shot: Shot, probes: tuple[Probe, ...], diffuse: Probe) -> Field:
    """Radiance leaving the bottle at points p towards the camera."""
    parts = distances(p, shot.turn)
    part = parts.argmin(axis=1)
    n = normals(p, shot.turn)
    relief, engraved = grain(p, shot.turn, 5)
    rough = np.where(part == BODY, 0.036, np.where(part == LID, 0.03, 0.012))[:, None]
    n = n + relief * rough.astype(np.float32) * (1 - engraved[:, None])
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    facing = np.clip(-(d * n).sum(axis=1), 0.02, 1)
    mirror = d + 2 * facing[:, None] * n

    open_sky = np.ones(len(p), np.float32)
    for reach in (1.5, 4.0, 9.0, 18.0):
        around = p + n * np.float32(reach)
        nearest = np.minimum(distances(around, shot.turn).min(axis=1), around[:, 1])
        open_sky -= 0.32 * np.clip(reach - nearest, 0, None) / reach
    open_sky = np.clip(open_sky, 0.08, 1)
    # Near the floor the light from below is the shadow's, not the sweep's.
    low = np.exp(-p[:, 1] / 16) * np.clip(0.6 - n[:, 1], 0, 1)
    open_sky *= 1 - 0.55 * low

    fresnel = (1 - facing) ** 5
    out = np.zeros_like(p)
    for kind in range(4):
        of = part == kind
        if not of.any():
            continue
        f0 = F0[kind].astype(np.float32)
        reflected = probes[kind](mirror[of])
        if kind == STEEL:  # brushed around the axis: the lobe is drawn out upwards and downwards
            tilted = [mirror[of] + np.array([0, e, 0], np.float32) for e in (-0.3, -0.15, 0.15, 0.3)]
            spread = [probes[kind](m / np.linalg.norm(m, axis=1, keepdims=True)) for m in tilted]
            reflected = (reflected + sum(spread[1:], spread[0])) / 5
        rim = f0 + (np.float32(0.62) - f0 * 0.62) * fresnel[of, None]
        colour = ALBEDO[kind].astype(np.float32) * diffuse(n[of]) * open_sky[of, None]
        colour += rim * reflected * np.sqrt(open_sky[of, None])
        if kind == BODY:
            metal = 0.50 * reflected * open_sky[of, None] + 0.10
            colour += (metal - colour) * (engraved[of] * 0.92)[:, None]
        out[of] = colour
    return out.astype(np.float32)


def render(shot: Shot) -> NDArray[np.uint8]:
    width, height = WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING
    probes, diffuse = tuple(Probe(g) for g in GLOSS), Probe(None)

    # The sweep is smooth: a sixth of the size is plenty.
    eye, d = camera(shot, WIDTH // 6, HEIGHT // 6)
    meets = d[:, 1] < -0.01
    t = np.where(meets, -eye[1] / np.minimum(d[:, 1], -0.01), 9e4)
    ground = eye + d * t[:, None]
    light = np.ones_like(d)
    near = meets & (np.hypot(ground[:, 0], ground[:, 2]) < 1200)
    light[near] = floor_light(ground[near].astype(np.float32))
    light = cv2.GaussianBlur(light.reshape(HEIGHT // 6, WIDTH // 6, 3), (0, 0), 1.0)
    light = cv2.resize(light, (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / width - 0.5, y / height - 0.5
    falloff = 0.905 - 0.10 * (x + 0.12) ** 2 - 0.045 * np.clip(y, 0, 1) - 0.07 * np.clip(-y - 0.1, 0, 1)
    picture = light * falloff[..., None] * np.array([0.997, 1.0, 1.004], np.float32)
    # A little of the boot's colour comes back from the floor close by.
    glow = np.clip(1 - light.mean(axis=2), 0, 1)[..., None] * np.array([0.050, 0.020, 0.012], np.float32)
    picture = (picture + glow * falloff[..., None]).astype(np.float32)

    eye, d = camera(shot, width, height)
    flat = picture.reshape(-1, 3)
    for start in range(0, len(d), 1_000_000):
        rays = d[start : start + 1_000_000]
        distance, hit = trace(eye, rays, shot.turn)
        if hit.any():
            at = eye + rays[hit] * distance[hit, None]
            flat[start : start + len(rays)][hit] = shade(at, rays[hit], shot, probes, diffuse)

    picture = np.where(picture < 0.8, picture, 0.8 + 0.25 * np.tanh((picture - 0.8) / 0.25))  # film shoulder
    picture = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    picture = cv2.GaussianBlur(picture, (0, 0), 0.65)  # lens
    dice = np.random.default_rng(shot.seed)
    shot_noise = dice.normal(size=(HEIGHT, WIDTH, 3)) * np.sqrt(np.maximum(picture, 0) + 0.02) * 0.0085
    picture = picture + cv2.GaussianBlur(shot_noise, (0, 0), 0.6)
    picture = np.clip(picture, 0, 1)
    srgb = np.where(picture < 0.0031308, picture * 12.92, 1.055 * picture ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(srgb * 255), dtype=np.uint8)


if __name__ == "__main__":
    for each in SHOTS:
        Image.fromarray(render(each)).save(
            Path(__file__).with_name(each.name), quality=88, subsampling=0, optimize=True
        )
