"""Typography: measuring, wrapping, fitting and drawing text with Roboto.

Roboto (Apache-2.0, from the font-roboto package) draws Latin, Greek and Cyrillic. Text it cannot draw is
refused, never shown as boxes; text that does not fit at a legible size is reported as not fitting, never
cut with an ellipsis. A Typesetter belongs to one picture: FreeType faces must not be shared by threads.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Literal

from fontTools.ttLib import TTFont  # type: ignore[import-untyped]  # ships no types
from PIL import ImageDraw, ImageFont

from daemon.errors import Reject
from daemon.imaging.colours import RGB

Align = Literal["left", "centre", "right"]


class Weight(StrEnum):
    """The weights in use; the values are parts of the font files' names."""

    REGULAR = "Regular"
    MEDIUM = "Medium"
    BOLD = "Bold"


@dataclass(frozen=True, slots=True)
class Block:
    """Text broken into lines at one size. width_px is the widest line, height_px of all lines."""

    lines: tuple[str, ...]
    weight: Weight
    size_px: int
    line_px: int
    width_px: int

    @property
    def height_px(self) -> int:
        return self.line_px * len(self.lines)


def tidy(text: str) -> str:
    """The text as it is drawn: composed (NFC), one space between words, no invisible format characters."""
    composed = unicodedata.normalize("NFC", text)
    visible = "".join(ch for ch in composed if unicodedata.category(ch) != "Cf")
    return " ".join(visible.split())


def find_undrawable(text: str) -> str:
    """The characters of `text` that the font has no glyph for, each once, in order; "" if it has all."""
    covered = _coverage()
    return "".join(dict.fromkeys(ch for ch in tidy(text) if ord(ch) not in covered))


def require_drawable(texts: Iterable[tuple[str, str]]) -> None:
    """Refuse texts that would show boxes. texts: (field name, text).

    Errors: Reject, code text_not_drawable, naming field and characters.
    """
    for field, text in texts:
        if missing := find_undrawable(text):
            named = ", ".join(f"{ch} (U+{ord(ch):04X})" for ch in missing[:8])
            raise Reject(
                f"{field} holds characters that cannot be drawn on a picture: {named}.",
                code="text_not_drawable",
                hint="Pictures are lettered in Latin, Greek and Cyrillic; leave out emoji and other scripts.",
                data={"field": field, "characters": missing},
            )


class Typesetter:
    """Measures and draws text; keeps the loaded sizes of one picture."""

    def __init__(self) -> None:
        self._fonts: dict[tuple[Weight, int], ImageFont.FreeTypeFont] = {}

    def width(self, text: str, weight: Weight, size_px: int) -> float:
        """Advance of one line in px, kerning included."""
        return self._font(weight, size_px).getlength(text)

    def wrap(self, text: str, weight: Weight, size_px: int, width_px: float) -> tuple[str, ...] | None:
        """Lines no wider than width_px, about equally long; None when a single word is wider."""
        words = _breakable(text)
        lines = self._greedy(words, weight, size_px, width_px)
        if lines is None or len(lines) < 2:
            return lines
        low, high = width_px / 2, width_px
        while high - low > size_px / 4:
            middle = (low + high) / 2
            tighter = self._greedy(words, weight, size_px, middle)
            if tighter is not None and len(tighter) == len(lines):
                lines, high = tighter, middle
            else:
                low = middle
        return lines

    def fit(
        self,
        text: str,
        weight: Weight,
        *,
        width_px: float,
        height_px: float,
        max_px: int,
        min_px: int,
        max_lines: int = 9,
        leading: float = 1.28,
    ) -> Block | None:
        """The largest setting between max_px and min_px that stays inside the box; None if there is none."""
        text = tidy(text)
        size_px = max_px
        while size_px >= min_px:
            line_px = round(size_px * leading)
            most = min(max_lines, int(height_px // line_px))
            if (
                self.width(text, weight, size_px) > most * width_px
            ):  # no need to try: it is longer than the box
                size_px -= max(1, size_px // 24)
                continue
            lines = self.wrap(text, weight, size_px, width_px)
            if lines and len(lines) <= max_lines and line_px * len(lines) <= height_px:
                widest = max(self.width(line, weight, size_px) for line in lines)
                return Block(lines, weight, size_px, line_px, round(widest))
            size_px -= max(1, size_px // 24)
        return None

    def draw(
        self, canvas: ImageDraw.ImageDraw, block: Block, x: float, y: float, fill: RGB,
        align: Align = "left",
    ) -> None:  # fmt: skip
        """Draw `block` with its top at y; x is its left edge, centre or right edge by `align`."""
        font = self._font(block.weight, block.size_px)
        anchor = {"left": "ls", "centre": "ms", "right": "rs"}[align]
        ascent_px, descent_px = font.getmetrics()
        baseline = y + (block.line_px - ascent_px - descent_px) / 2 + ascent_px
        for line in block.lines:
            canvas.text((x, baseline), line, font=font, fill=fill, anchor=anchor)
            baseline += block.line_px

    def _greedy(
        self, words: list[str], weight: Weight, size_px: int, width_px: float
    ) -> tuple[str, ...] | None:
        lines: list[str] = []
        line = ""
        for word in words:
            if self.width((line + word).rstrip(), weight, size_px) <= width_px:
                line += word
                continue
            if line:
                lines.append(line.rstrip())
            if self.width(word.rstrip(), weight, size_px) > width_px:
                return None
            line = word
        return (*lines, line.rstrip()) if line else tuple(lines)

    def _font(self, weight: Weight, size_px: int) -> ImageFont.FreeTypeFont:
        key = (weight, size_px)
        if key not in self._fonts:
            with resources.as_file(_font_file(weight)) as path:
                self._fonts[key] = ImageFont.truetype(str(path), size_px)
        return self._fonts[key]


def _breakable(text: str) -> list[str]:
    """Words with the space that follows them; a line may also break after a hyphen or slash in a word."""
    pieces: list[str] = []
    for word in text.split():
        start = 0
        for i in range(2, len(word) - 2):
            if word[i] in "-/\u2013" and word[i - 1].isalpha() and word[i + 1].isalpha():
                pieces.append(word[start : i + 1])
                start = i + 1
        pieces.append(word[start:] + " ")
    return pieces


def _font_file(weight: Weight) -> Traversable:
    return resources.files("font_roboto") / "files" / f"Roboto-{weight.value}.ttf"


@cache
def _coverage() -> frozenset[int]:
    """Code points that every weight in use has a glyph for."""
    shared: set[int] | None = None
    for weight in Weight:
        with resources.as_file(_font_file(weight)) as path, TTFont(str(path), lazy=True) as font:
            points = set(font.getBestCmap())
        shared = points if shared is None else shared & points
    return frozenset(shared or ())
