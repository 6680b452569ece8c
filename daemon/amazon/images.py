"""Checks of one finished listing image: measured values in, verdicts out.

    imaging.measure(bytes) -> Measured -> check_image(slot, measured) -> (Check, ...)

Pass, warn or fail for each rule, each with what was measured and what the limit is. What cannot be measured
in pixels (that the words are true, that no logo is in the scene) is not judged here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from daemon.amazon import rules
from daemon.amazon.checks import Check, CheckOutcome


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured in one finished image.

    format: "JPEG", "PNG", ...; colour_space: "sRGB", "untagged" or the name of another profile;
    mode: "RGB", "RGBA", "CMYK", ...; white_border: share 0..1 of the border band that is exactly
    255,255,255; fill: longer side of the box around the product, as a share of that side of the frame, by its
    pixels or, where that is known, its mask; seen: the same of everything that is not white;
    edges_touched: sides of the frame (0..4) that something not white touches;
    generated: True when a model invented pixels.
    """

    format: str
    mode: str
    colour_space: str
    has_alpha: bool
    has_exif: bool
    width_px: int
    height_px: int
    size_bytes: int
    white_border: float
    fill: float
    seen: float
    edges_touched: int
    generated: bool = False


def check_image(slot: str, measured: Measured) -> tuple[Check, ...]:
    """Every rule that applies to an image of this slot, the main image's own rules first."""
    limits = rules.limits_of(slot)
    return (*_check_white(measured, limits), *_check_file(measured, limits))


def _check_white(m: Measured, limits: rules.ImageLimits) -> Iterator[Check]:
    if limits.min_white_border is not None:
        ok = m.white_border >= limits.min_white_border
        yield Check(
            "background_white",
            "pass" if ok else "fail",
            # Rounded down: 0.99999 must not be shown as 1.
            int(m.white_border * 10_000) / 10_000,
            limits.min_white_border,
            "The border is pure white (255,255,255)." if ok
            else "Some of the border is not pure white (255,255,255).",
        )  # fmt: skip
        yield Check(
            "whole_product_in_frame",
            "fail" if m.edges_touched else "pass",
            m.edges_touched,
            0,
            "The product touches the edge of the frame." if m.edges_touched
            else "The product lies within the frame.",
        )  # fmt: skip
    if limits.min_fill is not None:
        yield _check_visible(m, limits.min_fill)
        # The size of something that nobody sees would only mislead.
        if m.fill:
            yield Check(
                "product_fill",
                "pass" if m.fill >= limits.min_fill else "fail",
                int(m.fill * 10_000) / 10_000,
                limits.min_fill,
                f"The product takes {m.fill:.0%} of the frame; Amazon wants at least {limits.min_fill:.0%}.",
            )
    if not limits.may_be_generated:
        yield Check(
            "own_pixels",
            "fail" if m.generated else "pass",
            m.generated,
            False,
            "The main image must be a photograph of the real product, not a generated one." if m.generated
            else "The product is the seller's own photograph.",
        )  # fmt: skip


def _check_visible(m: Measured, min_fill: float) -> Check:
    """Whether a shopper sees the product on its white background, and all of it."""
    outcome: CheckOutcome = "pass"
    detail = "The product stands out from the white background."
    if not m.seen:
        outcome = "fail"
        detail = (
            "The product cannot be told from the white background: nothing on the picture is darker than white. "
            "Take the photo with less light, or on a darker background."
        )
    elif m.seen < min_fill <= m.fill:
        outcome = "warn"
        detail = (
            "A part of the product can hardly be told from the white background. A photo with less light would "
            "show its edges."
        )
    return Check("product_visible", outcome, int(m.seen * 10_000) / 10_000, min_fill, detail)


def _check_file(m: Measured, limits: rules.ImageLimits) -> Iterator[Check]:
    yield _check_side(max(m.width_px, m.height_px), limits)
    yield Check(
        "format",
        "pass" if m.format == limits.preferred_format
        else "warn" if m.format in limits.formats
        else "fail",
        m.format,
        limits.preferred_format,
        f"The file is {m.format}; Amazon takes {', '.join(limits.formats)}, {limits.preferred_format} best.",
    )  # fmt: skip
    plain = m.mode == "RGB"
    known = plain and m.colour_space == "sRGB"
    yield Check(
        "colour_space",
        "pass" if known else "warn" if plain and m.colour_space == "untagged" else "fail",
        m.colour_space if plain else m.mode,
        "sRGB",
        "The colours are sRGB." if known else "The colours are not marked as sRGB and may look different.",
    )
    yield Check(
        "no_alpha",
        "fail" if m.has_alpha else "pass",
        m.has_alpha,
        False,
        "The image has transparent parts." if m.has_alpha else "The image has no transparency.",
    )
    yield Check(
        "no_exif",
        "warn" if m.has_exif else "pass",
        m.has_exif,
        False,
        "The file carries camera data (place, device)." if m.has_exif else "The file carries no camera data.",
    )
    heavy = m.size_bytes > limits.max_bytes
    yield Check(
        "file_size",
        "fail" if heavy else "pass",
        m.size_bytes,
        limits.max_bytes,
        f"The file has {m.size_bytes / 1e6:.1f} MB of at most {limits.max_bytes / 1e6:.0f} MB.",
    )


def _check_side(side: int, limits: rules.ImageLimits) -> Check:
    outcome: CheckOutcome = "pass"
    limit, detail = limits.recommended_side_px, "Large enough for a sharp zoom."
    if side < limits.min_side_px:
        outcome, limit, detail = "fail", limits.min_side_px, "Too small: Amazon refuses it."
    elif side > limits.max_side_px:
        outcome, limit, detail = "fail", limits.max_side_px, "Too large: Amazon refuses it."
    elif side < limits.zoom_side_px:
        outcome, limit, detail = "warn", limits.zoom_side_px, "Too small for the zoom on Amazon's page."
    elif side < limits.recommended_side_px:
        outcome, detail = "warn", "Amazon recommends a larger image."
    return Check("longest_side_px", outcome, side, limit, detail)
