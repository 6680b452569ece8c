"""Pictures with the seller's words: the infographic and the contents of the box.

    facts -> blocks of type -> plan (where everything stands) -> drawing

Every word is the seller's own and drawn by code; nothing is shortened with an ellipsis. What finds no room
at a legible size, an item or the running text of one, is left out as a whole and named in `Drawing.left_out`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from daemon.imaging.colours import Palette, palette_of
from daemon.imaging.compose import Placed, alpha_on_canvas, place, shade, trim
from daemon.imaging.shadows import shade_ground
from daemon.imaging.typeset import Block, Typesetter, Weight, tidy

Box = tuple[int, int, int, int]  # left, top, right, bottom in px

MAX_CALLOUTS = 6
MAX_BOX_ITEMS = 12
# A phone shows the picture about 400 px wide: 1.7 % of the side is 7 px there, the least that can be read.
_MIN_TEXT = 0.0170
_MARGIN = 0.065
_COLUMN_X = 0.545  # where the words begin beside an upright product
_LEAST_COLUMN_X = 0.42  # and beside a slender one: the room it leaves makes the type larger
_UNDER_HEADING = 0.062
_HEAD_SIZES = (0.044, 0.039, 0.034, 0.031, 0.028, 0.0255, 0.023, 0.021)
_SEPARATORS = (": ", " \u2013 ", " \u2014 ", " - ")


@dataclass(frozen=True, slots=True)
class Drawing:
    """picture: RGB square; drawn: the texts that stand on it, as drawn; left_out: texts that found no room;
    text_boxes: heading and list; product_box: never overlaps them; type_px: the size of each text's type, in order.
    """

    picture: Image.Image
    drawn: tuple[str, ...]
    left_out: tuple[str, ...]
    text_boxes: tuple[Box, ...]
    product_box: Box
    type_px: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Item:
    """One fact: a head in bold with running text under it, or one text of middle weight.

    text: as drawn; left_out: the running text that found no room, or "".
    """

    head: Block
    body: Block | None
    text: str
    left_out: str

    @property
    def gap_px(self) -> int:
        return round(self.head.size_px * 0.18)

    @property
    def height_px(self) -> int:
        return self.head.height_px + (self.body.height_px + self.gap_px if self.body else 0)


@dataclass(frozen=True, slots=True)
class _Heading:
    overline: Block | None
    title: Block | None
    gap_px: int

    @property
    def height_px(self) -> int:
        over = self.overline.height_px + self.gap_px if self.overline else 0
        return over + (self.title.height_px if self.title else 0)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where everything stands, px."""

    heading_x: float
    heading_y: float
    text_width: int
    items: tuple[tuple[_Item, float, float], ...]
    placed: Placed
    missed: tuple[str, ...]


def draw_sheet(
    cutout: Image.Image,
    backdrop: Image.Image,
    *,
    title: str,
    items: Sequence[str],
    overline: str = "",
    numbered: bool = False,
    max_items: int = MAX_CALLOUTS,
    wishes: tuple[str, ...] = (),
) -> Drawing:
    """The product large on one side, the title and a list of facts on the other.

    An upright product stands left of the list, a broad one above it. A list that does not fit loses its
    running text first ("Head: more words" keeps its head), from the last item on, then its last items.

    Shapes: cutout RGBA; backdrop RGB square, whose side is the picture's.
    """
    sheet = _Sheet(backdrop.width, trim(cutout), numbered=numbered)
    is_broad = sheet.product.width > 1.45 * sheet.product.height
    layout = sheet.plan_broad if is_broad else sheet.plan_upright
    heading, plan = layout(title, overline, items[:max_items])
    palette = palette_of(sheet.product, wishes)
    # The shadow falls away from the words.
    canvas = _stand(backdrop, plan.placed, light_from_left=is_broad)
    boxes = sheet.draw(canvas, heading, plan, palette)

    blocks = [b for b in (heading.overline, heading.title) if b]
    blocks += [b for item, _, _ in plan.items for b in (item.head, item.body) if b]
    drawn = [t for t, block in ((overline, heading.overline), (title, heading.title)) if block]
    unset = [t for t, block in ((overline, heading.overline), (title, heading.title)) if t and not block]
    bodies = [item.left_out for item, _, _ in plan.items if item.left_out]
    return Drawing(
        picture=canvas,
        drawn=(*drawn, *(item.text for item, _, _ in plan.items)),
        left_out=(*unset, *bodies, *plan.missed, *items[max_items:]),
        text_boxes=boxes,
        product_box=(plan.placed.x, plan.placed.y, plan.placed.right, plan.placed.bottom),
        type_px=tuple(block.size_px for block in blocks),
    )


def split_fact(text: str) -> tuple[str, str]:
    """("Head", "More words") of "Head: more words"; ("", text) when it has no short head."""
    text = tidy(text)
    found = [(at, mark) for mark in _SEPARATORS if 2 < (at := text.find(mark)) <= 48]
    if not found:
        return "", text
    at, mark = min(found)
    head, body = text[:at].strip(), text[at + len(mark) :].strip()
    first = body.split(" ", 1)[0]
    return head, body[:1].upper() + body[1:] if first.islower() else body


class _Sheet:
    """Sets and places the words of one picture. All lengths are shares of its side until they are px."""

    def __init__(self, side: int, product: Image.Image, *, numbered: bool) -> None:
        self.side = side
        self.product = product
        self.numbered = numbered
        self.type_ = Typesetter()
        self._tried: dict[tuple[str, float, bool], _Item | None] = {}
        self.margin = round(_MARGIN * side)
        self.indent = round((0.055 if numbered else 0.030) * side)

    def plan_upright(self, title: str, overline: str, items: Sequence[str]) -> tuple[_Heading, _Plan]:
        """Product left, words in a column on the right, centred on the height."""
        side = self.side
        slender = 1.6 * self.margin / side + 0.80 * self.product.width / self.product.height + 0.07
        x = round(min(_COLUMN_X, max(_LEAST_COLUMN_X, slender)) * side)
        width = side - self.margin - x
        heading = self._set_heading(title, overline, width, (0.24 if len(items) <= 3 else 0.17) * side)
        above = heading.height_px + round(_UNDER_HEADING * side) if heading.height_px else 0
        room = side - 2 * self.margin - above
        chosen, missed = self._set_items(items, width - self.indent, room, heading)
        free = room - sum(item.height_px for item in chosen)
        gap = min(0.055 * side, free / max(1, len(chosen)))
        total = above + sum(item.height_px for item in chosen) + gap * max(0, len(chosen) - 1)
        top = (side - total) / 2
        y, placed_items = top + above, []
        for item in chosen:
            placed_items.append((item, float(x), y))
            y += item.height_px + gap
        free_w = x - self.margin * 1.6
        placed = place(self.product, centre_x=self.margin * 0.8 + free_w / 2, centre_y=side / 2, width_px=free_w,
                       height_px=0.80 * side)  # fmt: skip
        return heading, _Plan(x, top, width, tuple(placed_items), placed, missed)

    def plan_broad(self, title: str, overline: str, items: Sequence[str]) -> tuple[_Heading, _Plan]:
        """Words of the heading on top, the broad product under it, the facts in two columns at the foot."""
        side = self.side
        inner = side - 2 * self.margin
        gutter, row_gap = round(0.05 * side), 0.032 * side
        column = (inner - gutter) // 2
        heading = self._set_heading(title, overline, inner, 0.125 * side)
        chosen, missed = self._set_items(items, column - self.indent, 0.36 * side, heading, columns=2)
        heights = _row_heights(chosen, 2)
        list_h = sum(heights) + row_gap * max(0, len(heights) - 1)
        y, placed_items = side - self.margin - list_h, []
        list_top = y
        for row, height in enumerate(heights):
            for i, item in enumerate(chosen[2 * row : 2 * row + 2]):
                placed_items.append((item, float(self.margin + i * (column + gutter)), y))
            y += height + row_gap
        box_top = self.margin + heading.height_px + 0.045 * side
        placed = place(self.product, centre_x=side / 2, centre_y=(box_top + list_top) / 2 - 0.01 * side,
                       width_px=0.86 * side, height_px=list_top - box_top - 0.06 * side)  # fmt: skip
        return heading, _Plan(self.margin, self.margin, inner, tuple(placed_items), placed, missed)

    def draw(self, canvas: Image.Image, heading: _Heading, plan: _Plan, palette: Palette) -> tuple[Box, ...]:
        """Draw all words; the boxes of the heading and of the list."""
        pen = ImageDraw.Draw(canvas)
        x, y = plan.heading_x, plan.heading_y
        if heading.overline:
            self.type_.draw(pen, heading.overline, x, y, palette.accent)
            y += heading.overline.height_px + heading.gap_px
        if heading.title:
            self.type_.draw(pen, heading.title, x, y, palette.ink)
            y += heading.title.height_px
        boxes: list[Box] = []
        if heading.height_px:
            rule_y = round(y + 0.02 * self.side)
            rule_end = round(rule_y + max(2, 0.0035 * self.side))
            pen.rectangle((round(x), rule_y, round(x + 0.075 * self.side), rule_end), palette.accent)
            boxes.append((round(x), round(plan.heading_y), round(x + plan.text_width), rule_end))
        for number, (item, item_x, item_y) in enumerate(plan.items, 1):
            self._draw_item(pen, item, item_x, item_y, palette, number)
        if plan.items:
            first_x, first_y = min(i[1] for i in plan.items), min(i[2] for i in plan.items)
            last_y = max(i[2] + i[0].height_px for i in plan.items)
            boxes.append((round(first_x), round(first_y), round(first_x + plan.text_width), round(last_y)))
        return tuple(boxes)

    def _set_heading(self, title: str, overline: str, width: float, height: float) -> _Heading:
        side = self.side
        over = self.type_.fit(overline, Weight.MEDIUM, width_px=width, height_px=0.05 * side,
                              max_px=round(0.025 * side), min_px=round(_MIN_TEXT * side), max_lines=1)  # fmt: skip
        main = self.type_.fit(title, Weight.BOLD, width_px=width, height_px=height, max_px=round(0.058 * side),
                              min_px=round(0.022 * side), max_lines=6, leading=1.14)  # fmt: skip
        return _Heading(over, main, round(0.006 * side))

    def _set_items(
        self, items: Sequence[str], width: float, room: float, heading: _Heading, columns: int = 1
    ) -> tuple[list[_Item], tuple[str, ...]]:
        """As many items as fit the room, each whole, with as many running texts as fit then, the type as large as
        that allows but no larger than the title; and the items left out.
        """
        largest = heading.title.size_px if heading.title else self.side
        *larger, smallest = _HEAD_SIZES
        sizes = (*(size for size in larger if round(size * self.side) <= largest), smallest)
        best: tuple[tuple[int, int], list[_Item], tuple[str, ...]] = (0, 0), [], tuple(items)
        everything = len(items), sum(split_fact(text)[0] != "" for text in items)
        for count in range(len(items), 0, -1):
            for bodies in range(count, -1, -1):
                for size in sizes:
                    if best[0] == everything or best[0] >= (count, bodies):
                        break
                    chosen, missed = self._set_all(items[:count], width, size, bodies=bodies)
                    heights = _row_heights(chosen, columns)
                    needed = sum(heights) + 0.026 * self.side * max(0, len(heights) - 1)
                    kept = len(chosen), sum(item.body is not None for item in chosen)
                    if needed <= room and kept > best[0]:
                        best = kept, chosen, (*missed, *items[count:])
        return best[1], best[2]

    def _set_all(
        self, items: Sequence[str], width: float, size: float, *, bodies: int
    ) -> tuple[list[_Item], tuple[str, ...]]:
        """All items at one size, the first of them (`bodies`) with their running text; those that cannot be set so
        are missed.
        """
        tried = [
            (text, self._set_item(text, width, size, with_body=number < bodies))
            for number, text in enumerate(items)
        ]
        return [item for _, item in tried if item], tuple(text for text, item in tried if not item)

    def _set_item(self, text: str, width: float, size: float, *, with_body: bool) -> _Item | None:
        """One item at this size, a few lines a part; None when it needs more."""
        key = (text, size, with_body)
        if key not in self._tried:
            size_px, small_px = round(size * self.side), round(max(_MIN_TEXT, size * 0.84) * self.side)
            head, body = split_fact(text)
            main = self.type_.fit(
                head or body, Weight.BOLD if head else Weight.MEDIUM, width_px=width, height_px=self.side,
                max_px=size_px, min_px=size_px, max_lines=2 if head else 6, leading=1.22,
            )  # fmt: skip
            more = None
            if head and with_body:
                more = self.type_.fit(body, Weight.REGULAR, width_px=width, height_px=self.side,
                                      max_px=small_px, min_px=small_px, max_lines=4, leading=1.34)  # fmt: skip
            shown = f"{head}: {body}" if more else (head or body)
            left_out = body if head and not more else ""
            self._tried[key] = _Item(main, more, shown, left_out) if main else None
        return self._tried[key]

    def _draw_item(
        self, pen: ImageDraw.ImageDraw, item: _Item, x: float, y: float, palette: Palette, number: int
    ) -> None:
        if self.numbered:
            mark = Block((str(number),), Weight.BOLD, item.head.size_px, item.head.line_px, self.indent)
            self.type_.draw(pen, mark, x, y, palette.accent)
        else:
            # At whole pixels: PIL smooths nothing, and parts of pixels make eggs of discs.
            wide = max(4, round(0.0104 * self.side))
            left, top = round(x), round(y + (item.head.line_px - wide) / 2)
            pen.ellipse((left, top, left + wide, top + wide), palette.accent)
        self.type_.draw(pen, item.head, x + self.indent, y, palette.ink)
        if item.body:
            below = y + item.head.height_px + item.gap_px
            self.type_.draw(pen, item.body, x + self.indent, below, palette.muted)


def _row_heights(items: Sequence[_Item], columns: int) -> list[int]:
    return [max(item.height_px for item in items[i : i + columns]) for i in range(0, len(items), columns)]


def _stand(backdrop: Image.Image, placed: Placed, *, light_from_left: bool) -> Image.Image:
    """The product on the backdrop with a soft shadow at its foot."""
    alpha = alpha_on_canvas(placed, backdrop.width, backdrop.height)
    contact, cast = shade_ground(alpha, light_from_left=light_from_left, reach=0.40, rise=0.10)
    canvas = shade(backdrop, 1 - 0.50 * contact - 0.22 * cast * (1 - contact))
    canvas.paste(placed.product, (placed.x, placed.y), placed.product)
    return canvas
