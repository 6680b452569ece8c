"""Gemini's generateContent over REST, as google-generativeai (v1beta) and google-genai call it."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from aiohttp import web

from tests.protocol_servers.wire import Answer, Call, Fault, ProtocolServer, Refusal, count_tokens

_USD_IN, _USD_OUT = Decimal("0.75") / 1_000_000, Decimal("3.75") / 1_000_000
_STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 402: "RESOURCE_EXHAUSTED", 403: "PERMISSION_DENIED",
    404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # fmt: skip
# google-generativeai sends enums as their numbers.
_TYPE_NUMBERS = {1: "STRING", 2: "NUMBER", 3: "INTEGER", 4: "BOOLEAN", 5: "ARRAY", 6: "OBJECT"}
_KNOWN_SCHEMA_KEYS = frozenset({
    "type", "format", "description", "nullable", "enum", "items", "minItems", "maxItems", "properties",
    "required", "propertyOrdering",
})  # fmt: skip


class GeminiServer(ProtocolServer):
    """`url` is what both SDKs take as endpoint.

    replies: texts to answer with, one a call; when empty, `reply(body)` makes the text (default: the asked
    schema filled in). finish: the finish reason of the answers, also one the SDK does not know;
    thoughts_tokens: billed as output though absent from candidatesTokenCount; block_reason: blocks prompts.
    """

    name = "gemini"

    def __init__(self) -> None:
        super().__init__()
        self.replies: deque[str] = deque()
        self.reply: Callable[[dict[str, Any]], str] = fill_schema_of
        self.finish: str | int | None = "STOP"
        self.thoughts_tokens = 64
        self.block_reason: str | None = None
        self.bodies: list[dict[str, Any]] = []

    def routes(self) -> list[web.RouteDef]:
        return [web.post(r"/{version:v1|v1beta}/models/{call}", self._generate)]

    def error_body(self, fault: Fault, message: str) -> Any:
        error: dict[str, Any] = {"code": fault.status, "message": message}
        error["status"] = fault.type or _STATUS.get(fault.status, "UNKNOWN")
        if fault.details is not None:
            error["details"] = fault.details
        return {"error": error}

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        return await self.serve(request, work=self._work)

    async def _work(self, request: web.Request, call: Call) -> Answer:
        if request.headers.get("x-goog-api-key") != self.api_key:
            raise Refusal(400, None, "API key not valid.")
        model, _, verb = request.match_info["call"].partition(":")
        if verb != "generateContent" or not model:
            raise Refusal(404, None, "no such method")
        body = in_camel_case(await request.json())
        self.bodies.append(body)
        call.fields["model"] = model
        config = body.setdefault("generationConfig", {})
        if {"temperature", "topP", "topK"} & config.keys():
            raise Refusal(400, None, "deprecated sampling parameter")
        check_schema(config.get("responseSchema", {}))
        prompt_tokens = sum(_part_tokens(part) for content in body["contents"] for part in content["parts"])
        if self.block_reason:
            return self._answer({"promptFeedback": {"blockReason": self.block_reason}}, prompt_tokens, 0)
        text = self.replies.popleft() if self.replies else self.reply(body)
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
        if self.finish is not None:
            candidate["finishReason"] = self.finish
        return self._answer({"candidates": [candidate]}, prompt_tokens, math.ceil(len(text) / 4), model)

    def _answer(self, body: dict[str, Any], prompt_tokens: int, text_tokens: int, model: str = "") -> Answer:
        out = text_tokens + self.thoughts_tokens if text_tokens else 0
        usage = {
            "promptTokenCount": prompt_tokens,
            "candidatesTokenCount": text_tokens,
            "totalTokenCount": prompt_tokens + out,
        }
        body = body | {"usageMetadata": usage, "modelVersion": f"{model}-001"}
        cost = prompt_tokens * _USD_IN + out * _USD_OUT
        return Answer(json.dumps(body).encode(), "application/json", cost_usd=cost, usage=usage)


def in_camel_case(value: Any, *, keys_are_names: bool = False) -> Any:
    """The body with the API's own words in camelCase: it reads both spellings, the SDKs send either."""
    if isinstance(value, list):
        return [in_camel_case(item) for item in value]
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {}
    for key, child in value.items():
        head, *rest = [key] if keys_are_names else key.split("_")
        name = head + "".join(word.title() for word in rest)
        out[name] = in_camel_case(child, keys_are_names=name == "properties")
    return out


def check_schema(schema: dict[str, Any]) -> None:
    """Refuses, as the API does, words of JSON Schema that are not in its subset."""
    unknown = schema.keys() - _KNOWN_SCHEMA_KEYS
    if unknown:
        raise Refusal(400, None, f"unknown schema fields {sorted(unknown)}")
    for child in schema.get("properties", {}).values():
        check_schema(child)
    if "items" in schema:
        check_schema(schema["items"])


def fill_schema_of(body: dict[str, Any]) -> str:
    """A JSON text that fits the request's response schema."""
    schema = body.get("generationConfig", {}).get("responseSchema", {"type": "STRING"})
    return json.dumps(_fill(schema, "text"))


def _fill(schema: dict[str, Any], name: str) -> Any:
    kind = schema.get("type", "STRING")
    kind = _TYPE_NUMBERS[kind] if isinstance(kind, int) else str(kind).upper()
    if schema.get("enum"):
        return schema["enum"][0]
    if kind == "OBJECT":
        return {key: _fill(child, key) for key, child in schema.get("properties", {}).items()}
    if kind == "ARRAY":
        return [_fill(schema.get("items", {}), name) for _ in range(max(1, int(schema.get("minItems", 1))))]
    return {"INTEGER": 1, "NUMBER": 1.5, "BOOLEAN": True}.get(kind, f"A clear line about the {name}")


def _part_tokens(part: dict[str, Any]) -> int:
    return 258 if "inlineData" in part else count_tokens(part.get("text", ""))
