"""What a writer of A+ texts gets and what it must give back. No I/O.

    AplusBrief ──▶ writer (rules or a model) ──▶ AplusDraft as JSON ──▶ read_draft: errors, or a sound draft

A draft holds prose only. Specifications, measures, picture sizes and alt texts never pass through a
writer: code takes them from the facts (aplus_build.py). What a writer says is checked for shape, length,
content rules, canaries, and for figures that the seller never gave.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from daemon.amazon.aplus import contains_canary
from daemon.amazon.aplus_limits import AplusModule
from daemon.amazon.policy import check_text

MAX_PARAGRAPHS = 100
MAX_DRAFT = 400_000
"""Characters of a draft's JSON."""
MAX_BODY = 6000
MAX_PROSE = 60_000
MAX_ERRORS = 100
SPECIFICATION_WORDS = 5  # a labelled text of more words is a sentence about a feature


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Point(_Frozen):
    """One thing worth saying: a short headline, a full sentence, or both (at least one is not empty)."""

    headline: str = ""
    text: str = ""

    def sentence(self, colon: str) -> str:
        """The whole point as prose; `colon` with its spaces as the language sets it."""
        if self.headline and self.text:
            return f"{self.headline}{colon}{self.text}"
        return self.text or end_sentence(self.headline)

    @property
    def is_specification(self) -> bool:
        """True for "Material: oak, oiled": its headline says nothing without its text."""
        return bool(self.headline and self.text) and len(self.text.split()) <= SPECIFICATION_WORDS


class SpecRow(_Frozen):
    """A row of the specifications."""

    label: str
    value: str


class AplusFacts(_Frozen):
    """The seller's facts, cleaned of control characters and of wording that Amazon refuses."""

    title: str
    short_title: str
    brand: str = ""
    category: str = ""
    points: tuple[Point, ...] = ()
    rows: tuple[SpecRow, ...] = ()

    @property
    def name(self) -> str:
        """The short title as far as it names the product: "Steel bottle" of "Steel bottle, 750 ml, blue"."""
        head, comma, _ = self.short_title.partition(", ")
        return head if comma and " " in head else self.short_title

    def is_in_rows(self, point: Point) -> bool:
        """True when the table of specifications says all that the point says."""
        said = point.text.rstrip(".").lower()
        same = any(
            (row.label.lower(), row.value.rstrip(".").lower()) == (point.headline.lower(), said)
            for row in self.rows
        )
        # The measures are a row each, and one sentence.
        named = {f"{row.label} {row.value}".lower() for row in self.rows}
        return same or all(part in named for part in said.split(", "))

    @property
    def traits(self) -> str:
        """What the short title says after the name: "750 ml, blue"; empty when it is all name."""
        return self.short_title[len(self.name) :].removeprefix(", ")


class AplusBrief(_Frozen):
    """What a writer must write: exactly these modules in this order, in this locale and tone.

    has_table: the document shows the facts' rows as a table beside them.
    """

    facts: AplusFacts
    modules: tuple[AplusModule, ...]
    locale: str = "en-US"
    tone: str = ""
    has_table: bool = False


class BlockDraft(_Frozen):
    """One text block of a module; at least one of the two says something."""

    headline: str = ""
    body: str = ""


class ModuleDraft(_Frozen):
    """The prose of one module. A line break in a body starts a new paragraph."""

    module: AplusModule
    headline: str = ""
    blocks: tuple[BlockDraft, ...] = ()
    bullets: tuple[str, ...] = ()


class AplusDraft(_Frozen):
    """What a writer gives back."""

    modules: tuple[ModuleDraft, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a module's draft holds. headline, block_headline, body, bullet: most characters, 0 = no place;
    blocks, bullets: least and most of them.
    """

    headline: int = 0
    blocks: tuple[int, int] = (0, 0)
    block_headline: int = 0
    body: int = 0
    bullets: tuple[int, int] = (0, 0)
    bullet: int = 100


SHAPES: Mapping[AplusModule, Shape] = {
    "STANDARD_COMPANY_LOGO": Shape(),
    "STANDARD_COMPARISON_TABLE": Shape(),
    "STANDARD_FOUR_IMAGE_TEXT": Shape(200, (4, 4), 160, 1000),
    "STANDARD_FOUR_IMAGE_TEXT_QUADRANT": Shape(0, (4, 4), 140, 1000),
    "STANDARD_HEADER_IMAGE_TEXT": Shape(150, (1, 1), 150, 6000),
    "STANDARD_IMAGE_SIDEBAR": Shape(160, (2, 2), 160, 500, (0, 8)),
    "STANDARD_IMAGE_TEXT_OVERLAY": Shape(0, (1, 1), 70, 300),
    "STANDARD_MULTIPLE_IMAGE_TEXT": Shape(0, (2, 4), 160, 1000),
    "STANDARD_PRODUCT_DESCRIPTION": Shape(0, (1, 1), 0, 6000),
    "STANDARD_SINGLE_IMAGE_HIGHLIGHTS": Shape(160, (1, 3), 160, 1000, (1, 8)),
    "STANDARD_SINGLE_IMAGE_SPECS_DETAIL": Shape(160, (1, 2), 160, 1000),
    "STANDARD_SINGLE_SIDE_IMAGE": Shape(0, (1, 1), 160, 1000),
    "STANDARD_TECH_SPECS": Shape(),
    "STANDARD_TEXT": Shape(160, (1, 1), 0, 5000),
    "STANDARD_THREE_IMAGE_TEXT": Shape(200, (3, 3), 160, 1000),
}
"""Module -> the prose it takes; a module without prose is made from the facts alone."""


@dataclass(frozen=True, slots=True)
class DraftError:
    """One thing a writer must put right; `pointer` is a JSON pointer into its draft."""

    pointer: str
    detail: str


def clean(text: str) -> str:
    """One line of text: white space folded, control and direction characters dropped."""
    kept = "".join(
        ch for ch in unicodedata.normalize("NFC", text) if ch.isspace() or unicodedata.category(ch)[0] != "C"
    )
    return " ".join(kept.split())


def end_sentence(text: str) -> str:
    """The text with a full stop, unless it ends like a sentence already."""
    return text if not text or text[-1] in ".!?…。" else text.rstrip(",;:") + "."


def draft_schema(modules: Sequence[AplusModule]) -> dict[str, Any]:
    """The JSON Schema of a draft of these modules, without $ref, so that every vendor reads it."""
    text = {"type": "string"}
    block = {
        "type": "object",
        "properties": {"headline": text, "body": text},
        "required": ["headline", "body"],
    }
    module = {
        "type": "object",
        "properties": {
            "module": {"type": "string", "enum": list(dict.fromkeys(modules))},
            "headline": text,
            "blocks": {"type": "array", "items": block},
            "bullets": {"type": "array", "items": text},
        },
        "required": ["module", "headline", "blocks", "bullets"],
    }
    return {
        "type": "object",
        "properties": {"modules": {"type": "array", "items": module}},
        "required": ["modules"],
    }


def read_draft(
    text: str, brief: AplusBrief, *, canaries: Sequence[str] = ()
) -> tuple[AplusDraft | None, tuple[DraftError, ...]]:
    """The draft in a writer's raw answer and everything wrong with it; (None, errors) if it is no draft."""
    if len(text) > MAX_DRAFT:
        return None, (DraftError("", f"Has {len(text)} characters, at most {MAX_DRAFT} are read."),)
    try:
        draft = AplusDraft.model_validate(json.loads(text))
    except ValidationError as exc:
        return None, tuple(
            DraftError("".join(f"/{key}" for key in error["loc"]), error["msg"]) for error in exc.errors()
        )
    except (ValueError, RecursionError):
        return None, (DraftError("", "The answer is no JSON document."),)
    if tuple(module.module for module in draft.modules) != brief.modules:
        wanted = ", ".join(brief.modules)
        return None, (DraftError("/modules", f"Write exactly these modules in this order: {wanted}."),)
    errors: list[DraftError] = []
    for index, module in enumerate(draft.modules):
        errors += _check_shape(module, SHAPES[module.module], f"/modules/{index}")
    known = _figures(json.dumps(brief.facts.model_dump(), ensure_ascii=False))
    left = MAX_PROSE
    for pointer, value in _texts(draft):
        # What is longer than any body, or more than all of them, is an error already; the rules take the square of it.
        errors += _check_value(value[: min(MAX_BODY, left)], pointer, known, canaries)
        left = max(0, left - len(value))
    return draft, tuple(errors[:MAX_ERRORS])


def _check_shape(module: ModuleDraft, shape: Shape, pointer: str) -> list[DraftError]:
    errors = []
    if not shape.blocks[0] <= len(module.blocks) <= shape.blocks[1]:
        errors.append(DraftError(f"{pointer}/blocks", f"Needs {_range(shape.blocks)} blocks."))
    if not shape.bullets[0] <= len(module.bullets) <= shape.bullets[1]:
        errors.append(DraftError(f"{pointer}/bullets", f"Needs {_range(shape.bullets)} bullets."))
    lengths = [(f"{pointer}/headline", module.headline, shape.headline)]
    for index, block in enumerate(module.blocks):
        lengths.append((f"{pointer}/blocks/{index}/headline", block.headline, shape.block_headline))
        lengths.append((f"{pointer}/blocks/{index}/body", block.body, shape.body))
        if not block.headline.strip() and not block.body.strip():
            errors.append(DraftError(f"{pointer}/blocks/{index}", "Says nothing."))
        if len(block.body.splitlines()) > MAX_PARAGRAPHS:
            errors.append(DraftError(f"{pointer}/blocks/{index}/body", "Has too many paragraphs."))
    for index, bullet in enumerate(module.bullets):
        lengths.append((f"{pointer}/bullets/{index}", bullet, shape.bullet))
        if not bullet.strip():
            errors.append(DraftError(f"{pointer}/bullets/{index}", "Says nothing."))
    if shape.headline and not module.headline.strip():
        errors.append(DraftError(f"{pointer}/headline", "Is missing."))
    for where, text, limit in lengths:
        if len(text) > limit:
            room = f"Has {len(text)} characters, at most {limit} fit." if limit else "Has no place here."
            errors.append(DraftError(where, room))
    return errors


def _range(least_and_most: tuple[int, int]) -> str:
    least, most = least_and_most
    return str(least) if least == most else f"{least} to {most}"


def _texts(draft: AplusDraft) -> list[tuple[str, str]]:
    texts = []
    for index, module in enumerate(draft.modules):
        at = f"/modules/{index}"
        texts.append((f"{at}/headline", module.headline))
        for number, block in enumerate(module.blocks):
            texts.append((f"{at}/blocks/{number}/headline", block.headline))
            texts.append((f"{at}/blocks/{number}/body", block.body))
        texts += [(f"{at}/bullets/{number}", bullet) for number, bullet in enumerate(module.bullets)]
    return texts


def _check_value(text: str, pointer: str, known: set[str], canaries: Sequence[str]) -> list[DraftError]:
    errors = [
        DraftError(pointer, f"Must not {finding.why} (“{finding.excerpt}”).")
        for finding in check_text(text)
        if finding.severity == "fail"
    ]
    if contains_canary(text, canaries):
        errors.append(DraftError(pointer, "Repeats words from the instructions."))
    if any(unicodedata.category(ch) in ("Cc", "Cs", "Co") and ch not in "\n\r\t" for ch in text):
        errors.append(DraftError(pointer, "Contains control characters."))
    return errors + [
        DraftError(pointer, f"Names the figure {figure}, which the facts do not give.")
        for figure in sorted(_figures(text) - known)
    ]


def _figures(text: str) -> set[str]:
    """The numbers in a text; "1.50" and "1,5" are one figure, and so are "1,000" and "1000"."""
    return {_plain(number) for number in re.findall(r"\d+(?:[.,]\d+)*", text)}


def _plain(number: str) -> str:
    if re.fullmatch(r"\d{1,3}(?:[.,]\d{3})+", number):
        return re.sub(r"[.,]", "", number)
    whole, point, decimals = number.replace(",", ".").rpartition(".")
    return f"{whole}.{decimals}".rstrip("0").rstrip(".") if point else decimals
