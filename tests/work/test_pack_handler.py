"""Kind `pack`: what it checks before anything is paid, what it spawns, how it ends."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.errors import Reject
from daemon.handlers import HANDLERS
from daemon.handlers.context import Providers
from daemon.handlers.slots import SLOTS
from daemon.jobs import ChildJob, FannedOut, State, new_id
from daemon.payloads import PACK_SLOTS, ImageInput, PackInput, Product
from daemon.providers.offline_cutout import OfflineCutout
from daemon.providers.offline_paint import OfflinePaint
from daemon.providers.offline_text import OfflineText
from tests.work.fake_context import FakeContext, World
from tests.work.products import FACTS, photo


def _context(photo_px: tuple[int, int] = (300, 360), **more: Any) -> FakeContext:
    world = World()
    wanted = PackInput.model_validate(
        {"photo": world.add_photo(photo(*photo_px)), "product": FACTS, "size_px": 1000, **more}
    )
    providers = Providers(OfflineCutout(), OfflinePaint(), OfflineText())
    return FakeContext(input=wanted, providers=providers, world=world, kind="pack")


async def _fan_out(ctx: FakeContext) -> FannedOut:
    outcome = await HANDLERS["pack"](ctx)
    assert isinstance(outcome, FannedOut)
    return outcome


def _ended(slot: str, state: State = State.COMPLETED, code: str | None = None) -> ChildJob:
    result = {"asset_id": str(new_id())} if state is State.COMPLETED else None
    return ChildJob(new_id(), slot, state, result, {"code": code} if code else None)


async def test_first_run_cuts_out_once_and_spawns_a_child_a_slot() -> None:
    ctx = _context()

    outcome = await _fan_out(ctx)

    assert [child.slot for child in outcome.children] == list(PACK_SLOTS)
    assert {child.kind for child in outcome.children} == {"image"}
    assert ctx.world.calls == ["cutout"]


async def test_childrens_inputs_are_valid_and_share_the_cutout() -> None:
    ctx = _context(style={"palette": ["#336699"]}, photos=[])
    outcome = await _fan_out(ctx)

    for child in outcome.children[:1]:
        wanted = ImageInput.model_validate(child.input)
        await HANDLERS["image"](FakeContext(input=wanted, providers=ctx.providers, world=ctx.world))

    assert ctx.world.calls == ["cutout"]
    assert wanted.style.palette == ("#336699",)


async def test_painted_pictures_of_a_pack_call_at_once() -> None:
    """A pack lasts as long as its slowest picture: no pixel work may stand between the cut-out and the calls."""
    ctx = _context(photo_px=(310, 350))
    outcome = await _fan_out(ctx)
    assert ["cutout", "first", "first"] == ctx.world.calls_and_pixels

    for child in outcome.children:
        if SLOTS[child.slot].maker == "code":
            continue
        ctx.world.calls_and_pixels.clear()
        wanted = ImageInput.model_validate(child.input)
        await HANDLERS["image"](FakeContext(input=wanted, providers=ctx.providers, world=ctx.world))

        assert [f"paint:{child.slot}", "pixels", "pixels"] == ctx.world.calls_and_pixels


async def test_missing_facts_stop_the_pack_before_anything_is_paid() -> None:
    ctx = _context(product=Product(title="Mug"))

    with pytest.raises(Reject) as refused:
        await HANDLERS["pack"](ctx)

    assert refused.value.code == "facts_missing"
    assert [m["field"] for m in refused.value.data["missing"]] == ["product.bullets", "product.dimensions"]
    assert ctx.world.calls == []


async def test_words_that_cannot_be_lettered_stop_the_pack_before_anything_is_paid() -> None:
    ctx = _context(product=FACTS.model_copy(update={"title": "Mug 茶"}))

    with pytest.raises(Reject) as refused:
        await HANDLERS["pack"](ctx)

    assert refused.value.code == "text_not_drawable"
    assert ctx.world.calls == []


async def test_pack_without_dimensions_shows_the_box() -> None:
    ctx = _context(product=FACTS.model_copy(update={"dimensions": None}))

    outcome = await _fan_out(ctx)

    assert outcome.children[-1].slot == "in_the_box"


async def test_second_run_lists_the_pictures_in_order() -> None:
    ctx = _context()
    ctx.children = [_ended(slot) for slot in reversed(PACK_SLOTS)]

    result = await HANDLERS["pack"](ctx)
    assert isinstance(result, dict)

    assert [item["slot"] for item in result["items"]] == list(PACK_SLOTS)
    assert [item["code"] for item in result["items"]] == ["MAIN", "PT01", "PT02", "PT03", "PT04", "PT05"]
    assert {item["state"] for item in result["items"]} == {"completed"}
    assert ctx.world.calls == []


async def test_failed_items_fail_the_pack_and_are_named() -> None:
    ctx = _context()
    ctx.children = [
        *(_ended(slot) for slot in PACK_SLOTS[:4]),
        _ended("detail", State.FAILED, "check_failed"),
        _ended("dimensions", State.CANCELLED),
    ]

    with pytest.raises(Reject) as refused:
        await HANDLERS["pack"](ctx)

    assert refused.value.code == "items_failed"
    assert "2 of 6" in refused.value.message
    assert "detail (check_failed)" in refused.value.message
    assert [item["slot"] for item in refused.value.data["items"]] == ["detail", "dimensions"]
