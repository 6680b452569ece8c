"""Typography and the drawings that carry words and measures."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from PIL import Image

from daemon.errors import Reject
from daemon.imaging import dimensions, drawings, typeset
from daemon.imaging.dimensions import Measures, assign, label
from daemon.imaging.typeset import Typesetter, Weight
from tests.work.products import draw_product

SIDE = 800


def _sheet(
    items: tuple[str, ...], *, title: str = "Stoneware mug", overline: str = "Verdana", wide: bool = False
) -> drawings.Drawing:
    product = draw_product(500, 160) if wide else draw_product()
    backdrop = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))
    return drawings.draw_sheet(product, backdrop, title=title, items=items, overline=overline)


def _overlap(one: drawings.Box, other: drawings.Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_lines_stay_within_their_width() -> None:
    type_ = Typesetter()

    lines = type_.wrap("The quick brown fox jumps over the lazy dog", Weight.REGULAR, 30, 240)

    assert lines is not None
    assert len(lines) > 1
    assert all(type_.width(line, Weight.REGULAR, 30) <= 240 for line in lines)
    assert " ".join(lines) == "The quick brown fox jumps over the lazy dog"


def test_word_wider_than_the_box_does_not_fit() -> None:
    fitted = Typesetter().fit(
        "Donaudampfschifffahrt", Weight.BOLD, width_px=60, height_px=90, max_px=30, min_px=20
    )

    assert fitted is None


@pytest.mark.parametrize(
    "text", ["Größe für Öl, 20 \u00d7 30 cm", "Ελληνικά", "Чашка для чая", "½ l \u2013 №5 “x”", "Żółć ğ ș"]
)
def test_latin_greek_and_cyrillic_can_be_drawn(text: str) -> None:
    assert typeset.find_undrawable(text) == ""


@pytest.mark.parametrize(("text", "missing"), [("Tea 茶", "茶"), ("Good ✅", "✅"), ("شاي", "شاي")])
def test_characters_without_a_glyph_are_named(text: str, missing: str) -> None:
    """Boxes on a listing image would be delivered otherwise."""
    with pytest.raises(Reject) as refused:
        typeset.require_drawable([("product.title", text)])

    assert refused.value.code == "text_not_drawable"
    assert refused.value.data == {"field": "product.title", "characters": missing}


def test_invisible_format_characters_are_dropped() -> None:
    assert typeset.tidy("a\u200bb \u202e c\n d") == "ab c d"


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_words_and_product_never_overlap(count: int, wide: bool) -> None:
    items = tuple(f"Quality number {i}: a few more words about it" for i in range(count))

    drawing = _sheet(items, wide=wide)

    assert drawing.left_out == ()
    assert len(drawing.drawn) == 2 + count
    assert not any(_overlap(box, drawing.product_box) for box in drawing.text_boxes)
    assert not _overlap(*drawing.text_boxes)
    margin = round(0.05 * SIDE)
    for left, top, right, bottom in (*drawing.text_boxes, drawing.product_box):
        assert min(left, top) >= margin - 1
        assert max(right, bottom) <= SIDE - margin + 1


def test_type_stays_legible() -> None:
    drawing = _sheet(tuple("Word " * 30 for _ in range(6)))

    assert min(drawing.type_px) >= 0.0165 * SIDE


@pytest.mark.parametrize("wide", [False, True])
def test_a_heading_without_words_leaves_no_rule_behind(wide: bool) -> None:
    """A title of one endless word was left out, and a rule stood alone above the list."""
    drawing = _sheet(("Short and good",), wide=wide, title="W" * 120, overline="")

    assert drawing.left_out == ("W" * 120,)
    assert 1 == len(drawing.text_boxes)


def test_the_title_is_never_smaller_than_the_facts_below_it() -> None:
    """A title of a search engine's words stood in small type over heads twice as large."""
    items = tuple(f"Feature {n}: " + "more words " * 12 for n in range(6))

    drawing = _sheet(items, title="A title that goes on " * 9)

    _, title_px, *items_px = drawing.type_px
    assert title_px >= max(items_px)


@pytest.mark.parametrize("count", [2, 5])
def test_list_marks_are_round(count: int) -> None:
    """Drawn at parts of pixels they came out as eggs, each of another shape."""
    items = tuple(f"Quality number {n}: a few more words about it" for n in range(count))
    drawing = _sheet(items)

    left, top, _, bottom = drawing.text_boxes[1]
    strip = np.asarray(drawing.picture.convert("L"))[top:bottom, left - 1 : left + 15] < 180
    marked = np.flatnonzero(strip.any(axis=1))
    marks = [
        strip[rows[0] : rows[-1] + 1] for rows in np.split(marked, np.flatnonzero(np.diff(marked) > 1) + 1)
    ]
    trimmed = [mark[:, mark.any(axis=0)] for mark in marks]

    assert count == len(trimmed)
    assert all(np.array_equal(mark, mark.T) and np.array_equal(mark, mark[::-1]) for mark in trimmed)


def test_what_finds_no_room_is_named_whole() -> None:
    items = ("Short and good", "Long " * 80)

    drawing = _sheet(items)

    assert drawing.left_out == (items[1],)
    assert "Short and good" in drawing.drawn
    assert not any("…" in text for text in drawing.drawn)


@pytest.mark.parametrize("wide", [False, True])
def test_running_text_that_finds_no_room_is_named(wide: bool) -> None:
    """The heads alone stood on the picture, and nobody was told that half of the facts are missing."""
    bodies = [f"{number} " + "more words " * 40 for number in range(3)]
    items = ("Short: and good", *(f"Head {number}: {body}" for number, body in enumerate(bodies)))

    drawing = _sheet(items, wide=wide)

    assert drawing.left_out == tuple(map(typeset.tidy, bodies))
    assert drawing.drawn[2:] == ("Short: And good", "Head 0", "Head 1", "Head 2")


def test_running_text_is_kept_for_as_many_facts_as_have_room() -> None:
    """When not all of it found room, all of it was dropped, and half of the picture stood empty."""
    body = "Words that say at some length what it is good for, at home and on the way, in rain and in shine"
    items = tuple(f"Feature number {n}: {body}" for n in range(6))

    drawing = _sheet(items, title="A title that goes on " * 9)

    kept = 6 - len(drawing.left_out)
    assert 0 < kept < 6
    assert drawing.drawn[2:] == (*items[:kept], *(item.split(":")[0] for item in items[kept:]))


def test_words_that_fit_in_smaller_type_are_not_given_up_for_larger() -> None:
    """The running text was dropped beside an empty half of the picture, and a long word told to find no room."""
    items = (
        "Generous size: holds 350 ml and then some more of all that is poured into it on a cold day",
        "Donaudampfschifffahrtskapitän",
        "Double walls of steel keep tea hot for half a day and water cold for a whole one, wherever you go with it",
    )

    drawing = _sheet(items)

    assert drawing.left_out == ()
    assert drawing.drawn[2].startswith("Generous size: Holds 350 ml")
    assert drawing.drawn[3:] == items[1:]


def test_a_slender_product_leaves_its_room_to_larger_type() -> None:
    backdrop = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))
    items = tuple(
        f"Feature {i}: words that say at some length what it is good for, at home and on the way"
        for i in range(5)
    )

    slender, stout = (
        drawings.draw_sheet(draw_product(width, 400), backdrop, title="A title", items=items)
        for width in (90, 400)
    )

    assert min(slender.type_px) > min(stout.type_px)
    assert slender.text_boxes[0][0] > slender.product_box[2]


def test_items_past_the_sixth_are_named() -> None:
    items = tuple(f"Fact {i}" for i in range(8))

    assert _sheet(items).left_out == items[6:]


def test_fact_is_split_at_its_first_short_head() -> None:
    assert drawings.split_fact("Made to last: thick walls") == ("Made to last", "Thick walls")
    assert drawings.split_fact("No head here") == ("", "No head here")
    assert drawings.split_fact("Fits: iPhone 15") == ("Fits", "iPhone 15")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [("24", "cm", "24 cm / 9.4 in"), ("9.50", "in", "9.5 in / 24.1 cm"), ("1.2", "m", "1.2 m / 3.9 ft"),
     ("5", "mm", "5 mm / 0.2 in"), ("300", "cm", "300 cm / 118 in"), ("1E+2", "cm", "100 cm / 39.4 in"),
     ("0.1", "mm", "0.1 mm / 0.0039 in"), ("0.01", "in", "0.01 in / 0.025 cm")],
)  # fmt: skip
def test_measures_stand_in_both_systems(value: str, unit: str, expected: str) -> None:
    assert label(Decimal(value), unit) == expected


def test_the_measure_that_suits_the_silhouette_lies_along_the_foot() -> None:
    measures = Measures(Decimal(30), Decimal(10), Decimal(20), "cm")

    assert assign(measures, aspect=0.5) == (Decimal(10), Decimal(20), Decimal(30))
    assert assign(measures, aspect=1.5) == (Decimal(30), Decimal(20), Decimal(10))


def test_the_height_of_a_flat_thing_seen_from_above_is_no_depth() -> None:
    """A board's silhouette is 44 % as tall as wide, its height is 6 % of its length: what is seen is its top."""
    measures = Measures(Decimal(28), Decimal(40), Decimal("2.5"), "cm")

    assert assign(measures, aspect=2.26) == (Decimal(40), Decimal("2.5"), Decimal(28))


@pytest.mark.parametrize(
    "size", [(40, 700), (120, 600), (700, 120), (400, 380)], ids=["needle", "tall", "wide", "square"]
)
@pytest.mark.parametrize("depth", [None, Decimal(12)])
def test_product_and_labels_stand_in_the_middle_together(
    size: tuple[int, int], depth: Decimal | None
) -> None:
    backdrop = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))
    measures = Measures(depth, Decimal(size[0]), Decimal(size[1]), "mm")

    drawing = dimensions.draw_dimensions(draw_product(*size), backdrop, measures)

    boxes = (*drawing.label_boxes, drawing.product_box)
    assert not any(_overlap(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    left, right = min(box[0] for box in boxes), max(box[2] for box in boxes)
    assert abs(left + right - SIDE) < 0.06 * SIDE
    product = drawing.product_box
    assert max(product[2] - product[0], product[3] - product[1]) > 0.5 * SIDE


@pytest.mark.parametrize(
    ("length", "width", "height", "count"),
    [
        (Decimal(12), Decimal(9), Decimal("10.25"), 3),
        (Decimal(12), None, None, 1),
        (None, None, Decimal(10), 1),
        (Decimal(12), Decimal(9), None, 2),
    ],
)
def test_only_given_measures_are_drawn_and_none_touches_another(
    length: Decimal | None, width: Decimal | None, height: Decimal | None, count: int
) -> None:
    backdrop = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))

    drawing = dimensions.draw_dimensions(draw_product(), backdrop, Measures(length, width, height, "cm"))

    boxes = drawing.label_boxes
    assert len(drawing.labels) == count
    assert not any(_overlap(box, drawing.product_box) for box in boxes)
    assert not any(_overlap(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(box[0] >= 0.02 * SIDE and box[2] <= 0.98 * SIDE and box[3] <= 0.98 * SIDE for box in boxes)


def test_all_measures_of_a_picture_are_set_in_one_size() -> None:
    """Beside "1234.56 mm" in small type "0.4 mm" stood in large, as if it were the one that counts."""
    backdrop = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))
    measures = Measures(Decimal("1234.56"), Decimal("0.4"), Decimal(12), "mm")

    drawing = dimensions.draw_dimensions(draw_product(), backdrop, measures)

    heights = [bottom - top for _, top, _, bottom in drawing.label_boxes]
    assert max(heights) - min(heights) <= 1  # places are rounded to pixels
