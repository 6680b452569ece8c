"""Kind `aplus`: Amazon's A+ content document with its images, checked, and a page to look at.

    product ──▶ facts ──▶ modules ──▶ texts (writer) ──▶ document ──▶ checks ──▶ preview, result
    photo ────▶ cut-out ────────────▶ images (painter) ─────┘

Every paid call is a step, every image an asset: an attempt that follows another one pays for nothing twice.
The document that leaves here has no failed check; otherwise the job fails and says where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daemon.amazon.aplus import check_document
from daemon.amazon.aplus_build import ImagePlace, build_document, list_places
from daemon.amazon.aplus_draft import AplusBrief, AplusFacts, clean
from daemon.amazon.aplus_limits import AplusModule
from daemon.amazon.aplus_words import WORDS, Words, words_for
from daemon.amazon.checks import Check, has_failed
from daemon.errors import Reject
from daemon.handlers.aplus_facts import CollectedFacts, collect_facts, name_missing, plan_modules
from daemon.handlers.aplus_images import FinishedImage, make_images
from daemon.handlers.aplus_preview import render_preview
from daemon.handlers.aplus_text import write_texts
from daemon.handlers.context import JobContext
from daemon.handlers.cutouts import cut_out_photo
from daemon.payloads import AplusInput


@dataclass(slots=True)
class _Progress:
    """Counts finished pieces of work for the job's watchers."""

    ctx: JobContext
    total: int = 4
    done: int = 0

    def begin(self, stage: str, message: str) -> None:
        self.ctx.progress(self.done, self.total, stage, message)

    def finish(self, stage: str, message: str) -> None:
        self.done += 1
        self.ctx.progress(self.done, self.total, stage, message)


async def handle(ctx: JobContext) -> dict[str, Any]:
    """{document, preview_asset_id, checks[], images[], provider, painter}.

    document: the body of Amazon's createContentDocument; images: {upload_destination_id, asset_id,
    file_name, generated} of each image in it; provider, painter: who wrote the texts and made the images.
    Errors: Reject locale_unsupported, facts_refused, facts_missing, aplus_check_failed; those of the photo
    and of the providers.
    """
    wanted = ctx.input
    assert isinstance(wanted, AplusInput)
    progress = _Progress(ctx)
    words = _require_words(wanted.locale)
    collected = collect_facts(wanted.product, words)
    facts, modules = collected.facts, _choose_modules(wanted, collected)

    # The photo first: a cut-out that fails must not leave texts behind that were paid for nothing.
    cutout = None
    if wanted.photo is not None:
        progress.begin("cutout", "Cutting the product out of its photo")
        cutout = await cut_out_photo(ctx, wanted.photo)
    progress.finish("text", "Writing the texts")
    brief = AplusBrief(facts=facts, modules=modules, locale=wanted.locale, tone=clean(wanted.tone or ""))
    texts = await write_texts(ctx, brief)

    places = list_places(texts.draft)
    progress.total += len(places)
    progress.finish("images", f"Making {len(places)} images")
    images = await make_images(
        ctx,
        wanted,
        places,
        cutout,
        brand=facts.brand,
        on_done=lambda place: progress.finish("images", f"Finished {place.file_name}"),
    )

    document = build_document(
        texts.draft, facts, words, locale=wanted.locale, content_type=wanted.content_type
    )
    shown = document.dump()
    files = {image.place.upload_destination_id: image.facts for image in images}
    checks = (*check_document(shown, files, canaries=texts.canaries), *collected.left_out, *_remarks(places))
    progress.finish("document", "Checking the document")
    if has_failed(checks):
        raise _refused("The document breaks Amazon's rules.", checks)
    jpegs = {image.place.upload_destination_id: image.jpeg for image in images}
    page = await ctx.in_thread(render_preview, document.content_document, jpegs, checks)
    preview = await ctx.find_asset("preview", None) or await ctx.save_asset(
        page, role="preview", content_type="text/html; charset=utf-8", file_name="aplus-preview.html"
    )
    await ctx.save_document(wanted.locale, shown)
    progress.finish("document", "Finished")
    return {
        "document": shown,
        "preview_asset_id": str(preview.id),
        "checks": [check.as_json() for check in checks],
        "images": [_as_json(image) for image in images],
        "provider": ctx.providers.text.name,
        "painter": ctx.providers.paint.name if cutout else None,
    }


def _require_words(locale: str) -> Words:
    words = words_for(locale)
    if words is None:
        raise Reject(
            f"A+ documents cannot be written for {locale} yet.",
            code="locale_unsupported",
            hint=f"Languages: {', '.join(sorted(WORDS))}.",
            data={"locale": locale, "languages": sorted(WORDS)},
        )
    return words


def _choose_modules(wanted: AplusInput, collected: CollectedFacts) -> tuple[AplusModule, ...]:
    """The wanted modules, or a plan; refused when the facts cannot fill them."""
    facts = collected.facts
    has_photo = wanted.photo is not None
    if not facts.title:
        raise _refused("The product's title breaks Amazon's rules.", collected.left_out)
    modules = wanted.modules or plan_modules(facts, has_photo=has_photo)
    missing = _list_missing(modules, facts, has_photo=has_photo)
    if missing:
        named = "; ".join(f"{module}: {', '.join(what)}" for module, what in missing.items())
        raise Reject(
            f"The product has not enough facts for these modules: {named}.",
            code="facts_missing",
            hint="Add what is named, or ask for other modules.",
            data={"missing": {module: list(what) for module, what in missing.items()}},
        )
    return modules


def _list_missing(
    modules: Sequence[AplusModule], facts: AplusFacts, *, has_photo: bool
) -> dict[AplusModule, tuple[str, ...]]:
    missing = {module: name_missing(module, facts, has_photo=has_photo) for module in modules}
    return {module: what for module, what in missing.items() if what}


def _refused(message: str, checks: Sequence[Check]) -> Reject:
    return Reject(
        message,
        code="aplus_check_failed",
        hint="Look at the findings and change the facts they point to.",
        data={"checks": [check.as_json() for check in checks if check.outcome != "pass"]},
    )


def _remarks(places: Sequence[ImagePlace]) -> list[Check]:
    """What a seller should know and Amazon does not check."""
    return [
        Check(
            "aplus.logo",
            "warn",
            detail="The logo is the brand's name in plain type: put your own in its place.",
            pointer=f"/images/{place.slot}",
        )
        for place in places
        if place.module == "STANDARD_COMPANY_LOGO"
    ]


def _as_json(image: FinishedImage) -> dict[str, Any]:
    return {
        "upload_destination_id": image.place.upload_destination_id,
        "asset_id": str(image.asset.id),
        "file_name": image.place.file_name,
        "generated": image.asset.generated,
    }
