"""Kind `pack`: the complete set of listing images, one `image` job each.

Run twice:

    first run:  facts are there? -> the shared cut-out, paid once -> one child a slot
    second run: all children have ended -> the list of pictures, or items_failed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from daemon.amazon import rules
from daemon.errors import Reject
from daemon.handlers.context import JobContext
from daemon.handlers.image import cut_out_usable
from daemon.handlers.painting import clean_photo
from daemon.handlers.slots import SLOTS, plan_slots, require_facts
from daemon.handlers.wording import word_picture
from daemon.jobs import Child, ChildJob, FannedOut, State
from daemon.payloads import PackInput, Slot


async def make_pack(ctx: JobContext) -> dict[str, Any] | FannedOut:
    """FannedOut, then {items: [{slot, code, asset_id, state}]} in the order of the slots.

    Errors: Reject facts_missing, facts_refused, text_not_drawable (all before anything is paid),
    cutout_unreliable, items_failed.
    """
    wanted = ctx.input
    assert isinstance(wanted, PackInput)
    slots = plan_slots(wanted.slots, wanted.product)
    if ctx.children is not None:
        return _collect(slots, ctx.children)
    require_facts(slots, wanted.product)
    for slot in slots:
        word_picture(slot, wanted.product)
    ctx.progress(0, len(slots), "cutout")
    cutout = await cut_out_usable(ctx, wanted.photo)
    if any(SLOTS[slot].maker == "painter" for slot in slots):
        await clean_photo(ctx, cutout)  # for all of them, before the threads are busy with drawing
    shared = wanted.model_dump(mode="json", exclude={"slots"})
    return FannedOut([Child("image", slot, {**shared, "slot": slot}) for slot in slots])


def _collect(slots: Sequence[Slot], children: Sequence[ChildJob]) -> dict[str, Any]:
    by_slot = {child.slot: child for child in children}
    ended = [by_slot[slot] for slot in slots if slot in by_slot]
    bad = [child for child in ended if child.state is not State.COMPLETED]
    if bad or len(ended) < len(slots):
        named = ", ".join(
            f"{child.slot} ({(child.error or {}).get('code', child.state.value)})" for child in bad
        )
        raise Reject(
            f"{len(slots) - len(ended) + len(bad)} of {len(slots)} pictures failed: {named}.",
            code="items_failed",
            hint="The finished pictures are kept; a retry makes only what failed.",
            data={"items": [
                {"slot": child.slot, "job_id": str(child.id), "state": child.state.value,
                 "error": dict(child.error) if child.error else None}
                for child in bad
            ]},
        )  # fmt: skip
    return {"items": [
        {"slot": child.slot, "code": rules.code_of(child.slot), "asset_id": child.result["asset_id"],
         "state": child.state.value}
        for child in ended
    ]}  # fmt: skip
