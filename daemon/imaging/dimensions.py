"""The picture with measures: dimension lines around the product, in both systems of units.

Only measures that the seller gave are drawn. The upright line is the height; of length and width the one
that suits the product's silhouette lies along its foot and the other runs into the depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from PIL import Image, ImageDraw

from daemon.imaging.colours import Palette, palette_of
from daemon.imaging.compose import Placed, alpha_on_canvas, place, to_float, to_image, trim
from daemon.imaging.shadows import shade_ground
from daemon.imaging.typeset import Align, Block, Typesetter, Weight

_MM = {"mm": Decimal(1), "cm": Decimal(10), "m": Decimal(1000), "in": Decimal("25.4"), "ft": Decimal("304.8")}
_OTHER = {"mm": "in", "cm": "in", "m": "ft", "in": "cm", "ft": "cm"}
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
    lies along the foot; without a height it is the longer one.
    """
    flat = [v for v in (measures.length, measures.width) if v is not None]
    if len(flat) < 2:
        return (flat[0] if flat else None), measures.height, None
    first, second = flat
    if measures.height is not None:
        upright = float(measures.height)
        near = min(flat, key=lambda v: abs(math.log(float(v) / upright / aspect)))
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
    palette = palette_of(product, wishes)
    foot, upright, depth = assign(measures, product.width / product.height)
    # Room for the labels: the height stands at the right, or at the left when the depth needs that side.
    centre_x = (0.485 if depth is not None else 0.44 if upright is not None else 0.5) * side
    box_w = (0.50 if depth is not None else 0.60 if upright is not None else 0.76) * side
    placed = place(product, centre_x=centre_x, centre_y=0.465 * side, width_px=box_w, height_px=0.73 * side)
    canvas = _stand(backdrop, placed)
    plan = _Lines(side, placed, palette)
    if upright is not None:
        plan.add_upright(label(upright, measures.unit), on_left=depth is not None)
    if foot is not None:
        plan.add_foot(label(foot, measures.unit))
    if depth is not None:
        share = float(depth / foot) if foot else 0.6
        plan.add_depth(label(depth, measures.unit), share)
    return DimensionDrawing(
        plan.draw_on(canvas), tuple(plan.texts), tuple(plan.boxes),
        (placed.x, placed.y, placed.right, placed.bottom),
    )  # fmt: skip


class _Lines:
    """Collects dimension lines and labels, then draws them smoothly."""

    def __init__(self, side: int, placed: Placed, palette: Palette) -> None:
        self.side = side
        self.placed = placed
        self.palette = palette
        self.texts: list[str] = []
        self.boxes: list[tuple[int, int, int, int]] = []
        self._type = Typesetter()
        self._strokes: list[tuple[float, float, float, float]] = []
        self._arrows: list[tuple[float, float, float]] = []
        self._labels: list[tuple[Block, float, float, Align]] = []
        self._gap = 0.040 * side

    def add_upright(self, text: str, *, on_left: bool) -> None:
        """The height, beside the product."""
        p = self.placed
        x = p.x - self._gap if on_left else p.right + self._gap
        self._measure(x, p.y, x, p.bottom)
        block = self._set(text, (x if on_left else self.side - x) - 0.085 * self.side)
        offset = (-0.022 if on_left else 0.022) * self.side
        middle = (p.y + p.bottom) / 2 - block.height_px / 2
        self._put(block, x + offset, middle, "right" if on_left else "left")

    def add_foot(self, text: str) -> None:
        """Length or width, under the product."""
        p = self.placed
        y = p.bottom + self._gap * 1.25
        self._measure(p.x, y, p.right, y)
        block = self._set(text, 0.5 * self.side)
        self._put(block, (p.x + p.right) / 2, y + 0.016 * self.side, "centre")

    def add_depth(self, text: str, share: float) -> None:
        """The measure that runs away from the viewer: a slanting line at the right foot, foreshortened."""
        p = self.placed
        length = min(0.17, max(0.09, 0.5 * share * p.product.width / self.side)) * self.side
        angle = math.radians(-34)
        x0, y0 = p.right + self._gap * 0.6, p.bottom + self._gap * 1.25
        x1, y1 = x0 + length * math.cos(angle), y0 + length * math.sin(angle)
        self._measure(x0, y0, x1, y1)
        left = (x0 + x1) / 2 + 0.020 * self.side
        self._put(self._set(text, 0.95 * self.side - left), left, (y0 + y1) / 2 + 0.006 * self.side, "left")

    def draw_on(self, canvas: Image.Image) -> Image.Image:
        """The canvas with all lines and labels."""
        ink = self.palette.ink
        mask = Image.new("L", (canvas.width * _SCALE, canvas.height * _SCALE), 0)
        pen = ImageDraw.Draw(mask)
        thick = max(2, round(0.0025 * self.side * _SCALE))
        for stroke in self._strokes:
            pen.line([v * _SCALE for v in stroke], fill=255, width=thick)
        for x, y, angle in self._arrows:
            pen.polygon(_arrow(x * _SCALE, y * _SCALE, angle, 0.0135 * self.side * _SCALE), fill=255)
        mask = mask.resize(canvas.size, Image.Resampling.BOX)
        canvas.paste(Image.new("RGB", canvas.size, ink), (0, 0), mask)
        draw = ImageDraw.Draw(canvas)
        for block, x, y, align in self._labels:
            self._type.draw(draw, block, x, y, ink, align)
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

    def _set(self, text: str, width_px: float) -> Block:
        """The label, in two lines where it stands in a narrow place."""
        biggest, least = round(0.031 * self.side), round(0.017 * self.side)
        block = self._type.fit(text, Weight.MEDIUM, width_px=width_px, height_px=self.side, max_px=biggest,
                               min_px=least, max_lines=1)  # fmt: skip
        if block is not None and block.size_px >= 0.0295 * self.side:
            return block
        lines = tuple(part.strip() for part in text.split("/"))
        size_px = biggest
        while size_px > least and max(self._type.width(t, Weight.MEDIUM, size_px) for t in lines) > width_px:
            size_px -= 1
        widest = max(self._type.width(t, Weight.MEDIUM, size_px) for t in lines)
        return Block(lines, Weight.MEDIUM, size_px, round(1.28 * size_px), round(widest))

    def _put(self, block: Block, x: float, y: float, align: Align) -> None:
        left = x - {"left": 0.0, "centre": block.width_px / 2, "right": block.width_px}[align]
        self._labels.append((block, x, y, align))
        self.texts.append(" / ".join(block.lines) if len(block.lines) > 1 else block.lines[0])
        self.boxes.append((round(left), round(y), round(left + block.width_px), round(y + block.height_px)))


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
    canvas = to_image(to_float(backdrop) * (1 - 0.40 * contact)[..., None])
    canvas.paste(placed.product, (placed.x, placed.y), placed.product)
    return canvas


def _round(value: Decimal) -> Decimal:
    """One decimal, two below one, none from a hundred on."""
    step = Decimal("0.01") if value < 1 else Decimal("0.1") if value < 100 else Decimal(1)
    return value.quantize(step, ROUND_HALF_UP)


def _plain(value: Decimal) -> str:
    """Without exponent and trailing zeros: 24, 9.4, 0.75."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
