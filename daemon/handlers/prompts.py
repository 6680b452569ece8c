"""The prompt files of daemon/prompts, and the prompts of painted pictures made from them.

    <name>.md:  "version: N" on the first line, then text with {fields}
    style.md:   shared by all pictures of a listing, put in at {style}

A version also carries the hash of its text and is part of a step's identity: a result that an older prompt
made is never reused for a newer one. A seller's words enter as quoted JSON between markers that they cannot
write, and are never searched for fields again: whatever stands in them stays data.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from daemon.payloads import Product, Style

_FIELD = re.compile(r"\{([a-z_]+)\}")
_HEADER = re.compile(r"version: (\d+)\n+")
_ROLES = {
    "aplus_header": "A wide opening image: the product in a fitting scene, a little right of the middle.",
    "aplus_overlay": "A wide image with the product in its right third; the left two thirds are calm and out "
    "of focus, because words will be laid over them.",
    "aplus_square": "A square image: the product in use or close up, centred.",
    "aplus_tall": "An upright image: the product in a fitting scene, in its lower half.",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """text: what the painter gets; version: of the slot's and of the style's file, for the step's
    identity.
    """

    text: str
    version: str


@functools.cache
def load_template(name: str) -> tuple[str, str]:
    """(text with {fields}, version "N-<12 hex digits>") of daemon/prompts/<name>.md, read once a process.

    Errors: ValueError when the file does not begin with its version.
    """
    content = (resources.files("daemon") / "prompts" / f"{name}.md").read_text("utf-8").strip()
    header = _HEADER.match(content)
    if header is None:
        raise ValueError(f"prompts/{name}.md does not begin with a version line")
    text = content[header.end() :]
    return text, f"{header.group(1)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Put the values in, in one pass: braces inside a value are not looked at.

    Errors: KeyError for a field without a value.
    """
    return _FIELD.sub(lambda found: values[found.group(1)], template)


def paint_prompt(slot: str, product: Product, style: Style, *, width_px: int, height_px: int) -> Prompt:
    """The prompt for one painted picture: a slot of a pack, or a role of an A+ image ("aplus_…")."""
    name = "aplus" if slot.startswith("aplus") else slot
    template, version = load_template(name)
    shared, shared_version = load_template("style")
    facts: dict[str, Any] = {"title": product.title}
    if product.brand:
        facts["brand"] = product.brand
    if product.category:
        facts["category"] = product.category
    if product.bullets:
        facts["features"] = list(product.bullets)
    wishes = {k: v for k, v in style.model_dump(mode="json").items() if v}
    values = {
        "style": fill_template(
            shared, {"fidelity": _checklist(product), "facts": quote("product_facts", facts)}
        ),
        "wishes": quote("seller_wishes", wishes),
        "frame": _describe_frame(width_px, height_px),
        "role": _ROLES.get(slot, "The product in a fitting, calm scene."),
    }
    return Prompt(fill_template(template, values), f"{name}@{version}+style@{shared_version}")


def quote(marker: str, data: object) -> str:
    """Data between <marker> and </marker> as JSON in which no angle bracket can stand."""
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return f"<{marker}>{text}</{marker}>"


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
    shape = "wide" if width_px > height_px else "upright"
    return f"{shape}, {width_px} by {height_px}"
