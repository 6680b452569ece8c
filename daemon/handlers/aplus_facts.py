"""From a seller's product to the facts an A+ document may state, and to the modules they can fill.

Nothing is added: a bullet becomes a point, a measure a row, "Material: oak" both. What Amazon would
refuse is left out and named in a check, so that one bad bullet does not cost the whole document.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.amazon.aplus_build import comparison_rows
from daemon.amazon.aplus_draft import SHAPES, AplusFacts, Point, SpecRow, clean, end_sentence
from daemon.amazon.aplus_limits import LIMITS, AplusModule
from daemon.amazon.aplus_words import Words, capitalise
from daemon.amazon.checks import Check
from daemon.amazon.policy import check_text
from daemon.handlers.wording import take_off_marks
from daemon.payloads import Dimensions, Product

SHORT_TITLE = 70  # the tightest headline, that of the overlay
HEADLINE = 80
ROW_LABEL = 30
ROW_VALUE = 500
MAX_ROWS = 16
MIN_ROWS = 4
LABELLED_BULLETS = 'bullets like "Material: oak"'
_LABELLED = re.compile(r"^([^:\u2013\u2014]{2,60}?)(?::\s+|\s+[\u2013\u2014-]\s+)(\S.*)$")

POINTS_NEEDED: dict[AplusModule, int] = {
    "STANDARD_THREE_IMAGE_TEXT": 3,
    "STANDARD_FOUR_IMAGE_TEXT": 4,
    "STANDARD_FOUR_IMAGE_TEXT_QUADRANT": 4,
    "STANDARD_MULTIPLE_IMAGE_TEXT": 2,
    "STANDARD_IMAGE_SIDEBAR": 1,
    "STANDARD_SINGLE_IMAGE_HIGHLIGHTS": 1,
}
"""Module -> how many points it shows side by side."""


@dataclass(frozen=True, slots=True)
class CollectedFacts:
    """facts, and a check for every piece of the input that was left out (pointer into the job's input)."""

    facts: AplusFacts
    left_out: tuple[Check, ...]


def collect_facts(product: Product, words: Words) -> CollectedFacts:
    """The facts of a product, cleaned; what Amazon refuses is left out. A refused title comes out empty."""
    left_out: list[Check] = []

    def accept(text: str | None, pointer: str) -> str:
        cleaned = clean(text or "")
        findings = [finding for finding in check_text(cleaned, pointer) if finding.severity == "fail"]
        for finding in findings:
            detail = f"Left out: the text would {finding.why} (“{finding.excerpt}”)."
            left_out.append(
                Check(f"policy.{finding.id}", "warn", finding.excerpt, detail=detail, pointer=pointer)
            )
        return "" if findings else cleaned

    title = accept(product.title, "/product/title")
    brand = accept(product.brand, "/product/brand")
    category = accept(product.category, "/product/category")
    bullets = [accept(text, f"/product/bullets/{n}") for n, text in enumerate(product.bullets)]
    parts = [accept(text, f"/product/in_the_box/{n}") for n, text in enumerate(product.in_the_box)]

    points = [read_point(bullet) for bullet in dict.fromkeys(bullets) if bullet]
    labelled = [
        (point.is_specification, SpecRow(label=point.headline, value=point.text.rstrip(".")))
        for point in points
        if point.headline and point.text and len(point.headline) <= ROW_LABEL
    ]
    measures = list_measures(product.dimensions, words) if product.dimensions else []
    if measures:
        spoken = ", ".join(f"{label} {value}" for label, value in measures)
        points.append(Point(headline=capitalise(words.dimensions), text=end_sentence(capitalise(spoken))))
    box = join_words([part.rstrip(".;,") for part in parts if part.strip(".;, ")], words.and_)
    if box:
        points.append(Point(headline=capitalise(words.in_the_box), text=end_sentence(capitalise(box))))

    rows = [(words.product, title), (words.brand, brand), (words.category, category), *measures]
    specified = [(row.label, row.value) for is_specification, row in labelled if is_specification]
    # A feature's sentence is no specification, but better than too few rows for a table.
    told = [(row.label, row.value) for is_specification, row in labelled if not is_specification]
    lacking = MIN_ROWS - len({label.lower() for label, value in (*rows, *specified) if value}) - bool(box)
    rows += [*specified, *told[: max(0, lacking)], (words.in_the_box, box)]
    named: dict[str, SpecRow] = {}
    for label, value in rows:
        if value:
            row = SpecRow(label=capitalise(label), value=shorten_name(value, ROW_VALUE))
            named.setdefault(label.lower(), row)
    facts = AplusFacts(
        title=title,
        short_title=shorten_name(title, SHORT_TITLE),
        brand=brand,
        category=category,
        points=tuple(points),
        rows=tuple(named.values())[:MAX_ROWS],
    )
    return CollectedFacts(facts, tuple(left_out))


def read_point(bullet: str) -> Point:
    """A bullet as headline and sentence: at its label when it has one, else as it is; without its ornament."""
    bullet = take_off_marks(bullet)
    labelled = _LABELLED.match(bullet)
    if labelled:
        label, rest = labelled.groups()
        letters = re.sub(r"[ &,-]", "", label)
        is_shouted = letters.isupper() and letters.isalpha() and len(letters) > 4
        label = label.capitalize() if is_shouted else capitalise(label)
        return Point(headline=label.strip(), text=end_sentence(capitalise(rest)))
    if len(bullet) <= HEADLINE:
        return Point(headline=capitalise(bullet).rstrip(".;,") or bullet)
    return Point(text=end_sentence(capitalise(bullet)))


def list_measures(dimensions: Dimensions, words: Words) -> list[tuple[str, str]]:
    """(word, "40.5 cm") for each measure that is given."""
    named = (
        (words.length, dimensions.length),
        (words.width, dimensions.width),
        (words.height, dimensions.height),
    )
    return [
        (word, f"{measure.normalize():f} {dimensions.unit}".replace(".", words.decimal_mark))
        for word, measure in named
        if measure
    ]


def join_words(parts: Sequence[str], and_: str) -> str:
    """The parts as a sentence lists them: "a, b and c"; capitals within ("Lid, Boot") keep it a plain list."""
    if len(parts) < 2 or any(part[:1].isupper() for part in parts[1:]):
        return ", ".join(parts)
    return f"{', '.join(parts[:-1])} {and_} {parts[-1]}"


def shorten_name(name: str, limit: int) -> str:
    """A name of at most `limit` characters: cut at a comma, dash or bracket, else between words."""
    if len(name) <= limit:
        return name
    head = name[: limit + 1]
    cuts = [match.start() for match in re.finditer(r"\s*(?:,\s|[;|(\[]|\s[\u2013\u2014-]\s)", head)]
    if not cuts or cuts[-1] < limit // 3:
        cuts = [head.rfind(" ")]
    cut = cuts[-1] if cuts[-1] > 0 else limit
    return head[:cut].rstrip(" ,;:|-\u2013\u2014(") or name[:limit]


def plan_modules(facts: AplusFacts, *, has_photo: bool) -> tuple[AplusModule, ...]:
    """Three to five modules that these facts can fill, in reading order."""
    tech: tuple[AplusModule, ...] = ("STANDARD_TECH_SPECS",) if len(facts.rows) >= MIN_ROWS else ()
    if not has_photo:
        return ("STANDARD_TEXT", "STANDARD_PRODUCT_DESCRIPTION", *(tech or ("STANDARD_TEXT",)))
    several: AplusModule = (
        "STANDARD_THREE_IMAGE_TEXT" if len(facts.points) >= 3 else "STANDARD_SINGLE_SIDE_IMAGE"
    )
    closing: tuple[AplusModule, ...] = ("STANDARD_PRODUCT_DESCRIPTION",) if _has_closing(facts) else ()
    return ("STANDARD_HEADER_IMAGE_TEXT", several, "STANDARD_IMAGE_TEXT_OVERLAY", *tech, *closing)


def _has_closing(facts: AplusFacts) -> bool:
    """Whether the pictures and the table leave anything for a closing text to tell."""
    if len(facts.rows) < MIN_ROWS:
        return len(facts.points) > 1  # a single point is told before
    beside = 3 if len(facts.points) >= 3 else 1
    left = [point for point in facts.points if not facts.is_in_rows(point)][beside:]
    overlay = sum(len(f"{point.headline}: {point.text}\n") for point in left)
    return len(left) > 2 or overlay > SHAPES["STANDARD_IMAGE_TEXT_OVERLAY"].body


def name_missing(module: AplusModule, facts: AplusFacts, *, has_photo: bool) -> tuple[str, ...]:
    """What the seller would have to add for this module; empty when the facts can fill it."""
    missing = []
    if module == "STANDARD_COMPANY_LOGO":
        return () if facts.brand else ("brand",)
    if LIMITS[module].images and not has_photo:
        missing.append("photo")
    lacking = POINTS_NEEDED.get(module, 0) - len(facts.points)
    if lacking > 0:
        missing.append(f"{lacking} more of bullets, dimensions, in_the_box")
    if module == "STANDARD_TECH_SPECS" and len(facts.rows) < MIN_ROWS:
        more = MIN_ROWS - len(facts.rows)
        missing.append(f"{more} more of brand, category, dimensions, in_the_box, {LABELLED_BULLETS}")
    if module == "STANDARD_COMPARISON_TABLE" and not comparison_rows(facts):
        missing.append(f"brand, category, dimensions or {LABELLED_BULLETS}")
    return tuple(missing)
