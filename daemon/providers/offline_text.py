"""The A+ writer that needs no provider: honest sentences made from the seller's facts by rules.

It serves the same protocol as a language model but reads `JsonRequest.facts` (an AplusBrief) and no
prompt, so that nothing a seller writes can instruct it. It adds no claim: every sentence is a fact of the
seller's, or says where the facts come from. Same facts, same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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

VERSION = "rules-4"
MIN_OVERVIEW, MAX_OVERVIEW = 2, 5
OVERVIEW_NAME = 40  # characters; longer ones are read where they are told
_SEPARATOR = " \u00b7 "


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
    untold = brief.facts.points
    modules: list[drafts.ModuleDraft] = []
    for module in brief.modules:
        part = said.get(module, 0)
        said[module] = part + 1
        task = _Task(
            module, brief.facts, words, part, untold, is_first=not any(m.blocks for m in modules),
            has_table=brief.has_table,
        )  # fmt: skip
        modules.append(_WRITERS.get(module, _write_nothing)(task))
        told = _sentences(modules[-1])
        untold = tuple(
            point for point in untold if (point.text or drafts.end_sentence(point.headline)) not in told
        )
    return drafts.AplusDraft(modules=tuple(modules))


def _sentences(module: drafts.ModuleDraft) -> str:
    """All that a module says, the headline over it apart; headlines and bullets as the sentences they are."""
    said = [text for block in module.blocks for text in (drafts.end_sentence(block.headline), block.body)]
    return "\n".join((*said, *map(drafts.end_sentence, module.bullets)))


@dataclass(frozen=True, slots=True)
class _Task:
    """One module to write; part: how often the same module stands before it; untold: the points that no
    module before it tells; is_first: no module with words stands before it.
    """

    module: AplusModule
    facts: drafts.AplusFacts
    words: Words
    part: int
    untold: tuple[drafts.Point, ...]
    is_first: bool
    has_table: bool

    @property
    def shape(self) -> drafts.Shape:
        return drafts.SHAPES[self.module]

    @property
    def about(self) -> str:
        return capitalise(self.words.about)

    def say(self, point: drafts.Point) -> str:
        return point.sentence(self.words.colon)

    @property
    def opening(self) -> str:
        """The one sentence that is no fact of the seller's: who presents what. A title with its brand speaks
        for itself.
        """
        title, brand = self.facts.title.rstrip(".") or self.facts.title, self.facts.brand
        if not brand or brand.lower() in title.lower():
            return drafts.end_sentence(title)
        # replace, not format: a title may hold braces.
        sentence = self.words.presents.replace("{brand}", brand).removesuffix(".")
        return drafts.end_sentence(capitalise(sentence.replace("{title}", title)))

    @property
    def overview(self) -> str:
        """The names of the features in one line, those that say something only with their value last."""
        named = [
            self.say(point).removesuffix(".") if point.is_specification else point.headline
            for point in self.in_order(self.facts.points)
            if not self.is_closing(point)
        ]
        fitting = [name for name in named if 0 < len(name) <= OVERVIEW_NAME][:MAX_OVERVIEW]
        return _SEPARATOR.join(fitting) if len(fitting) >= MIN_OVERVIEW else ""

    def is_closing(self, point: drafts.Point) -> bool:
        """True for measures and contents: they come last, whatever else there is to tell."""
        closing = (self.words.dimensions, self.words.in_the_box)
        return point.headline in map(capitalise, closing)

    def in_order(self, points: tuple[drafts.Point, ...]) -> list[drafts.Point]:
        """Features first, then specifications (a table shows them too), measures and contents last."""
        return sorted(points, key=lambda point: (self.is_closing(point), point.is_specification))

    @property
    def for_text(self) -> list[drafts.Point]:
        """What is left for running text: not what the table shows, unless there is nothing else."""
        points = self.in_order(self.untold)
        own = [point for point in points if not (self.has_table and self.facts.is_in_rows(point))]
        return own or points

    def next_points(self, least: int, most: int) -> list[drafts.Point]:
        """Points that were not told yet, or, when they are too few, the first ones again."""
        return self.in_order(self.untold if len(self.untold) >= least else self.facts.points)[:most]


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


def _bullets(task: _Task, points: Iterable[drafts.Point]) -> tuple[str, ...]:
    """The points as bullets; a long one gives its headline only, if that says anything without the rest."""
    limit, most = task.shape.bullet, task.shape.bullets[1]
    bullets = []
    for point in points:
        whole = task.say(point).removesuffix(".")
        if len(whole) <= limit:
            bullets.append(whole)
        elif not task.is_closing(point):
            bullets.append(point.headline)
    return tuple(text for text in bullets if text and len(text) <= limit)[:most]


def _write_header(task: _Task) -> drafts.ModuleDraft:
    """The name, what the title says besides, and what there is to read about below."""
    facts = task.facts
    presents = [] if facts.brand.lower() in facts.title.lower() else [task.opening]
    told = [task.overview] if task.overview else [task.say(point) for point in facts.points[:2]]
    body = "\n".join(filter(None, (_fit(presents, 1000), _fit(told, 1000)))) or task.opening
    headline = capitalise(facts.traits) or facts.brand or task.about
    return drafts.ModuleDraft(
        module=task.module, headline=facts.name, blocks=(drafts.BlockDraft(headline=headline, body=body),)
    )


def _write_points(task: _Task) -> drafts.ModuleDraft:
    """Modules that show points side by side, as many as they have places for."""
    points = task.next_points(*task.shape.blocks)
    return drafts.ModuleDraft(
        module=task.module,
        headline=capitalise(task.words.features) if task.shape.headline else "",
        blocks=tuple(_block(point, task) for point in points),
    )


def _write_side(task: _Task) -> drafts.ModuleDraft:
    point = next(iter(task.next_points(1, 1)), drafts.Point())
    says_enough = (point.headline or point.text) and not task.is_first
    told = [point.text] if says_enough else [point.text, task.opening]
    block = drafts.BlockDraft(headline=point.headline or task.about, body=_fit(told, task.shape.body))
    return drafts.ModuleDraft(module=task.module, blocks=(block,))


def _write_overlay(task: _Task) -> drafts.ModuleDraft:
    """The next two points on a picture: the first with a headline gives it. With none left, the name."""
    points = [point for point in task.in_order(task.untold) if not task.is_closing(point)][:2]
    first = next((p for p in points if 0 < len(p.headline) <= task.shape.block_headline), drafts.Point())
    told = [first.text, *(task.say(point) for point in points if point is not first)]
    headline = first.headline or task.facts.name
    if not points:
        told = [drafts.end_sentence(capitalise(task.facts.traits))]
    paragraphs = "\n".join(filter(None, told))
    body = paragraphs if len(paragraphs) <= task.shape.body else _fit(told, task.shape.body)
    return drafts.ModuleDraft(module=task.module, blocks=(drafts.BlockDraft(headline=headline, body=body),))


def _write_sidebar(task: _Task) -> drafts.ModuleDraft:
    *others, last = task.facts.points
    too_long = [point for point in others if len(task.say(point)) > task.shape.bullet]
    told = [task.say(point) for point in too_long or others[:2]]
    about = drafts.BlockDraft(headline=task.about, body=_fit([task.opening, *told], task.shape.body))
    return drafts.ModuleDraft(
        module=task.module,
        headline=task.facts.short_title,
        blocks=(about, _block(last, task)),
        bullets=_bullets(task, (point for point in others if task.say(point) not in about.body)),
    )


def _write_highlights(task: _Task) -> drafts.ModuleDraft:
    about = drafts.BlockDraft(headline=task.about, body=_fit([task.opening], task.shape.body))
    points = task.facts.points
    shown = [point for point in points if point.text][:3]
    rest = _bullets(task, (point for point in points if point not in shown))
    return drafts.ModuleDraft(
        module=task.module,
        headline=task.facts.short_title,
        blocks=tuple(_block(point, task) for point in shown) or (about,),
        bullets=rest or _bullets(task, points) or (task.facts.short_title,),
    )


def _write_specs_detail(task: _Task) -> drafts.ModuleDraft:
    about = drafts.BlockDraft(headline=task.about, body=_fit([task.opening], task.shape.body))
    first = tuple(_block(point, task) for point in task.facts.points[:1])
    return drafts.ModuleDraft(module=task.module, headline=task.facts.short_title, blocks=(about, *first))


def _write_text(task: _Task) -> drafts.ModuleDraft:
    """What it is, unless that was said before, and what was not told yet, one paragraph each."""
    words, untold = task.words, [task.say(point) for point in task.for_text]
    has_headline = task.shape.headline > 0
    kind = task.facts.category
    category = drafts.end_sentence(f"{capitalise(words.category)}{words.colon}{kind}") if kind else ""
    if task.part == 0 and has_headline:
        headline, body = words.about, _fit([task.opening, category, *untold[:1]], task.shape.body)
    else:
        paragraphs = [task.opening, *untold] if task.is_first else untold
        headline, body = words.features, "\n".join(paragraphs) or category or task.opening
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
