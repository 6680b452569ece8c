"""The A+ writer that needs no provider: honest sentences made from the seller's facts by rules.

It serves the same protocol as a language model but reads `JsonRequest.facts` (an AplusBrief) and no
prompt, so that nothing a seller writes can instruct it. It adds no claim: every sentence is a fact of the
seller's, or says where the facts come from. Same facts, same text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import ValidationError

from daemon.amazon.aplus_limits import AplusModule
from daemon.amazon.aplus_words import WORDS, Words, capitalise, words_for
from daemon.errors import Fate, ProviderError
from daemon.later import later
from daemon.providers.protocols import JsonAnswer, JsonRequest, Usage

if TYPE_CHECKING:
    from daemon.amazon import aplus_draft as drafts
else:
    drafts = later("daemon.amazon.aplus_draft")

VERSION = "rules-1"


class OfflineText:
    """A TextProvider that works by rules, costs nothing and opens no connection."""

    name = "offline"
    fingerprint = f"offline:{VERSION}"

    def estimate_usd(self, request: JsonRequest) -> Decimal:
        """Always 0 USD."""
        return Decimal(0)

    async def generate_json(self, request: JsonRequest, *, timeout_s: float) -> JsonAnswer:
        """An AplusDraft as JSON. Errors: ProviderError (permanent) without facts or in a foreign language."""
        try:
            brief = drafts.AplusBrief.model_validate(request.facts)
        except ValidationError as exc:
            raise ProviderError(
                "The offline writer fills A+ documents from facts; it was given none.",
                provider=self.name,
                fate=Fate.PERMANENT,
                code="facts_missing",
            ) from exc
        return JsonAnswer(write_draft(brief).model_dump_json(), "stop", Usage(), VERSION)

    async def close(self) -> None:
        """Nothing is open."""


def write_draft(brief: drafts.AplusBrief) -> drafts.AplusDraft:
    """The texts of every module of the brief. Errors: ProviderError locale_unsupported."""
    words = words_for(brief.locale)
    if words is None:
        raise ProviderError(
            f"The offline writer does not write {brief.locale}.",
            provider=OfflineText.name,
            fate=Fate.PERMANENT,
            code="locale_unsupported",
            hint=f"It writes {', '.join(sorted(WORDS))}.",
        )
    said: dict[AplusModule, int] = {}
    modules = []
    for module in brief.modules:
        # A module that stands twice continues with the facts, it does not repeat itself.
        part = said.get(module, 0)
        said[module] = part + 1
        modules.append(_WRITERS.get(module, _write_nothing)(_Task(module, brief.facts, words, part)))
    return drafts.AplusDraft(modules=tuple(modules))


@dataclass(frozen=True, slots=True)
class _Task:
    """One module to write; part: how often the same module stands before it."""

    module: AplusModule
    facts: drafts.AplusFacts
    words: Words
    part: int

    @property
    def shape(self) -> drafts.Shape:
        return drafts.SHAPES[self.module]

    @property
    def about(self) -> str:
        return capitalise(self.words.about)

    @property
    def opening(self) -> str:
        """The one sentence that is no fact of the seller's: who presents what."""
        title, brand = self.facts.title.rstrip("."), self.facts.brand
        is_named = brand and brand.lower() not in title.lower()
        # replace, not format: a title may hold braces.
        sentence = self.words.presents.replace("{brand}", brand) if is_named else self.words.describes
        return drafts.end_sentence(capitalise(sentence.removesuffix(".").replace("{title}", title)))


def _fit(sentences: list[str], limit: int) -> str:
    """As many whole sentences as fit, in order; one that is too long is passed over."""
    fitted = ""
    for sentence in sentences:
        longer = f"{fitted} {sentence}".strip()
        if len(longer) <= limit:
            fitted = longer
    return fitted


def _block(point: drafts.Point, task: _Task) -> drafts.BlockDraft:
    body = _fit([point.text], task.shape.body)
    headline = point.headline or ("" if body else capitalise(task.words.features))
    return drafts.BlockDraft(headline=headline, body=body)


def _bullets(task: _Task) -> tuple[str, ...]:
    """The points as bullets; a long one gives its headline only."""
    limit, most = task.shape.bullet, task.shape.bullets[1]
    bullets = []
    for point in task.facts.points:
        whole = point.sentence.removesuffix(".")
        bullets.append(whole if len(whole) <= limit else point.headline)
    return tuple(text for text in bullets if text and len(text) <= limit)[:most]


def _write_header(task: _Task) -> drafts.ModuleDraft:
    first = [point.sentence for point in task.facts.points[:2]]
    block = drafts.BlockDraft(
        headline=task.facts.brand or task.about, body=_fit([task.opening, *first], 1000)
    )
    return drafts.ModuleDraft(module=task.module, headline=task.facts.short_title, blocks=(block,))


def _write_points(task: _Task) -> drafts.ModuleDraft:
    """Modules that show points side by side, as many as they have places for."""
    least, most = task.shape.blocks
    points = task.facts.points[task.part * most :][:most]
    points = points if len(points) >= least else task.facts.points[:most]
    return drafts.ModuleDraft(
        module=task.module,
        headline=capitalise(task.words.features) if task.shape.headline else "",
        blocks=tuple(_block(point, task) for point in points),
    )


def _write_side(task: _Task) -> drafts.ModuleDraft:
    points = task.facts.points
    point = points[task.part % len(points)] if points else drafts.Point()
    told = [point.text] if point.text and not point.headline else [point.text, task.opening]
    block = drafts.BlockDraft(headline=point.headline or task.about, body=_fit(told, task.shape.body))
    return drafts.ModuleDraft(module=task.module, blocks=(block,))


def _write_overlay(task: _Task) -> drafts.ModuleDraft:
    # The last points are the least told so far: the modules before this one begin with the first.
    body = _fit([point.sentence for point in reversed(task.facts.points)][:2], task.shape.body)
    return drafts.ModuleDraft(
        module=task.module, blocks=(drafts.BlockDraft(headline=task.facts.short_title, body=body),)
    )


def _write_sidebar(task: _Task) -> drafts.ModuleDraft:
    first = [point.sentence for point in task.facts.points[:2]]
    about = drafts.BlockDraft(headline=task.about, body=_fit([task.opening, *first], task.shape.body))
    return drafts.ModuleDraft(
        module=task.module,
        headline=task.facts.short_title,
        blocks=(about, _block(task.facts.points[-1], task)),
        bullets=_bullets(task),
    )


def _write_highlights(task: _Task) -> drafts.ModuleDraft:
    about = drafts.BlockDraft(headline=task.about, body=_fit([task.opening], task.shape.body))
    blocks = tuple(_block(point, task) for point in task.facts.points if point.text)[:3]
    return drafts.ModuleDraft(
        module=task.module,
        headline=task.facts.short_title,
        blocks=blocks or (about,),
        bullets=_bullets(task) or (task.facts.short_title,),
    )


def _write_specs_detail(task: _Task) -> drafts.ModuleDraft:
    about = drafts.BlockDraft(headline=task.about, body=_fit([task.opening], task.shape.body))
    first = tuple(_block(point, task) for point in task.facts.points[:1])
    return drafts.ModuleDraft(module=task.module, headline=task.facts.short_title, blocks=(about, *first))


def _write_text(task: _Task) -> drafts.ModuleDraft:
    """First what it is, then its features, one paragraph each."""
    words, points = task.words, task.facts.points
    has_headline = task.shape.headline > 0
    if task.part == 0 and has_headline:
        kind = task.facts.category
        category = drafts.end_sentence(f"{capitalise(words.category)}{words.colon}{kind}") if kind else ""
        first = [point.sentence for point in points[:1]]
        headline, body = words.about, _fit([task.opening, category, *first], task.shape.body)
    else:
        paragraphs = [] if has_headline else [task.opening]
        paragraphs += [point.sentence for point in points]
        headline, body = words.features, "\n".join(paragraphs) or task.opening
    return drafts.ModuleDraft(
        module=task.module,
        headline=capitalise(headline) if has_headline else "",
        blocks=(drafts.BlockDraft(body=body),),
    )


def _write_nothing(task: _Task) -> drafts.ModuleDraft:
    """A module without prose: code makes it from the facts."""
    return drafts.ModuleDraft(module=task.module)


_Writer = Callable[[_Task], "drafts.ModuleDraft"]
_WRITERS: Mapping[AplusModule, _Writer] = {
    "STANDARD_FOUR_IMAGE_TEXT": _write_points,
    "STANDARD_FOUR_IMAGE_TEXT_QUADRANT": _write_points,
    "STANDARD_HEADER_IMAGE_TEXT": _write_header,
    "STANDARD_IMAGE_SIDEBAR": _write_sidebar,
    "STANDARD_IMAGE_TEXT_OVERLAY": _write_overlay,
    "STANDARD_MULTIPLE_IMAGE_TEXT": _write_points,
    "STANDARD_PRODUCT_DESCRIPTION": _write_text,
    "STANDARD_SINGLE_IMAGE_HIGHLIGHTS": _write_highlights,
    "STANDARD_SINGLE_IMAGE_SPECS_DETAIL": _write_specs_detail,
    "STANDARD_SINGLE_SIDE_IMAGE": _write_side,
    "STANDARD_TEXT": _write_text,
    "STANDARD_THREE_IMAGE_TEXT": _write_points,
}
