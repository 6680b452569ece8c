"""Finds the product on a plain background: two independent methods and how far each can be trusted.

    photo --model the background from the border--> flood: everything that the background reaches
          --colour statistics inside the box------> GrabCut
    each mask: shadow on the ground taken off, openings taken out, then judged

A plain background is one that a smooth surface explains (a sweep with a light gradient), or two: a wall and a
ground (backdrop.py). Anything else is refused by its score, not guessed at. All sizes here are in pixels of the working copy (long side 900).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon.imaging import backdrop
from daemon.imaging.codec import Picture

Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]

WORK_SIDE_PX = 900
GRABCUT_SIDE_PX = 450
SHADOW_DEPTHS = (12.0, 22.0, 34.0, 48.0, 62.0)  # L below the lit ground
SHADOW_SLOPES = (1.2, 3.2)  # L per px: steeper is an edge of something, not a penumbra
MIRROR_DEPTHS = (12.0, 19.0)  # Delta E of a reflection in the ground
MIRROR_SLOPE = 0.8
MIN_EDGE_CONTRAST = 9.0  # Delta E across an outline that anybody would see
SHARP_EDGE = 0.6  # at least this part of the contrast within 13 px lies within 5 px
MIN_OPENING_PX = 60  # smaller than this an opening looks just like a highlight: left as it is
RIM_PX = 3  # how far blur and JPEG's ringing carry the product's colours outwards
SLIVER_CONTRAST = 12.0  # Delta E: what only one method keeps must differ this much
PLAIN_UNEVENNESS = 4.0  # Delta E between border and fitted surface: up to it a background is plain
SEEN_DIFFERENCE = 5.0  # Delta E that a careful eye sees
SHARP_SHADOW = 0.03  # px per px of outline: up to it a shadow is soft all over
MAX_SHADOW = 0.25  # a "shadow" of more than this share of a mask may be a part of the product
MIN_PART = 0.02  # parts smaller than this share of the largest are specks


@dataclass(frozen=True, slots=True)
class Scene:
    """A working copy in Lab and how it differs from its background.

    lab: h x w x 3 (L 0..100); darker: L below the background's (negative: brighter); tint: distance from
    the a, b that the background would have at that L; slope: steepness of L per px; noise: of the
    background behind each pixel, Delta E; horizon: where wall and ground meet, if they do;
    unevenness: 95th percentile of Delta E between border and fitted surface.
    """

    rgb: Picture
    lab: Plane
    darker: Plane
    tint: Plane
    slope: Plane
    noise: Plane
    unevenness: float
    horizon: backdrop.Horizon | None

    @property
    def difference(self) -> Plane:
        """Delta E (CIE 1976) to the background."""
        return np.hypot(self.darker, self.tint)


@dataclass(frozen=True, slots=True)
class Segments:
    """flood, grabcut: the product by either method; shadow: what was taken off as shadow;
    ambiguous: enclosed areas that may be openings or white parts (share of the product's area);
    weak: share of the flood's outline that is hardly there, or soft as a shadow's end.
    """

    scene: Scene
    flood: Mask
    grabcut: Mask
    shadow: Mask
    ambiguous: float
    weak: float


@dataclass(frozen=True, slots=True)
class _Edges:
    """faint: no edge anybody would see within 3 px; soft: a gradual one without tint, as a shadow's end."""

    faint: Mask
    soft: Mask


def segment(picture: Picture) -> Segments:
    """Both masks of an RGB photo, at working size."""
    scene = look_at(picture)
    reached = _reach(scene)
    # The ground below the product differs from the border: fit again on all that was reached.
    scene = _see(scene.rgb, scene.lab, reached, scene.horizon)
    reached = _reach(scene)
    raw = _keep_parts(_tighten(scene, ~reached))
    edges = _find_edges(scene)
    flood, shadow = _take_off_shadow(scene, edges, raw)
    closed = flood
    flood, ambiguous = _open_holes(scene, closed)
    if (closed & ~flood).any():  # a shadow lies in the openings as well
        flood, within = _take_off_shadow(scene, edges, flood)
        shadow = shadow | within
    grabcut, _ = _take_off_shadow(scene, edges, _grabcut(scene))
    grabcut, _ = _open_holes(scene, grabcut)
    flood = flood & ~_slivers(scene, flood, grabcut)
    return Segments(scene, flood, grabcut, shadow, ambiguous, _weak_outline(edges, flood))


def part_shadow(picture: Picture, mask: Mask) -> tuple[Mask, Mask]:
    """(a mask of whatever maker without the product's shadow, that shadow), both at working size.

    picture: RGB; mask: of its size. The shadow is empty wherever it might be a part of the product: on a
    background that is not plain, where it has sharp edges, where much would be lost.
    """
    scene = look_at(picture)
    scene = _see(scene.rgb, scene.lab, _reach(scene), scene.horizon)
    size = working_size(picture)
    whole = cv2.resize(mask.astype(np.uint8) * np.uint8(255), size, interpolation=cv2.INTER_AREA) > 127
    nothing = np.zeros_like(whole)
    if scene.unevenness > PLAIN_UNEVENNESS:
        return whole, nothing
    _, shadow = _take_off_shadow(scene, _find_edges(scene), whole)
    shadow &= _keep_parts(whole)  # a strap or a wire is too thin to be judged
    kept = np.asarray(whole & ~shadow)
    if shadow.sum() > MAX_SHADOW * whole.sum() or sharp_shadow(scene, kept, shadow) > SHARP_SHADOW:
        return whole, nothing
    return kept, shadow


def _slivers(scene: Scene, flood: Mask, grabcut: Mask) -> Mask:
    """What is thin and faint and only in the flood: a reflection's end, ringing between leaves. Anything
    broader may be a pale part: it stays, and the two methods are seen to disagree.
    """
    near = cv2.dilate(grabcut.astype(np.uint8), _disc(2)).astype(bool)
    faint = np.asarray(flood & ~near & (scene.difference < SLIVER_CONTRAST), dtype=np.bool_)
    broad = cv2.morphologyEx(faint.astype(np.uint8), cv2.MORPH_OPEN, _disc(2)).astype(bool)
    return np.asarray(faint & ~connected_to(broad, faint))


def working_size(picture: Picture) -> tuple[int, int]:
    """(width, height) of the working copy."""
    height, width = picture.shape[:2]
    scale = min(1.0, WORK_SIDE_PX / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def look_at(picture: Picture) -> Scene:
    """The working copy with its background fitted to the border alone."""
    rgb = np.asarray(cv2.resize(picture, working_size(picture), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    full = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = np.asarray(cv2.GaussianBlur(full, (0, 0), 0.8), dtype=np.float32)
    border = np.ones(rgb.shape[:2], dtype=bool)
    band = max(2, round(min(rgb.shape[:2]) * 0.03))
    border[band:-band, band:-band] = False
    return _see(rgb, lab, border, backdrop.find_horizon(lab))


def _see(rgb: Picture, lab: Plane, known: Mask, horizon: backdrop.Horizon | None) -> Scene:
    """The scene against the backdrop that the known part of it gives."""
    behind = backdrop.fit_backdrop(lab, known, horizon)
    # Less light scales linear RGB by k, hence L + 16, a and b by the cube root of k (CIE 15): a shadow on
    # coloured ground is no tint.
    dimmed = np.clip((lab[..., 0] + 16) / np.maximum(behind.lab[..., 0] + 16, 1), 0.3, 1)
    level = cv2.GaussianBlur(lab[..., 0], (0, 0), 1.0)
    slope = np.hypot(cv2.Scharr(level, cv2.CV_32F, 1, 0), cv2.Scharr(level, cv2.CV_32F, 0, 1)) / 32
    return Scene(
        rgb=rgb,
        lab=lab,
        darker=behind.lab[..., 0] - lab[..., 0],
        tint=np.hypot(lab[..., 1] - behind.lab[..., 1] * dimmed, lab[..., 2] - behind.lab[..., 2] * dimmed),
        slope=np.asarray(slope, dtype=np.float32),
        noise=behind.noise,
        unevenness=behind.unevenness,
        horizon=horizon,
    )


def _reach(scene: Scene) -> Mask:
    """Flood from the frame through everything that looks like the background."""
    limit = np.clip(4 * scene.noise, 3.0, 6.0)
    passable = (np.abs(scene.darker) < limit) & (scene.tint < limit)
    if scene.horizon is not None:
        passable &= ~_crossing(scene.horizon, ~passable)
    return connected_to_frame(passable)


def _crossing(horizon: backdrop.Horizon, mask: Mask) -> Mask:
    """Where wall and ground meet between parts of a mask right above and right below: any mixture of the two
    is backdrop there, and a product of such a colour must not be cut through.
    """
    meeting = np.abs(horizon.height_over(*mask.shape)) <= horizon.reach + 1
    tall = 2 * int(np.ceil(horizon.reach)) + 7
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((tall, 1), np.uint8))
    return np.asarray(meeting & closed.astype(bool))


def _tighten(scene: Scene, mask: Mask) -> Mask:
    """Without the rim that is nearer to the background than to the product within it: blur, ringing of JPEG."""
    difference = scene.difference
    within = cv2.dilate(np.where(mask, difference, 0).astype(np.float32), _disc(RIM_PX))
    rim = mask & (difference < 0.4 * within)
    outside = ~mask
    for _ in range(RIM_PX):
        outside = outside | (
            cv2.dilate(outside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & rim
        )
    return mask & ~outside


def connected_to(known: Mask, passable: Mask) -> Mask:
    """What of `known` and `passable` hangs together with `known`."""
    count, labels = cv2.connectedComponents((known | passable).astype(np.uint8), connectivity=4)
    reached = np.zeros(count, dtype=bool)
    reached[labels[known]] = True
    reached[0] = False
    return np.asarray(reached[labels])


def connected_to_frame(passable: Mask) -> Mask:
    """What of `passable` hangs together with the frame's edge."""
    count, labels = cv2.connectedComponents(passable.astype(np.uint8), connectivity=4)
    frame = np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1]))
    outside = np.zeros(count, dtype=bool)
    outside[np.unique(frame)] = True
    outside[0] = False
    return np.asarray(outside[labels])


def _keep_parts(mask: Mask) -> Mask:
    """Without hair lines and specks."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _disc(1))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=8)
    if count < 2:
        return np.zeros_like(mask)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    return np.asarray((areas >= MIN_PART * areas.max())[labels] & (labels > 0))


def _take_off_shadow(scene: Scene, edges: _Edges, mask: Mask) -> tuple[Mask, Mask]:
    """(mask without the shadow on the ground, that shadow).

    How deep the shadow is cannot be known beforehand, and a grey product looks like a deep one: so several
    depths are tried, and the one is taken whose outline stands out best against its surroundings. Both a
    shadow left behind and a product eaten into have soft outlines.
    """
    tried = [mask]
    for depth in SHADOW_DEPTHS:
        for slope in SHADOW_SLOPES:
            kept = _keep_parts(mask & ~_shadow_from_outside(scene, mask, depth, slope))
            if kept.any():
                tried.append(kept)
    for depth in MIRROR_DEPTHS:
        kept = _keep_parts(mask & ~_mirrored(scene, mask, depth))
        if kept.any():
            tried.append(kept)
    weak = [_weak_outline(edges, each) for each in tried]
    # Of equally good outlines the tightest: what it leaves out more is a sliver of shadow.
    best = min((each for each, w in zip(tried, weak, strict=True) if w <= min(weak) + 0.004), key=np.sum)
    return best, mask & ~best


def _shadow_from_outside(scene: Scene, mask: Mask, depth: float, slope: float) -> Mask:
    """The part of a mask that may be shadow up to a depth and a steepness (L, L per px).

    A shadow darkens the ground without tinting it and fades gradually.
    """
    # Light bounced from the product tints its shadow a little, more where it is deep.
    like = (scene.darker > -2) & (scene.darker < depth) & (scene.tint < 4 + 0.12 * scene.darker)
    return _enter_softly(scene, mask, like, slope)


def _mirrored(scene: Scene, mask: Mask, depth: float) -> Mask:
    """The part of a mask that may be the shadow and the product's image in a polished ground: of any tint,
    pale, and softer than a shadow.
    """
    return _enter_softly(scene, mask, scene.difference < depth, MIRROR_SLOPE)


def _enter_softly(scene: Scene, mask: Mask, like: Mask, slope: float) -> Mask:
    """What of `like` in the lower part of a mask is entered from the background over no steep edge."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return np.zeros_like(mask)
    like = mask & like
    like[: rows[0] + (rows[-1] - rows[0]) // 2] = False
    shadow = mask & connected_to(~mask, like & (scene.slope < slope))
    # Slopes are measured over a few pixels, so the flood stops short of the product's edge: creep up to it.
    soft = like & (scene.slope < 2 * slope)
    for _ in range(4 if shadow.any() else 0):
        shadow = shadow | (cv2.dilate(shadow.astype(np.uint8), _disc(1)).astype(bool) & soft)
    return shadow


def _weak_outline(edges: _Edges, mask: Mask) -> float:
    """Share of a mask's outline that is hardly there, or is soft as only a shadow's end is."""
    at = outline(mask)
    if not at.any():
        return 1.0
    rows = np.flatnonzero(mask.any(axis=1))
    low = np.nonzero(at)[0] > (rows[0] + rows[-1]) / 2
    return float((edges.faint[at] | (edges.soft[at] & low)).mean())


def sharp_shadow(scene: Scene, mask: Mask, shadow: Mask) -> float:
    """Sharp edges in and around what was taken off as shadow, away from the product, in px per px of outline."""
    if not shadow.any():
        return 0.0
    near, wide = contrast(scene, 5), contrast(scene, 13)
    limit = np.maximum(SEEN_DIFFERENCE, 10 * scene.noise)
    sharp = (near > 0.75 * wide) & (wide > limit)
    where = cv2.dilate(shadow.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    where &= cv2.dilate(mask.astype(np.uint8), np.ones((17, 17), np.uint8)) == 0
    lines = (sharp & where).astype(np.uint8)
    # An edge lights up as a band that is five pixels wide.
    return float(lines.sum()) / 5 / max(1, int(outline(mask).sum()))


def _find_edges(scene: Scene) -> _Edges:
    near, wide = contrast(scene, 7), contrast(scene, 13)
    # An outline may lie a few pixels off the edge that it stands for.
    close = cv2.dilate(contrast(scene, 5), np.ones((7, 7), np.uint8))
    untinted = scene.tint < 4 + 0.12 * scene.darker
    return _Edges(faint=near < MIN_EDGE_CONTRAST, soft=(close < SHARP_EDGE * wide) & untinted)


def contrast(scene: Scene, side: int) -> Plane:
    """Strongest against weakest L, a, b in a square around each pixel."""
    reach = np.ones((side, side), np.uint8)
    span = cv2.dilate(scene.lab, reach) - cv2.erode(scene.lab, reach)
    return np.asarray(np.sqrt((span * span).sum(axis=2)), dtype=np.float32)


def outline(mask: Mask) -> Mask:
    """The mask's outermost pixels."""
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8))
    return np.asarray(mask & ~inner.astype(bool))


def _open_holes(scene: Scene, mask: Mask) -> tuple[Mask, float]:
    """(mask without openings that show the background, share of area that cannot be told apart).

    An opening shows what the surface predicts for its place, with the background's own noise. On a
    background blown out to pure white a white label looks just the same: left in, and told.
    """
    filled = ~connected_to_frame(~mask)
    limit = np.clip(4 * scene.noise, 3.0, 6.0)
    like = filled & (np.abs(scene.darker) < limit) & (scene.tint < limit)
    like = cv2.morphologyEx(like.astype(np.uint8), cv2.MORPH_OPEN, _disc(2)).astype(bool)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(like.astype(np.uint8), connectivity=4)
    opened, ambiguous = filled.copy(), 0
    grain = np.abs(scene.darker - cv2.GaussianBlur(scene.darker, (0, 0), 4))
    backdrop_grain = float(np.median(grain[~filled])) if (~filled).any() else 0.0
    for part in range(1, count):
        area = int(stats[part, cv2.CC_STAT_AREA])
        if area < MIN_OPENING_PX:
            continue
        where = labels == part
        blown = float((scene.rgb[where].min(axis=1) >= 253).mean())
        if blown > 0.5:
            ambiguous += area
            continue
        ring = cv2.dilate(where.astype(np.uint8), _disc(4)).astype(bool) & ~where
        if float(np.median(scene.difference[ring])) < 8:
            ambiguous += area  # fades into its surroundings: a highlight or pale paint
            continue
        if float(np.median(grain[where])) < 0.4 * backdrop_grain:
            ambiguous += area  # smoother than the background is anywhere: print or paint
            continue
        seen, noise = scene.lab[where], float(scene.noise[where].mean())
        if (
            float(np.hypot(scene.darker[where].mean(), scene.tint[where].mean())) > 1.2 + 2 * noise
            or float(seen[:, 0].std()) > 1 + 2 * noise
        ):
            ambiguous += area  # flat, but not what the background must look like here
            continue
        near = cv2.dilate(where.astype(np.uint8), _disc(2)).astype(bool)
        opened &= ~(near & (scene.difference < 12))
    return opened, ambiguous / max(1, int(filled.sum()))


def _grabcut(scene: Scene) -> Mask:
    """GrabCut from the box around all that differs; knows colours, but neither place nor shadow."""
    height, width = scene.rgb.shape[:2]
    scale = min(1.0, GRABCUT_SIDE_PX / max(height, width))
    size = round(width * scale), round(height * scale)
    small = cv2.resize(scene.rgb, size, interpolation=cv2.INTER_AREA)
    apart = np.asarray(scene.difference / np.maximum(8.0, 4 * scene.noise), dtype=np.float32)
    differs = cv2.resize(apart, size, interpolation=cv2.INTER_AREA) > 1
    differs = cv2.morphologyEx(differs.astype(np.uint8), cv2.MORPH_OPEN, _disc(1)).astype(bool)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    empty = np.zeros((height, width), dtype=bool)
    if len(rows) < 4 or len(columns) < 4:
        return empty
    guess = np.full(differs.shape, cv2.GC_BGD, dtype=np.uint8)
    pad = 3
    inside = (
        slice(max(1, rows[0] - pad), min(len(guess) - 1, rows[-1] + pad + 1)),
        slice(max(1, columns[0] - pad), min(len(guess[0]) - 1, columns[-1] + pad + 1)),
    )
    guess[inside] = np.where(differs[inside], cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    cv2.setRNGSeed(1)  # its k-means draws; equal photos shall give equal masks
    outer, inner = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    try:
        cv2.grabCut(bgr, guess, (0, 0, 1, 1), outer, inner, 4, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # one of the two sides has too few pixels for its colour model
        return empty
    found = (guess == cv2.GC_FGD) | (guess == cv2.GC_PR_FGD)
    large = cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    return _keep_parts(large)


def _disc(radius: int) -> NDArray[np.uint8]:
    return np.asarray(
        cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), dtype=np.uint8
    )
