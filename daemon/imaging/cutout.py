"""The offline cut-out: a product taken off a plain background, or a plain "not sure".

    photo --segment--> two masks --judge each and their agreement--> confidence 0..1, reasons
                                 --soft edge-----------------------> RGBA

A wrong picture is worse than none, so confidence is that of the weakest sign, never an average.
`judge_mask` looks at any provider's answer for the same signs, as far as alpha alone shows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from daemon.imaging import haze, matte, segment
from daemon.imaging.codec import Picture, has_alpha

VERSION = "4"  # part of the provider's fingerprint: raise it when the same photo may come out differently
_PLAIN_DIFFERENCE = 14.0  # Delta E that nobody overlooks
SURE = 0.7  # at least this confidence is delivered

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class OfflineCutout:
    """rgba: h x w x 4 of the photo's full frame, alpha 0 = background; confidence: 0..1;
    reasons: what lowers it, in words for the seller, the weightiest first.
    """

    rgba: Picture
    confidence: float
    reasons: tuple[str, ...]

    @property
    def is_sure(self) -> bool:
        return self.confidence >= SURE


@dataclass(frozen=True, slots=True)
class MaskVerdict:
    """What alpha alone says about a cut-out, whoever made it.

    usable: False when it is certainly no product; reasons: why not, or what to look at;
    fill: opaque share of the frame; edge_contact: share of the frame's edge that is opaque;
    parts: separate pieces of at least 2 % of the largest.
    """

    usable: bool
    reasons: tuple[str, ...]
    fill: float
    edge_contact: float
    parts: int


@dataclass(frozen=True, slots=True)
class _Sign:
    """One thing that was measured: 1 = as it should be, 0 = certainly wrong."""

    score: float
    reason: str


def cut_out(picture: Picture) -> OfflineCutout:
    """The product of an RGB photo with its confidence; an RGBA picture is taken to be cut out already, but for haze."""
    if has_alpha(picture):
        verdict = judge_mask(picture)
        return OfflineCutout(haze.take_off_haze(picture), 1.0 if verdict.usable else 0.0, verdict.reasons)
    found = segment.segment(picture)
    signs = sorted(_signs(found), key=lambda sign: sign.score)
    rgba = matte.cut_with_soft_edge(picture, found.flood)
    return OfflineCutout(
        rgba=rgba,
        confidence=round(signs[0].score, 3),
        reasons=tuple(sign.reason for sign in signs if sign.score < 1),
    )


def judge_mask(rgba: Picture) -> MaskVerdict:
    """Whether an RGBA cut-out can be a product at all: not empty, not everything, not in shreds."""
    if not has_alpha(rgba):
        return MaskVerdict(False, ("Nothing was cut out: the picture has no transparency.",), 1.0, 1.0, 1)
    solid = rgba[..., 3] >= 128
    fill, contact, parts = float(solid.mean()), edge_contact(solid), _count_parts(solid)
    wrong = []
    if fill < 0.004:
        wrong.append("Next to nothing is left of the photo.")
    elif fill > 0.97:
        wrong.append("Nothing was cut out: the whole photo is still there.")
    if contact > 0.45:
        wrong.append("The cut-out runs along most of the photo's edge, so background is still in it.")
    if parts > 20:
        wrong.append(f"The cut-out is in {parts} pieces.")
    notes = []
    if not wrong and contact > 0:
        notes.append("The product touches the edge of the photo and may be cropped.")
    return MaskVerdict(not wrong, (*wrong, *notes), fill, contact, parts)


def edge_contact(mask: Mask) -> float:
    """Share of the frame's outermost pixels that belong to the mask."""
    return float(np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1])).mean())


# --- signs -----------------------------------------------------------------------------------------


def _signs(found: segment.Segments) -> Iterator[_Sign]:
    scene, mask = found.scene, found.flood
    fill = float(mask.mean())
    if fill < 0.01:
        yield _Sign(0.0, "No product stands out from the background.")
        return
    yield _Sign(
        _grade(scene.unevenness, bad=9.0, good=segment.PLAIN_UNEVENNESS), "The background is not plain."
    )
    yield _Sign(_grade(fill, bad=0.88, good=0.75), "Next to no background was found.")
    both, either = mask & found.grabcut, mask | found.grabcut
    agreement = float(both.sum() / either.sum())
    yield _Sign(_grade(agreement, bad=0.90, good=0.97), "Two methods disagree on where the product ends.")
    yield _Sign(0.0 if edge_contact(mask) > 0 else 1.0, "The product touches the edge of the photo.")
    yield _Sign(_grade(_count_parts(mask), bad=5, good=2), "There are several things in the photo.")
    yield _Sign(0.0 if _is_framed(mask) else 1.0, "The photo seems to have a frame or bars around it.")
    yield _Sign(
        _grade(found.ambiguous, bad=0.06, good=0.01),
        "Parts inside the product are as pale as the background and may be openings.",
    )
    yield _Sign(
        _grade(found.weak, bad=0.08, good=0.03),
        "Part of the product's edge can hardly be told from the background.",
    )
    yield _Sign(_grade(_raggedness(mask), bad=0.5, good=0.25), "The edge that was found is ragged.")
    yield _Sign(
        _grade(segment.sharp_shadow(scene, mask, found.shadow), bad=0.08, good=segment.SHARP_SHADOW),
        "What seems to be a shadow has sharp edges: a part of the product may have been lost.",
    )
    yield _Sign(
        _grade(_left_out(found), bad=0.012, good=0.004),
        "Something that stands out from the background was left out.",
    )
    yield _Sign(
        _grade(_faint_structure(found), bad=0.02, good=0.006),
        "There are faint outlines outside of what was cut out: a pale part may have been lost.",
    )


def _grade(value: float, *, bad: float, good: float) -> float:
    """1 at `good` or better, 0 at `bad` or worse, straight in between."""
    return float(np.clip((value - bad) / (good - bad), 0, 1))


def _count_parts(mask: Mask) -> int:
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return int((areas >= segment.MIN_PART * areas.max()).sum()) if len(areas) else 0


def _is_framed(mask: Mask) -> bool:
    """True for an upright rectangle close to the frame: a picture within bars, not a product."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    tall = (rows[-1] - rows[0] + 1) / mask.shape[0]
    wide = (columns[-1] - columns[0] + 1) / mask.shape[1]
    return bool(mask.sum() > 0.95 * box and max(tall, wide) > 0.94)


def _raggedness(mask: Mask) -> float:
    """What smoothing changes, in pixels per pixel of outline."""
    smooth = cv2.medianBlur(mask.astype(np.uint8) * 255, 9) > 127
    return float((smooth ^ mask).sum()) / max(1, int(segment.outline(mask).sum()))


def _left_out(found: segment.Segments) -> float:
    """What differs plainly from the background and is neither product nor shadow, as a share of the product."""
    scene, mask = found.scene, found.flood
    around = 3 + 2 * segment.RIM_PX
    apart = cv2.dilate((mask | found.shadow).astype(np.uint8), np.ones((around, around), np.uint8))
    stands_out = ((scene.difference > _PLAIN_DIFFERENCE) & (apart == 0)).astype(np.uint8)
    stands_out = cv2.morphologyEx(stands_out, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return float(stands_out.sum()) / max(1, int(mask.sum()))


def _faint_structure(found: segment.Segments) -> float:
    """Edges left in the background, as a share of the product's area; the shadow's penumbra apart."""
    scene, mask = found.scene, found.flood
    around = 13 + 2 * segment.RIM_PX  # the blurs below carry the product's own edge this far
    apart = cv2.dilate(mask.astype(np.uint8), np.ones((around, around), np.uint8)).astype(bool)
    apart |= cv2.dilate(found.shadow.astype(np.uint8), np.ones((31, 31), np.uint8)).astype(bool)
    level = cv2.GaussianBlur(scene.darker, (0, 0), 1.5)
    fine = level - cv2.GaussianBlur(level, (0, 0), 4)
    limit = max(0.8, 7 * float(np.median(np.abs(fine[~apart]))) if (~apart).any() else 0.8)
    lines = cv2.morphologyEx(
        ((np.abs(fine) > limit) & ~apart).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)
    )
    return float(lines.sum()) / max(1, int(mask.sum()))
