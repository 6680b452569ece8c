"""The texts of an A+ document: asked of the configured writer, read, and sent back for repair if need be.

    brief ──▶ prompt + facts ──▶ writer ──▶ read_draft ──▶ draft
                 ▲                             │ errors
                 └──────── aplus_repair ◀──────┘  at most twice

The seller's words stand in the prompt as delimited JSON data. A random canary in the prompt shows when an
answer repeats its instructions; it is kept with the answer, because a stored answer outlives the attempt.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.amazon.aplus_draft import (
    SHAPES,
    AplusBrief,
    AplusDraft,
    DraftError,
    ModuleDraft,
    Shape,
    draft_schema,
    read_draft,
)
from daemon.amazon.aplus_limits import AplusModule
from daemon.errors import Reject
from daemon.handlers.context import JobContext, StepValue
from daemon.handlers.prompts import fill_template, load_template, quote
from daemon.providers.protocols import JsonRequest

MAX_REPAIRS = 2
OUTPUT_TOKENS = 8192
# A ceiling for any provider; the adapter's own setting is usually tighter.
TEXT_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class WrittenTexts:
    """draft: the prose of every module of the brief; canaries: strings that must not be in the document."""

    draft: AplusDraft
    canaries: tuple[str, ...] = ()


async def write_texts(ctx: JobContext, brief: AplusBrief) -> WrittenTexts:
    """The texts of the brief's modules, sound by `read_draft`. Modules without prose are not asked for.

    Errors: Reject aplus_check_failed when the texts are still wrong after two repairs; those of ctx.step.
    """
    with_prose = tuple(module for module in brief.modules if SHAPES[module] != Shape())
    has_table = "STANDARD_TECH_SPECS" in brief.modules
    asked = brief.model_copy(update={"modules": with_prose, "has_table": has_table})
    if not with_prose:
        return WrittenTexts(AplusDraft(modules=tuple(ModuleDraft(module=module) for module in brief.modules)))
    answer = ""
    errors: tuple[DraftError, ...] = ()
    canaries: list[str] = []
    for attempt in range(MAX_REPAIRS + 1):
        previous = answer
        answer, canary, is_cut_short = await _ask(ctx, asked, attempt, previous, errors, OUTPUT_TOKENS)
        canaries.append(canary)
        if is_cut_short:  # half a document cannot be repaired: the same question with more room, once
            answer, canary, _ = await _ask(ctx, asked, attempt, previous, errors, 2 * OUTPUT_TOKENS)
            canaries.append(canary)
        draft, errors = await asyncio.to_thread(read_draft, answer, asked, canaries=canaries)
        if draft is not None and not errors:
            written = iter(draft.modules)
            modules = tuple(
                next(written) if module in with_prose else ModuleDraft(module=module)
                for module in brief.modules
            )
            return WrittenTexts(AplusDraft(modules=modules), tuple(canaries))
        if answer == previous:  # a writer that repeats itself will do so again
            break
    raise Reject(
        "The texts still break Amazon's rules after repair.",
        code="aplus_check_failed",
        hint="Look at the findings; change the facts they point to, or write these modules yourself.",
        data={"checks": [_as_check(error) for error in errors]},
    )


async def _ask(
    ctx: JobContext,
    brief: AplusBrief,
    attempt: int,
    previous: str,
    errors: Sequence[DraftError],
    output_tokens: int,
) -> tuple[str, str, bool]:
    """(answer of the writer, canary that stood in its prompt, whether it ran out of tokens), through a step."""
    provider = ctx.providers.text
    canary = f"k{secrets.token_hex(8)}"
    template, version = load_template("aplus_text")
    modules = [_describe(n, module) for n, module in enumerate(brief.modules, 1)]
    if brief.has_table:
        modules.append(
            "The rows of the facts stand in a table beside these modules: do not repeat them at the end."
        )
    values = {
        "language": brief.locale.partition("-")[0],
        "locale": brief.locale,
        "canary": canary,
        "modules": "\n".join(modules),
        "facts": quote("product_facts", {"tone": brief.tone, **brief.facts.model_dump()}),
    }
    text = fill_template(template, values)
    if attempt:
        repair, repair_version = load_template("aplus_repair")
        listed = [{"at": error.pointer, "problem": error.detail} for error in errors[:30]]
        values = {
            "prompt": text,
            "errors": quote("problems", listed),
            "answer": quote("previous_answer", previous),
        }
        text = fill_template(repair, values)
        version += f"+repair@{repair_version}"
    request = JsonRequest(
        prompt=text,
        schema=draft_schema(brief.modules),
        facts=brief.model_dump(mode="json"),
        max_output_tokens=output_tokens,
    )

    async def call() -> StepValue:
        answer = await provider.generate_json(request, timeout_s=TEXT_TIMEOUT_S)
        return StepValue(
            usage=answer.usage,
            document={"text": answer.text, "canary": canary, "is_cut_short": answer.finish == "MAX_TOKENS"},
            model=answer.model,
            request_id=answer.request_id,
            rate=answer.rate,
        )

    # The canary is random and decides nothing, so it is no part of the identity.
    asked_before = (previous, *(f"{error.pointer} {error.detail}" for error in errors))
    decisive = (brief.model_dump_json(), str(output_tokens), *asked_before)
    value = await ctx.step(
        ("text" if not attempt else f"text:repair{attempt}")
        + (":longer" if output_tokens > OUTPUT_TOKENS else ""),
        provider=provider.name,
        identity=("aplus_text", provider.name, provider.fingerprint, version, *map(_hash, decisive)),
        estimate_usd=provider.estimate_usd(request),
        call=call,
    )
    assert value.document is not None
    told = value.document
    return str(told["text"]), str(told["canary"]), bool(told["is_cut_short"])


def _describe(number: int, module: AplusModule) -> str:
    """One line of the prompt: what the module takes."""
    shape = SHAPES[module]
    parts = [f"headline (at most {shape.headline} characters)" if shape.headline else "no headline"]
    if shape.block_headline:
        block = f"each with a headline (at most {min(shape.block_headline, 80)}) and a body"
    else:
        block = "with an empty headline and a body"
    least, most = shape.blocks
    count = str(least) if least == most else f"{least} to {most}"
    parts.append(f"{count} blocks, {block} (at most {min(shape.body, 1200)} characters)")
    if shape.bullets[1]:
        parts.append(f"{shape.bullets[0]} to {shape.bullets[1]} bullets (at most {shape.bullet} each)")
    else:
        parts.append("no bullets")
    return f"{number}. {module}: {'; '.join(parts)}."


def _as_check(error: DraftError) -> dict[str, object]:
    return {
        "rule": "aplus.text",
        "outcome": "fail",
        "measured": None,
        "limit": None,
        "detail": error.detail,
        "pointer": error.pointer,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
