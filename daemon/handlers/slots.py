"""The pictures of a pack as data: who makes each one and which of the seller's facts it needs. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from daemon.errors import Reject
from daemon.payloads import Product, Slot

Maker = Literal["code", "painter"]
Fact = Literal["bullets", "dimensions", "in_the_box"]


@dataclass(frozen=True, slots=True)
class SlotSpec:
    """maker: "painter" asks the configured PaintProvider, "code" never does; needs: the fact without which
    the picture would have nothing to show.
    """

    slot: Slot
    maker: Maker
    needs: Fact | None = None


SLOTS: dict[Slot, SlotSpec] = {
    spec.slot: spec
    for spec in (
        SlotSpec("main", "code"),
        SlotSpec("angle", "painter"),
        SlotSpec("lifestyle", "painter"),
        SlotSpec("infographic", "painter", "bullets"),
        SlotSpec("detail", "code"),
        SlotSpec("dimensions", "code", "dimensions"),
        SlotSpec("in_the_box", "code", "in_the_box"),
    )
}
"""Slot -> how it is made. Every slot starts from the one cut-out of the listing's photo."""

_WHAT = {
    "bullets": "product.bullets (what the infographic says)",
    "dimensions": "product.dimensions (what the dimensions picture measures)",
    "in_the_box": "product.in_the_box (what the box holds)",
}


def plan_slots(slots: Sequence[Slot], product: Product) -> tuple[Slot, ...]:
    """The slots that will be made: without dimensions the contents of the box take that picture's place."""
    if product.dimensions is None and product.in_the_box and "in_the_box" not in slots:
        return tuple("in_the_box" if slot == "dimensions" else slot for slot in slots)
    return tuple(slots)


def require_facts(slots: Sequence[Slot], product: Product) -> None:
    """Refuse before any work when facts are missing, all of them at once.

    Errors: Reject facts_missing; data["missing"] names the fields and the slots that need them.
    """
    missing = {
        need: slot for slot in slots if (need := SLOTS[slot].needs) is not None and not getattr(product, need)
    }
    if not missing:
        return
    fields = ", ".join(_WHAT[need] for need in missing)
    without = " or ".join(missing.values())
    other = " product.in_the_box can take the place of the dimensions." if "dimensions" in missing else ""
    raise Reject(
        f"The pictures need facts that are not given: {fields}.",
        code="facts_missing",
        hint=f"Send them, or ask for a pack without {without} in slots.{other}",
        data={"missing": [{"field": f"product.{need}", "slot": slot} for need, slot in missing.items()]},
    )
