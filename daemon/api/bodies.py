"""Request bodies, read with suspicion: what is refused is refused before it costs anything.

    size (while reading) -> nesting -> JSON: duplicate keys, numbers, strings -> the model

Python's json accepts what Postgres refuses (NUL, lone surrogates, NaN) and what is ambiguous (duplicate
keys); pydantic then reads the same bytes strictly: no "1" for 1, no true for 1.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError

from daemon.api.problems import TimedOut, read_failures
from daemon.errors import InvalidInput, MalformedBody, TooLarge, UnsupportedMedia
from daemon.settings import Http

MAX_DEPTH = 32
MAX_PARTS = 60_000
MAX_VALUES = 120_000
MAX_STRING = 100_000
MAX_DIGITS = 100

# Possessive, and the closing quote may lack: these bytes are no JSON yet, and no part of them is looked at twice.
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)

BODY: web.RequestKey[bytes] = web.RequestKey("body", bytes)
"""`request[BODY]`: the body, when somebody has read it already."""

Model = TypeVar("Model", bound=BaseModel)
Anything = TypeVar("Anything")


async def read_bytes(request: web.Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Errors: TooLarge as soon as it is known, TimedOut."""
    if BODY in request:
        return request[BODY]
    declared = request.content_length
    if declared is not None and declared > max_bytes:
        raise _too_large(max_bytes)
    if not request.body_exists:
        return b""
    content = request.content
    if content.is_eof():  # it came with the headers: the usual case
        whole = content.read_nowait()
        if len(whole) > max_bytes:
            raise _too_large(max_bytes)
        return whole
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError as exc:
        raise TimedOut(f"The body did not arrive within {timeout_s:g} s.") from exc
    except (web.RequestPayloadError, web.PayloadAccessError) as exc:
        raise MalformedBody("The body cannot be read: its encoding is broken.") from exc
    return bytes(body)


async def read_json(request: web.Request, http: Http) -> tuple[Any, bytes]:
    """The document and its bytes, within the limits of the settings. Errors: UnsupportedMedia, TooLarge, MalformedBody, TimedOut."""
    if request.headers.get("Content-Type") != "application/json" and (  # parsing it costs 10 us
        request.content_type != "application/json" or (request.charset or "utf-8").lower() != "utf-8"
    ):
        raise UnsupportedMedia(
            "This call takes application/json in UTF-8.", hint="Send `Content-Type: application/json`."
        )
    if "Content-Encoding" in request.headers:
        raise UnsupportedMedia("Compressed bodies are not taken.", hint="Send the body as it is.")
    body = await read_bytes(request, max_bytes=http.max_body_bytes, timeout_s=http.body_timeout_s)
    return parse(body), body


async def read_optional_json(request: web.Request, http: Http) -> bytes:
    """The bytes of a document that may be left out, then those of an empty object. Errors: as read_json's."""
    request[BODY] = await read_bytes(request, max_bytes=http.max_body_bytes, timeout_s=http.body_timeout_s)
    if not request[BODY]:
        return b"{}"
    _, body = await read_json(request, http)
    return body


def parse(body: bytes) -> Any:
    """The document in the bytes. Errors: MalformedBody."""
    containers = body.count(b"[") + body.count(b"{")
    # A megabyte of them would hold the loop: half a second when they are right, ten when they are wrong.
    if containers + body.count(b":") > MAX_PARTS:
        raise MalformedBody(f"The document has more than {MAX_PARTS} lists, objects and keys.")
    if containers + body.count(b",") > MAX_VALUES:
        raise MalformedBody(f"The document has more than {MAX_VALUES} values.")
    if containers > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        raise MalformedBody(f"The document is nested more than {MAX_DEPTH} deep.")
    try:
        document = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise MalformedBody("The body is not UTF-8.") from exc
    except json.JSONDecodeError as exc:
        raise MalformedBody(
            f"The body is no JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}."
        ) from exc
    except RecursionError as exc:
        raise MalformedBody(f"The document is nested more than {MAX_DEPTH} deep.") from exc
    # Only an escape can smuggle in NUL or half a surrogate pair; only a long body holds a long string.
    if b"\\u" in body or len(body) > MAX_STRING:
        _check_strings(document)
    return document


def validate(model: TypeAdapter[Anything], body: bytes) -> Anything:
    """What the model makes of the bytes, read strictly. Errors: InvalidInput naming each wrong field."""
    try:
        return model.validate_json(body, strict=True)
    except ValidationError as exc:
        raise read_failures(exc) from exc


def read_query(request: web.Request, model: type[Model]) -> Model:
    """The query string by its model; a name that the model lists as a tuple may come comma-separated.

    Errors: InvalidInput for unknown, repeated and wrong parameters.
    """
    query = request.query
    if len(query) != len(set(query)):
        raise InvalidInput("A query parameter stands twice.", hint="Separate several values by commas.")
    for name, value in query.items():
        if "\x00" in value or not value.isprintable():
            raise InvalidInput(f"The query parameter `{name[:50]}` holds characters that are not taken.")
    try:
        return model.model_validate_strings(dict(query))
    except ValidationError as exc:
        raise read_failures(exc) from exc


def _depth(body: bytes) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(body):
        first = body[match.start()]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise MalformedBody(f"The key {twice[:50]!r} stands twice in one object.")
    return made


def _no_constant(name: str) -> Any:
    raise MalformedBody(f"{name} is no JSON value.")


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise MalformedBody(f"A number has more than {MAX_DIGITS} digits.")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > MAX_DIGITS:
        raise MalformedBody(f"A number has more than {MAX_DIGITS} digits.")
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise MalformedBody("A number is outside the range of double precision.")
    return value


def _check_strings(value: Any) -> None:
    """Refuse what Postgres cannot hold. Depth is bounded by then."""
    if isinstance(value, str):
        if len(value) > MAX_STRING:
            raise MalformedBody(
                f"A string has more than {MAX_STRING} characters.", hint="Photos go to POST /v1/uploads."
            )
        if "\x00" in value:
            raise MalformedBody("A string holds NUL, which cannot be stored.")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise MalformedBody("A string holds a lone surrogate, which is no character.") from exc
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_strings(name)
            _check_strings(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_strings(inner)


# json.loads would build a decoder for each call that has hooks.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_int, parse_float=_float
)


def _too_large(max_bytes: int) -> TooLarge:
    size = f"{max_bytes // (1 << 20)} MiB" if max_bytes >= 1 << 20 else f"{max_bytes} bytes"
    return TooLarge(f"The body is larger than {size}.", data={"max_bytes": max_bytes})
