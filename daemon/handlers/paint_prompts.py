"""Prompts for painted pictures: the slot's own text around the style block that a whole listing shares.

    <slot>.md or aplus.md  <--  style.md  <--  fidelity checklist, facts

The seller's words enter as quoted JSON between markers that they cannot write: they stay data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daemon.handlers.prompts import load_prompt, quote_data
from daemon.payloads import Product, Style

_ROLES = {
    "aplus_header": "A wide opening image: the product in a fitting scene, a little right of the middle.",
    "aplus_overlay": "A wide image with the product in its right third; the left two thirds are calm and out "
    "of focus, because words will be laid over them.",
    "aplus_square": "A square image: the product in use or close up, centred.",
    "aplus_tall": "An upright image: the product in a fitting scene, in its lower half.",
}
_CALM_SCENE = "The product in a fitting, calm scene."


@dataclass(frozen=True, slots=True)
class PaintPrompt:
    """text: what the painter gets; version: of the slot's and the style's file, for the step's identity."""

    text: str
    version: str


def write_paint_prompt(
    slot: str, product: Product, style: Style, *, width_px: int, height_px: int
) -> PaintPrompt:
    """The prompt for one painted picture: angle, lifestyle, infographic, or an A+ role ("aplus_…")."""
    own = load_prompt("aplus" if slot.startswith("aplus") else slot)
    shared = load_prompt("style")
    wishes = {name: wish for name, wish in style.model_dump(mode="json").items() if wish}
    words = {
        "frame": _describe_frame(width_px, height_px),
        "role": _ROLES.get(slot, _CALM_SCENE),
        "style": shared.fill(fidelity=_checklist(product), facts=quote_data("product_facts", _facts(product))),
        "wishes": quote_data("seller_wishes", wishes),
    }
    return PaintPrompt(own.fill(**words), f"{own.name}@{own.version}+style@{shared.version}")


def _facts(product: Product) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "title": product.title,
        "brand": product.brand,
        "category": product.category,
        "features": list(product.bullets),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _checklist(product: Product) -> str:
    points = [
        "same silhouette and proportions as in the reference",
        "same colours and materials, part by part",
        "same label, print and marks, letter by letter, or out of view",
        "same number of parts and accessories as in the reference",
    ]
    if product.brand:
        points.append("the brand appears only where the reference shows it on the product")
    return "\n".join(f"- {point}" for point in points)


def _describe_frame(width_px: int, height_px: int) -> str:
    if width_px == height_px:
        return "square"
    return f"{'wide' if width_px > height_px else 'upright'}, {width_px} by {height_px}"
