"""Which pictures a pack makes and which facts they need."""

from __future__ import annotations

import pytest

from daemon.amazon import rules
from daemon.errors import Reject
from daemon.handlers.slots import SLOTS, plan_slots, require_facts
from daemon.payloads import PACK_SLOTS, Dimensions, Product

_MUG = Product(title="Mug")


def test_every_slot_of_the_contract_has_a_maker_and_a_code() -> None:
    codes = {rules.code_of(slot) for slot in SLOTS}

    assert set(SLOTS) == {*PACK_SLOTS, "in_the_box"}
    assert len(codes) == len(SLOTS)


def test_main_image_is_never_painted() -> None:
    assert SLOTS["main"].maker == "code"


def test_contents_of_the_box_take_the_place_of_missing_dimensions() -> None:
    product = Product(title="Mug", in_the_box=("Mug",))

    assert plan_slots(PACK_SLOTS, product)[-1] == "in_the_box"


def test_given_dimensions_keep_their_picture() -> None:
    product = Product(title="Mug", in_the_box=("Mug",), dimensions=Dimensions.model_validate({"height": 9}))

    assert plan_slots(PACK_SLOTS, product) == PACK_SLOTS


def test_all_missing_facts_are_named_at_once() -> None:
    with pytest.raises(Reject) as refused:
        require_facts(PACK_SLOTS, _MUG)

    assert refused.value.code == "facts_missing"
    assert refused.value.data["missing"] == [
        {"field": "product.bullets", "slot": "infographic"},
        {"field": "product.dimensions", "slot": "dimensions"},
    ]
    assert "product.in_the_box" in refused.value.hint


def test_pictures_without_words_need_no_facts() -> None:
    require_facts(("main", "angle", "lifestyle", "detail"), _MUG)
