"""The picture with measures: dimension lines around the product, in both systems of units.

Only measures that the seller gave are drawn. The upright line is the height; of length and width the one
that suits the product's silhouette lies along its foot and the other runs into the depth. Product and labels
are centred together, as large as their frame allows. Of something flat seen from above the upright line is
as short as the height is: the silhouette shows its depth there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from PIL import Image, ImageDraw

from daemon.imaging.colours import Palette, palette_of
from daemon.imaging.compose import Placed, alpha_on_canvas, place, shade, trim
from daemon.imaging.shadows import shade_ground
from daemon.imaging.typeset import Align, Block, Typesetter, Weight

_MM = {"mm": Decimal(1), "cm": Decimal(10), "m": Decimal(1000), "in": Decimal("25.4"), "ft": Decimal("304.8")}
_OTHER = {"mm": "in", "cm": "in", "m": "ft", "in": "cm", "ft": "cm"}
_FROM_ABOVE = 1.8  # so much taller than its measures say: the silhouette shows the top of a flat thing
_MARGIN = 0.05  # all lengths below are shares of the picture's side
_GAP = 0.034  # between the product and its lines
_LABEL_GAP = 0.018
_LABEL_PX, _LEAST_LABEL_PX = 0.042, 0.024
_DEPTH_ANGLE_DEG = -34
_SCALE = 2  # lines are drawn twice as large and averaged: PIL's lines and polygons are not smoothed


@dataclass(frozen=True, slots=True)
class Measures:
    """Outer measures in `unit` (mm, cm, m, in, ft); None where the seller gave none."""

    length: Decimal | None
    width: Decimal | None
    height: Decimal | None
    unit: str


@dataclass(frozen=True, slots=True)
class DimensionDrawing:
    """picture: RGB square; labels: the texts drawn; boxes of the labels and of the product (px)."""

    picture: Image.Image
    labels: tuple[str, ...]
    label_boxes: tuple[tuple[int, int, int, int], ...]
    product_box: tuple[int, int, int, int]


def label(value: Decimal, unit: str) -> str:
    """A measure in the seller's unit and in the other system: "24 cm / 9.4 in"."""
    other = _OTHER[unit]
    converted = value * _MM[unit] / _MM[other]
    return f"{_plain(value)} {unit} / {_plain(_round(converted))} {other}"


def assign(measures: Measures, aspect: float) -> tuple[Decimal | None, Decimal | None, Decimal | None]:
    """(along the foot, upright, into the depth). aspect: width over height of the product's silhouette.

    With all three given, the one of length and width whose ratio to the height is nearer to the silhouette
    lies along the foot; without a height, or with one too small to be seen from the front, it is the longer.
    """
    flat = [v for v in (measures.length, measures.width) if v is not None]
    if len(flat) < 2:
        return (flat[0] if flat else None), measures.height, None
    first, second = flat
    if measures.height is not None:
        upright = float(measures.height)
        near = min(flat, key=lambda v: abs(math.log(float(v) / upright / aspect)))
        if _is_from_above(near, measures.height, aspect):
            near = max(flat)
    else:
        near = max(flat)
    return near, measures.height, second if near == first else first


def draw_dimensions(
    cutout: Image.Image, backdrop: Image.Image, measures: Measures, *, wishes: tuple[str, ...] = ()
) -> DimensionDrawing:
    """The product with a dimension line for each measure given.

    Shapes: cutout RGBA; backdrop RGB square, whose side is the picture's.
    """
    side = backdrop.width
    product = trim(cutout)
    aspect = product.width / product.height
    foot, upright, depth = assign(measures, aspect)
    plan = _Lines(side, palette_of(product, wishes))
    labels = plan.set_labels({
        name: label(value, measures.unit) for name, value in
        (("foot", foot), ("upright", upright), ("depth", depth)) if value is not None
    })  # fmt: skip
    margin, gap = _MARGIN * side, _GAP * side
    # Columns beside the product: the upright line at the right, or at the left when the depth needs that side.
    column = gap + _LABEL_GAP * side + labels["upright"].width_px if upright is not None else 0
    slant = plan.depth_length(depth, foot) if depth is not None else 0
    across = slant * math.cos(math.radians(_DEPTH_ANGLE_DEG))
    right = 0.6 * gap + max(across, 0.3 * across + labels["depth"].width_px) if depth is not None else 0
    below = 1.25 * gap + 0.016 * side + labels["foot"].height_px if foot is not None else 0
    left = column if depth is not None else 0
    right = right if depth is not None else column
    placed = place(
        product, centre_x=0, centre_y=0, width_px=side - 2 * margin - left - right,
        height_px=min(0.76 * side, side - 2 * margin - below),
    )  # fmt: skip
    wide, tall = placed.product.size
    x, y = (side - left - wide - right) / 2 + left, (side - tall - below) / 2
    placed = Placed(placed.product, round(x), round(y))
    canvas = _stand(backdrop, placed)
    plan.placed = placed
    if upright is not None:
        is_flat = foot is not None and _is_from_above(foot, upright, aspect)
        seen = wide * float(upright / foot) if is_flat and foot else tall
        plan.add_upright(labels["upright"], max(seen, 0.02 * side), on_left=depth is not None)
    if foot is not None:
        plan.add_foot(labels["foot"])
    if depth is not None:
        plan.add_depth(labels["depth"], slant)
    return DimensionDrawing(
        plan.draw_on(canvas), tuple(plan.texts), tuple(plan.boxes),
        (placed.x, placed.y, placed.right, placed.bottom),
    )  # fmt: skip


def _is_from_above(foot: Decimal, upright: Decimal, aspect: float) -> bool:
    """True when the silhouette is much taller than the height beside the foot can explain."""
    return float(foot / upright) > _FROM_ABOVE * aspect


@dataclass(frozen=True, slots=True)
class _Label:
    """A measure in the seller's unit over the same in the other one, smaller."""

    text: str
    own: Block
    other: Block

    @property
    def width_px(self) -> int:
        return max(self.own.width_px, self.other.width_px)

    @property
    def height_px(self) -> int:
        return self.own.height_px + self.other.height_px


class _Lines:
    """Collects dimension lines and labels, then draws them smoothly."""

    def __init__(self, side: int, palette: Palette) -> None:
        self.side = side
        self.palette = palette
        self.placed: Placed
        self.texts: list[str] = []
        self.boxes: list[tuple[int, int, int, int]] = []
        self._type = Typesetter()
        self._strokes: list[tuple[float, float, float, float]] = []
        self._arrows: list[tuple[float, float, float]] = []
        self._labels: list[tuple[_Label, float, float, Align]] = []
        self._gap = _GAP * side

    def set_labels(self, texts: dict[str, str]) -> dict[str, _Label]:
        """The labels in one size, as large as leaves the product most of the picture."""
        size_px, least = round(_LABEL_PX * self.side), round(_LEAST_LABEL_PX * self.side)
        while size_px > least and any(
            self._type.width(_lines(text)[0], Weight.BOLD, size_px) > 0.18 * self.side
            for text in texts.values()
        ):
            size_px -= 1
        return {name: self._set_label(text, size_px) for name, text in texts.items()}

    def _set_label(self, text: str, size_px: int) -> _Label:
        own, other = _lines(text)
        blocks = [
            Block((line,), weight, px, round(1.25 * px), round(self._type.width(line, weight, px)))
            for line, weight, px in (
                (own, Weight.BOLD, size_px),
                (other, Weight.REGULAR, round(0.76 * size_px)),
            )
        ]
        return _Label(text, *blocks)

    def depth_length(self, depth: Decimal, foot: Decimal | None) -> float:
        """How long the slanting line is drawn: foreshortened, never so long that it takes the product's room."""
        share = float(depth / foot) if foot else 0.6
        return min(0.13, max(0.07, 0.22 * share)) * self.side

    def add_upright(self, block: _Label, seen_px: float, *, on_left: bool) -> None:
        """The height, beside the product, from its foot upwards."""
        p = self.placed
        x = p.x - self._gap if on_left else p.right + self._gap
        top = p.bottom - seen_px
        self._measure(x, top, x, p.bottom)
        offset = (-_LABEL_GAP if on_left else _LABEL_GAP) * self.side
        middle = (top + p.bottom) / 2 - block.height_px / 2
        self._put(block, x + offset, middle, "right" if on_left else "left")

    def add_foot(self, block: _Label) -> None:
        """Length or width, under the product."""
        p = self.placed
        y = p.bottom + self._gap * 1.25
        self._measure(p.x, y, p.right, y)
        self._put(block, (p.x + p.right) / 2, y + 0.016 * self.side, "centre")

    def add_depth(self, block: _Label, length: float) -> None:
        """The measure that runs away from the viewer: a slanting line at the right foot, foreshortened."""
        p = self.placed
        angle = math.radians(_DEPTH_ANGLE_DEG)
        x0, y0 = p.right + self._gap * 0.6, p.bottom + self._gap * 1.25
        x1, y1 = x0 + length * math.cos(angle), y0 + length * math.sin(angle)
        self._measure(x0, y0, x1, y1)
        # Beside the label of the foot, which is wider than a very slender product.
        beside = max((box[2] for box in self.boxes if box[3] > p.bottom + self._gap), default=0)
        left = max(x0 + 0.3 * (x1 - x0), beside + 0.02 * self.side)
        self._put(block, left, y0 + 0.016 * self.side, "left")

    def draw_on(self, canvas: Image.Image) -> Image.Image:
        """The canvas with all lines and labels."""
        ink = self.palette.ink
        mask = Image.new("L", (canvas.width * _SCALE, canvas.height * _SCALE), 0)
        pen = ImageDraw.Draw(mask)
        thick = max(2, round(0.0032 * self.side * _SCALE))
        for stroke in self._strokes:
            pen.line([v * _SCALE for v in stroke], fill=255, width=thick)
        for x, y, angle in self._arrows:
            pen.polygon(_arrow(x * _SCALE, y * _SCALE, angle, 0.016 * self.side * _SCALE), fill=255)
        mask = mask.resize(canvas.size, Image.Resampling.BOX)
        canvas.paste(Image.new("RGB", canvas.size, ink), (0, 0), mask)
        draw = ImageDraw.Draw(canvas)
        for text, x, y, align in self._labels:
            self._type.draw(draw, text.own, x, y, ink, align)
            self._type.draw(draw, text.other, x, y + text.own.height_px, self.palette.muted, align)
        return canvas

    def _measure(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """A line with an arrowhead and a tick at each end."""
        angle = math.atan2(y1 - y0, x1 - x0)
        self._strokes.append((x0, y0, x1, y1))
        self._arrows += [(x0, y0, angle + math.pi), (x1, y1, angle)]
        tick = 0.013 * self.side
        across_x, across_y = math.sin(angle) * tick, -math.cos(angle) * tick
        for x, y in ((x0, y0), (x1, y1)):
            self._strokes.append((x - across_x, y - across_y, x + across_x, y + across_y))

    def _put(self, block: _Label, x: float, y: float, align: Align) -> None:
        left = x - {"left": 0.0, "centre": block.width_px / 2, "right": block.width_px}[align]
        self._labels.append((block, x, y, align))
        self.texts.append(block.text)
        self.boxes.append((round(left), round(y), round(left + block.width_px), round(y + block.height_px)))


def _lines(text: str) -> tuple[str, str]:
    """(in the seller's unit, in the other one) of a label."""
    own, other = text.split(" / ")
    return own, other


def _arrow(x: float, y: float, angle: float, size: float) -> list[tuple[float, float]]:
    spread = 0.30
    return [
        (x, y),
        (x - size * math.cos(angle - spread), y - size * math.sin(angle - spread)),
        (x - size * math.cos(angle + spread), y - size * math.sin(angle + spread)),
    ]


def _stand(backdrop: Image.Image, placed: Placed) -> Image.Image:
    """The product on the backdrop with only a faint contact shadow: nothing may look like a measure."""
    alpha = alpha_on_canvas(placed, backdrop.width, backdrop.height)
    contact, _ = shade_ground(alpha)
    canvas = shade(backdrop, 1 - 0.40 * contact)
    canvas.paste(placed.product, (placed.x, placed.y), placed.product)
    return canvas


def _round(value: Decimal) -> Decimal:
    """One decimal, two below one, none from a hundred on; of what is smaller yet, two digits: it is not zero."""
    fine = min(Decimal("0.01"), Decimal(1).scaleb(value.adjusted() - 1))
    step = fine if value < 1 else Decimal("0.1") if value < 100 else Decimal(1)
    return value.quantize(step, ROUND_HALF_UP)


def _plain(value: Decimal) -> str:
    """Without exponent and trailing zeros: 24, 9.4, 0.75."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
