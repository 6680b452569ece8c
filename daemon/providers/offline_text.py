"""The A+ writer that needs no provider: honest sentences made from the seller's facts by rules.

It serves the same protocol as a language model but reads `JsonRequest.facts` (an AplusBrief) and no
prompt, so that nothing a seller writes can instruct it. It adds no claim: every sentence is a fact of the
seller's, or says where the facts come from. Same facts, same text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal

from pydantic import ValidationError

from daemon.amazon.aplus_draft import (
    SHAPES,
    AplusBrief,
    AplusDraft,
    AplusFacts,
    BlockDraft,
    ModuleDraft,
    Point,
    end_sentence,
)
from daemon.amazon.aplus_limits import AplusModule
from daemon.amazon.aplus_words import WORDS, Words, capitalise, words_for
from daemon.errors import Fate, ProviderError
from daemon.providers.protocols import JsonAnswer, JsonRequest, Usage

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
            brief = AplusBrief.model_validate(request.facts)
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


def write_draft(brief: AplusBrief) -> AplusDraft:
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
        modules.append(_WRITERS.get(module, _write_nothing)(module, brief.facts, words, part))
    return AplusDraft(modules=tuple(modules))


def _opening(facts: AplusFacts, words: Words) -> str:
    """The one sentence that is no fact of the seller's: who presents what."""
    named = facts.brand and facts.brand.lower() not in facts.title.lower()
    # replace, not format: a title may hold braces.
    sentence = words.presents.replace("{brand}", facts.brand) if named else words.describes
    sentence = capitalise(sentence.removesuffix("."))
    return end_sentence(sentence.replace("{title}", facts.title.rstrip(".")))


def _fit(sentences: list[str], limit: int) -> str:
    """As many whole sentences as fit, in order; one that is too long is passed over."""
    fitted = ""
    for sentence in sentences:
        longer = f"{fitted} {sentence}".strip()
        if len(longer) <= limit:
            fitted = longer
    return fitted


def _block(point: Point, module: AplusModule, words: Words) -> BlockDraft:
    body = _fit([point.text], SHAPES[module].body)
    return BlockDraft(headline=point.headline or ("" if body else capitalise(words.features)), body=body)


def _bullets(facts: AplusFacts, limit: int, most: int) -> tuple[str, ...]:
    """The points as bullets; a long one gives its headline only."""
    spoken = (
        f"{point.headline}: {point.text.rstrip('.')}" if point.headline and point.text else point.sentence
        for point in facts.points
    )
    short = (
        text.rstrip(".") if len(text) <= limit + 1 else point.headline
        for text, point in zip(spoken, facts.points, strict=True)
    )
    return tuple(text for text in short if text and len(text) <= limit)[:most]


def _write_header(module: AplusModule, facts: AplusFacts, words: Words, part: int) -> ModuleDraft:
    first = [point.sentence for point in facts.points[:2]]
    block = BlockDraft(
        headline=facts.brand or capitalise(words.about), body=_fit([_opening(facts, words), *first], 1000)
    )
    return ModuleDraft(module=module, headline=facts.short_title, blocks=(block,))


def _write_points(module: AplusModule, facts: AplusFacts, words: Words, part: int) -> ModuleDraft:
    """Modules that show points side by side, as many as they have places for."""
    least, most = SHAPES[module].blocks
    points = facts.points[part * most :][:most]
    points = points if len(points) >= least else facts.points[:most]
    return ModuleDraft(
        module=module,
        headline=capitalise(words.features) if SHAPES[module].headline else "",
        blocks=tuple(_block(point, module, words) for point in points),
    )


def _write_side(module: AplusModule, facts: AplusFacts, words: Words, part: int) -> ModuleDraft:
    point = facts.points[part % len(facts.points)] if facts.points else None
    body = _fit([point.text if point and point.headline else "", _opening(facts, words)], 1000)
    if point and not point.headline:
        body = _fit([point.text], 1000)
    headline = point.headline if point and point.headline else capitalise(words.about)
    return ModuleDraft(module=module, blocks=(BlockDraft(headline=headline, body=body.strip()),))


def _write_overlay(module: AplusModule, facts: AplusFacts, words: Words, part: int) -> ModuleDraft:
    # The last points are the least told so far: the modules before this one begin with the first.
    body = _fit([point.sentence for point in reversed(facts.points)][:2], SHAPES[module].body)
    return ModuleDraft(module=module, blocks=(BlockDraft(headline=facts.short_title, body=body),))


def _write_sidebar(module: AplusModule, facts: AplusFacts, words: Words, part: int) -> ModuleDraft:
    shape = SHAPES[module]
    body = _fit([_opening(facts, words), *(point.sentence for point in facts.points[:2])], shape.body)
    blocks = (
        BlockDraft(headline=capitalise(words.about), body=body),
        _block(facts.points[-1], module, words),
    )
    bullets = _bullets(facts, shape.bullet, 8)
    return ModuleDraft(module=module, headline=facts.short_title, blocks=blocks, bullets=bullets)


def _write_highlights(module: AplusModule, facts: AplusFacts, words: Words, part: int) -> ModuleDraft:
    shape = SHAPES[module]
    long = [point for point in facts.points if point.text][:3]
    blocks = tuple(_block(point, module, words) for point in long)
    if not blocks:
        blocks = (BlockDraft(headline=capitalise(words.about), body=_fit([_opening(facts, words)], 1000)),)
    bullets = _bullets(facts, shape.bullet, 8) or (facts.short_title,)
    return ModuleDraft(module=module, headline=facts.short_title, blocks=blocks, bullets=bullets)


def _write_specs_detail(module: AplusModule, facts: AplusFacts, words: Words, part: int) -> ModuleDraft:
    blocks = [BlockDraft(headline=capitalise(words.about), body=_fit([_opening(facts, words)], 1000))]
    blocks += [_block(point, module, words) for point in facts.points[:1]]
    return ModuleDraft(module=module, headline=facts.short_title, blocks=tuple(blocks))


def _write_text(module: AplusModule, facts: AplusFacts, words: Words, part: int) -> ModuleDraft:
    """First what it is, then its features, one paragraph each."""
    limit = SHAPES[module].body
    opening = _opening(facts, words)
    if part == 0 and SHAPES[module].headline:
        category = f"{capitalise(words.category)}{words.colon}{facts.category}" if facts.category else ""
        first = [point.sentence for point in facts.points[:1]]
        headline, body = words.about, _fit([opening, end_sentence(category), *first], limit)
    else:
        paragraphs = [] if SHAPES[module].headline else [opening]
        paragraphs += [point.sentence for point in facts.points]
        headline, body = words.features, "\n".join(paragraphs) or opening
    return ModuleDraft(
        module=module,
        headline=capitalise(headline) if SHAPES[module].headline else "",
        blocks=(BlockDraft(body=body),),
    )


def _write_nothing(module: AplusModule, facts: AplusFacts, words: Words, part: int) -> ModuleDraft:
    """A module without prose: code makes it from the facts."""
    return ModuleDraft(module=module)


_Writer = Callable[[AplusModule, AplusFacts, Words, int], ModuleDraft]
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
