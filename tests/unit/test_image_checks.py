"""Amazon's rules for listing images, judged from measured values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from daemon.amazon import rules
from daemon.amazon.checks import has_failed
from daemon.amazon.images import Measured, check_image
from daemon.errors import InvalidInput
from daemon.payloads import PACK_SLOTS

GOOD = Measured(
    format="JPEG", mode="RGB", colour_space="sRGB", has_alpha=False, has_exif=False, width_px=2000,
    height_px=2000, size_bytes=700_000, white_border=1.0, fill=0.9, seen=0.9, edges_touched=0,
)  # fmt: skip


def outcomes(slot: str, **changes: Any) -> dict[str, str]:
    return {c.rule: c.outcome for c in check_image(slot, replace(GOOD, **changes))}


def test_a_good_main_image_passes_every_rule() -> None:
    found = outcomes("main")

    assert {"pass"} == set(found.values())
    assert {
        "background_white", "whole_product_in_frame", "product_visible", "product_fill", "own_pixels", "longest_side_px",
        "format", "colour_space", "no_alpha", "no_exif", "file_size",
    } == set(found)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "rule", "outcome"),
    [
        ({"white_border": 0.9999}, "background_white", "fail"),
        ({"edges_touched": 1}, "whole_product_in_frame", "fail"),
        ({"fill": 0.8499}, "product_fill", "fail"),
        ({"fill": 0.85}, "product_fill", "pass"),
        ({"fill": 0.9, "seen": 0.8}, "product_visible", "warn"),
        ({"fill": 0.6, "seen": 0.6}, "product_visible", "pass"),
        ({"fill": 0.9, "seen": 0.0}, "product_visible", "fail"),
        ({"generated": True}, "own_pixels", "fail"),
        ({"width_px": 499, "height_px": 499}, "longest_side_px", "fail"),
        ({"width_px": 500, "height_px": 100}, "longest_side_px", "warn"),
        ({"width_px": 1000, "height_px": 1599}, "longest_side_px", "warn"),
        ({"width_px": 1600, "height_px": 900}, "longest_side_px", "pass"),
        ({"width_px": 10_001}, "longest_side_px", "fail"),
        ({"format": "PNG"}, "format", "warn"),
        ({"format": "WEBP"}, "format", "fail"),
        ({"colour_space": "untagged"}, "colour_space", "warn"),
        ({"colour_space": "Adobe RGB (1998)"}, "colour_space", "fail"),
        ({"mode": "CMYK"}, "colour_space", "fail"),
        ({"mode": "RGBA", "has_alpha": True}, "no_alpha", "fail"),
        ({"has_exif": True}, "no_exif", "warn"),
        ({"size_bytes": 10_000_001}, "file_size", "fail"),
    ],
)  # fmt: skip
def test_each_rule_of_the_main_image_is_judged(changes: dict[str, Any], rule: str, outcome: str) -> None:
    assert outcome == outcomes("main", **changes)[rule]


@pytest.mark.parametrize("slot", ["angle", "lifestyle", "infographic", "detail", "dimensions", "in_the_box"])
def test_secondary_images_may_have_a_scene_and_generated_pixels(slot: str) -> None:
    found = outcomes(slot, white_border=0.0, fill=1.0, edges_touched=4, generated=True)

    assert {"pass"} == set(found.values())
    assert not {"background_white", "product_fill", "own_pixels"} & set(found)


def test_of_a_product_that_cannot_be_seen_no_size_is_claimed() -> None:
    assert "product_fill" not in outcomes("main", fill=0.0, seen=0.0)


def test_a_value_just_under_its_limit_is_not_shown_as_the_limit() -> None:
    """A seller who reads 1.0 beside "fail" trusts nothing any more."""
    shown = {
        c.rule: c.as_json() for c in check_image("main", replace(GOOD, white_border=0.99999, fill=0.84999))
    }

    assert (0.9999, 1.0) == (shown["background_white"]["measured"], shown["background_white"]["limit"])
    assert (0.8499, 0.85) == (shown["product_fill"]["measured"], shown["product_fill"]["limit"])


def test_checks_are_json_and_say_a_sentence() -> None:
    checks = check_image("main", replace(GOOD, fill=0.5, format="PNG"))

    assert has_failed(checks)
    for check in json.loads(json.dumps([c.as_json() for c in checks])):
        assert {"rule", "outcome", "measured", "limit", "detail"} == set(check)
        assert check["detail"].endswith(".")


def test_the_pack_of_six_has_amazons_codes() -> None:
    assert ["MAIN", "PT01", "PT02", "PT03", "PT04", "PT05"] == [rules.code_of(s) for s in PACK_SLOTS]


def test_codes_are_dealt_without_gaps_when_a_pack_is_smaller() -> None:
    slots = ("main", "detail", "in_the_box")

    assert ["MAIN", "PT01", "PT02"] == [rules.code_of(s, slots) for s in slots]


def test_an_unknown_slot_is_refused() -> None:
    with pytest.raises(InvalidInput):
        rules.code_of("hero")


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("B07ABCD123", "B07ABCD123.MAIN.jpg"),
        ("my.sku/7 blue", "my-sku-7-blue.MAIN.jpg"),
        ("../../etc/passwd", "etc-passwd.MAIN.jpg"),
        ("", "product.MAIN.jpg"),
    ],
)
def test_file_names_are_what_amazon_reads(identifier: str, name: str) -> None:
    """Amazon splits at the dots; and a name must never lead out of its folder."""
    assert name == rules.file_name(identifier, "MAIN")
