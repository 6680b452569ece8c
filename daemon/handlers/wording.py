"""The words that go on a picture: the seller's own, minus what Amazon forbids and what cannot be lettered.

A refused text is left out and told as a warning; a picture that would have nothing left is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.amazon.checks import Check
from daemon.amazon.policy import check_text
from daemon.errors import Reject
from daemon.imaging.typeset import require_drawable, tidy
from daemon.payloads import Product, Slot

BOX_HEADING = "In the box"  # the only words on any picture that are not the seller's
# "- 20 °C" keeps its sign.
_ORNAMENT = re.compile(r"^(?:[•‣·*\u2013\u2014-]+\s+(?!\d)|[\u2500-\u2bff\ufe0f\U0001f000-\U0001faff]\s*)+")
_BRACKETED = re.compile(r"^[\u3010\[]([^\u3011\]]{2,60})[\u3011\]]\s*[:\u2013\u2014-]?\s*(?=\S)")


@dataclass(frozen=True, slots=True)
class Wording:
    """title and overline may be empty; checks: a warning for each text left out or doubtful."""

    title: str
    overline: str
    items: tuple[str, ...]
    checks: tuple[Check, ...]


def word_picture(slot: Slot, product: Product) -> Wording:
    """The words of an infographic or of the contents of the box; nothing for the other slots.

    Errors: Reject text_not_drawable; Reject facts_refused when no item may be shown.
    """
    if slot == "infographic":
        brand = product.brand or ""
        # Most titles begin with the brand: it is not said twice, one line above the other.
        is_said = product.title.casefold().startswith(brand.casefold())
        field, given, overline = "bullets", product.bullets, "" if is_said else brand
    elif slot == "in_the_box":
        field, given, overline = "in_the_box", product.in_the_box, BOX_HEADING
    else:
        return Wording("", "", (), ())
    texts = [take_off_marks(text) for text in given]
    named = [("product.title", product.title), ("product.brand", overline)]
    named += [(f"product.{field}[{i}]", text) for i, text in enumerate(texts)]
    require_drawable(named)
    checks: list[Check] = []
    title = _accept(product.title, "/product/title", checks)
    items = [_accept(text, f"/product/{field}/{i}", checks) for i, text in enumerate(texts)]
    shown = tuple(item for item in items if item)
    if not shown:
        raise Reject(
            f"Amazon forbids something in every text of product.{field}, so the {slot} picture would be empty.",
            code="facts_refused",
            hint="Take out prices, promotions, guarantees, contact data and the like.",
            data={"checks": [check.as_json() for check in checks]},
        )
    return Wording(title, _accept(overline, "/product/brand", checks), shown, tuple(checks))


def take_off_marks(text: str) -> str:
    """A pasted bullet without its list mark; "【Label】words" as "Label: words"."""
    return _BRACKETED.sub(r"\1: ", _ORNAMENT.sub("", text)) or text


def report_left_out(texts: Sequence[str]) -> list[Check]:
    """A warning for each text that found no room."""
    return [
        Check("text_fits", "warn", tidy(text), detail="Left out: there was no room for it at a legible size.")
        for text in texts
    ]


def _accept(text: str, pointer: str, checks: list[Check]) -> str:
    """The text as drawn, or "" when Amazon forbids it."""
    findings = check_text(text, pointer)
    refused = any(finding.severity == "fail" for finding in findings)
    for finding in findings:
        said = "Left out: a text must not" if refused else "Amazon may object: a text should not"
        checks.append(
            Check(
                f"policy.{finding.id}", "warn", finding.excerpt,
                detail=f"{said} {finding.why} (“{finding.excerpt}”).", pointer=pointer,
            )
        )  # fmt: skip
    return "" if refused else tidy(text)
