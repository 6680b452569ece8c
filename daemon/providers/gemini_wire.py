"""What both Google SDKs share: the reduced schema, prices, and what an answer or a refusal means."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from daemon.errors import Fate, ProviderError
from daemon.providers import fates
from daemon.providers.protocols import JsonAnswer, JsonRequest, Usage
from daemon.providers.rates import parse_duration_s
from daemon.providers.token_count import most_tokens

NAME = "gemini"
MAX_ANSWER_BYTES = 8 * 1024 * 1024
_TOKENS_PER_IMAGE = 1120  # the most that one picture counts for
_MAX_DEPTH = 12
_MAX_TOKENS = 10**9
_KEPT = ("description", "nullable")
_FORMATS = frozenset({"enum", "date-time", "float", "double", "int32", "int64"})

OnLateUsage = Callable[[Usage, str], None]
"""Called with (usage, model) for an answer that came after its caller had gone, in the caller's context."""


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """USD per million tokens."""

    in_usd: Decimal = Decimal("0.75")
    out_usd: Decimal = Decimal("3.75")


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer in neutral words. finish, block_reason: the API's names, "" = none."""

    text: str
    finish: str
    block_reason: str
    prompt_tokens: int
    total_tokens: int


def estimate_usd(request: JsonRequest, prices: TokenPrices) -> Decimal:
    """The most that a call can cost, USD: all of max_output_tokens."""
    written = request.prompt + json.dumps(dict(request.schema), ensure_ascii=False)
    tokens_in = most_tokens(written) + _TOKENS_PER_IMAGE * len(request.images)
    return (tokens_in * prices.in_usd + request.max_output_tokens * prices.out_usd) / 1_000_000


def price(reading: Reading, prices: TokenPrices) -> Usage:
    """Output is total minus prompt: thinking is billed and stands in no other count."""
    # Bounded: the ledger takes no negative costs, and none of a billion dollars.
    prompt = min(max(0, reading.prompt_tokens), _MAX_TOKENS)
    out = min(max(0, reading.total_tokens - prompt), _MAX_TOKENS)
    cost = (prompt * prices.in_usd + out * prices.out_usd) / 1_000_000
    return Usage(cost, {"prompt_tokens": prompt, "output_tokens": out})


def conclude(reading: Reading, prices: TokenPrices, model: str) -> JsonAnswer:
    """The answer to hand on. Errors: ProviderError for blocked, empty and unfinished ones, with their cost."""
    usage = price(reading, prices)
    paid = {"cost_usd": str(usage.cost_usd), "usage": dict(usage.units)}
    if reading.block_reason:
        raise fates.problem(
            NAME, Fate.PERMANENT, "text_blocked", data={"block_reason": reading.block_reason[:40], **paid}
        )
    fate = fates.classify_finish(reading.finish)
    if fate is not None:
        ours = "text_blocked" if fate is Fate.PERMANENT else "answer_stopped"
        raise fates.problem(NAME, fate, ours, data={"finish": reading.finish[:40], **paid})
    return JsonAnswer(text=reading.text, finish=reading.finish, usage=usage, model=model)


def refusal(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    """The error behind an HTTP status other than 200. headers: case-insensitive."""
    try:
        document = json.loads(body)
        error = (document[0] if isinstance(document, list) else document)["error"]
        details = [d for d in error.get("details", []) if isinstance(d, dict)]
        fault = fates.Fault(
            status,
            code=_first_text(details, "reason"),
            type=str(error.get("status", "")),
            quota=" ".join(_quotas(details)),
        )
        delay_s = parse_duration_s(_first_text(details, "retryDelay"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        fault, delay_s = fates.Fault(status), None
    fate, ours = fates.classify(fates.GEMINI, fault)
    return fates.problem(
        NAME, fate, ours,
        status=status, headers=headers, retry_after=delay_s,
        data={"provider_code": (fault.code or fault.type)[:100], "quota": fault.quota[:200]},
    )  # fmt: skip


def reduce_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON Schema cut down to what the API takes; the caller validates the rest itself.

    Dropped: lengths, patterns, bounds, titles, defaults, additionalProperties. $ref is written out, null in
    a union becomes nullable, objects in a union become one with all their properties, const becomes enum.
    Errors: ValueError for a schema that refers to itself without end.
    """
    return _reduce(schema, schema.get("$defs", {}), 0)


def _reduce(schema: Mapping[str, Any], defs: Mapping[str, Any], depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise ValueError("the schema is nested too deeply for Gemini")
    if "$ref" in schema:
        target = defs[str(schema["$ref"]).rsplit("/", 1)[-1]]
        return _reduce({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, defs, depth + 1)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return _reduce_union(schema, schema[union], defs, depth)
    out: dict[str, Any] = {k: schema[k] for k in _KEPT if k in schema}
    kind = schema.get("type", "string")
    if isinstance(kind, list):
        out["nullable"] = "null" in kind
        kind = next(k for k in kind if k != "null")
    out["type"] = str(kind).upper()
    if schema.get("format") in _FORMATS:
        out["format"] = schema["format"]
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if choices and out["type"] == "STRING":
        out |= {"enum": [str(choice) for choice in choices], "format": "enum"}
    if out["type"] == "ARRAY":
        items = schema.get("items") or {"type": "string"}
        out["items"] = _reduce(items, defs, depth + 1)
        for name, ours in (("minItems", "min_items"), ("maxItems", "max_items")):
            if name in schema:
                out[ours] = schema[name]
    if out["type"] == "OBJECT":
        properties = schema.get("properties", {})
        out["properties"] = {name: _reduce(child, defs, depth + 1) for name, child in properties.items()}
        required = [name for name in schema.get("required", []) if name in properties]
        if required:
            out["required"] = required
    return out


def _reduce_union(
    schema: Mapping[str, Any], members: list[Mapping[str, Any]], defs: Mapping[str, Any], depth: int
) -> dict[str, Any]:
    nullable = any(member.get("type") == "null" for member in members)
    kinds = [_reduce(m, defs, depth + 1) for m in members if m.get("type") != "null"]
    if all(kind["type"] == "OBJECT" for kind in kinds) and len(kinds) > 1:
        out: dict[str, Any] = {"type": "OBJECT", "properties": {}}
        for kind in kinds:
            for name, child in kind["properties"].items():
                out["properties"][name] = _join(out["properties"].get(name), child)
        required = set.intersection(*(set(kind.get("required", [])) for kind in kinds))
        if required:
            out["required"] = sorted(required)
    else:
        out = kinds[0]
    if "description" in schema:
        out["description"] = schema["description"]
    if nullable:
        out["nullable"] = True
    return out


def _join(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """A property that several members of a union have; their choices (a discriminator's) add up."""
    if one is None or "enum" not in one or "enum" not in other:
        return one or other
    return one | {"enum": list(dict.fromkeys([*one["enum"], *other["enum"]]))}


def _first_text(details: list[dict[str, Any]], key: str) -> str:
    return next((d[key] for d in details if isinstance(d.get(key), str)), "")


def _quotas(details: list[dict[str, Any]]) -> list[str]:
    violations = [v for d in details for v in d.get("violations", []) if isinstance(v, dict)]
    return [str(v.get("quotaId", "")) for v in violations]
