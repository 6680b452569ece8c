"""What Amazon's A+ editor allows beyond the API: text lengths, image sizes, number of modules. Data only.

Paths are keys from the module's payload, joined by "/"; "*" stands for any position in a list. A path to a
paragraph limits its texts together. The API's own limits stand in aplus_modules.py.

Source: Amazon Seller Central, "A+ Content module specifications", read 2026-11-23; lengths of texts that no
page names (captions, bullets of the sidebar) are taken from the nearest module that has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

AplusModule = Literal[
    "STANDARD_COMPANY_LOGO", "STANDARD_COMPARISON_TABLE", "STANDARD_FOUR_IMAGE_TEXT",
    "STANDARD_FOUR_IMAGE_TEXT_QUADRANT", "STANDARD_HEADER_IMAGE_TEXT", "STANDARD_IMAGE_SIDEBAR",
    "STANDARD_IMAGE_TEXT_OVERLAY", "STANDARD_MULTIPLE_IMAGE_TEXT", "STANDARD_PRODUCT_DESCRIPTION",
    "STANDARD_SINGLE_IMAGE_HIGHLIGHTS", "STANDARD_SINGLE_IMAGE_SPECS_DETAIL",
    "STANDARD_SINGLE_SIDE_IMAGE", "STANDARD_TECH_SPECS", "STANDARD_TEXT",
    "STANDARD_THREE_IMAGE_TEXT",
]  # fmt: skip

MAX_MODULES = 5
MAX_IMAGE_BYTES = 2_000_000
IMAGE_FORMATS = ("JPEG", "PNG")
IMAGE_MODE = "RGB"
MAX_METRIC_LABEL = 20
MAX_COMPARISON_TITLE = 80


@dataclass(frozen=True, slots=True)
class ModuleLimits:
    """texts: path -> most characters; images: path -> least (width, height) in px."""

    texts: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def _blocks(count: int, headline: int, body: int) -> dict[str, int]:
    numbers = range(1, count + 1)
    return {f"block{n}/headline": headline for n in numbers} | {f"block{n}/body": body for n in numbers}


def _block_images(count: int, side: int) -> dict[str, tuple[int, int]]:
    return {f"block{n}/image": (side, side) for n in range(1, count + 1)}


LIMITS: Mapping[AplusModule, ModuleLimits] = {
    "STANDARD_COMPANY_LOGO": ModuleLimits(images={"companyLogo": (600, 180)}),
    "STANDARD_COMPARISON_TABLE": ModuleLimits(
        texts={"productColumns/*/title": MAX_COMPARISON_TITLE, "metricRowLabels/*/value": MAX_METRIC_LABEL},
        images={"productColumns/*/image": (150, 300)},
    ),
    "STANDARD_FOUR_IMAGE_TEXT": ModuleLimits(
        texts={"headline": 200, **_blocks(4, 160, 1000)}, images=_block_images(4, 220)
    ),
    "STANDARD_FOUR_IMAGE_TEXT_QUADRANT": ModuleLimits(
        texts=_blocks(4, 140, 1000), images=_block_images(4, 135)
    ),
    "STANDARD_HEADER_IMAGE_TEXT": ModuleLimits(
        texts={"headline": 150, "block/headline": 150, "block/body": 6000},
        images={"block/image": (970, 600)},
    ),
    "STANDARD_IMAGE_SIDEBAR": ModuleLimits(
        texts={
            "headline": 160,
            "imageCaptionBlock/caption": 200,
            "descriptionTextBlock/headline": 160,
            "descriptionTextBlock/body": 500,
            "descriptionListBlock/textList/*/text": 100,
            "sidebarImageTextBlock/headline": 160,
            "sidebarImageTextBlock/body": 500,
            "sidebarListBlock/textList/*/text": 100,
        },
        images={"imageCaptionBlock/image": (300, 400), "sidebarImageTextBlock/image": (350, 175)},
    ),
    "STANDARD_IMAGE_TEXT_OVERLAY": ModuleLimits(
        texts={"block/headline": 70, "block/body": 300}, images={"block/image": (970, 300)}
    ),
    "STANDARD_MULTIPLE_IMAGE_TEXT": ModuleLimits(
        texts={"blocks/*/caption": 200, "blocks/*/block/headline": 160, "blocks/*/block/body": 1000},
        images={"blocks/*/block/image": (300, 300)},
    ),
    "STANDARD_PRODUCT_DESCRIPTION": ModuleLimits(texts={"body": 6000}),
    "STANDARD_SINGLE_IMAGE_HIGHLIGHTS": ModuleLimits(
        texts={
            "headline": 160,
            **{f"textBlock{n}/headline": 160 for n in (1, 2, 3)},
            **{f"textBlock{n}/body": 1000 for n in (1, 2, 3)},
            "bulletedListBlock/headline": 160,
            "bulletedListBlock/block/textList/*/text": 100,
        },
        images={"image": (300, 300)},
    ),
    "STANDARD_SINGLE_IMAGE_SPECS_DETAIL": ModuleLimits(
        texts={
            "headline": 160,
            "descriptionHeadline": 160,
            **{f"descriptionBlock{n}/headline": 160 for n in (1, 2)},
            **{f"descriptionBlock{n}/body": 1000 for n in (1, 2)},
            "specificationHeadline": 160,
            "specificationListBlock/headline": 160,
            "specificationListBlock/block/textList/*/text": 100,
            "specificationTextBlock/headline": 160,
            "specificationTextBlock/body": 1000,
        },
        images={"image": (300, 300)},
    ),
    "STANDARD_SINGLE_SIDE_IMAGE": ModuleLimits(
        texts={"block/headline": 160, "block/body": 1000}, images={"block/image": (300, 300)}
    ),
    "STANDARD_TECH_SPECS": ModuleLimits(
        texts={
            "headline": 160,
            "specificationList/*/label": 30,
            "specificationList/*/description": 500,
        }
    ),
    "STANDARD_TEXT": ModuleLimits(texts={"headline": 160, "body": 5000}),
    "STANDARD_THREE_IMAGE_TEXT": ModuleLimits(
        texts={"headline": 200, **_blocks(3, 160, 1000)}, images=_block_images(3, 300)
    ),
}
"""Module -> its limits, all 15."""
