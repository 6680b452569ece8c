"""A route as data: what the router registers and what the OpenAPI document is made from.

Each topic module gives `routes(deps) -> list[Route]`. One table serves both, so that a route cannot be
registered without being described.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One possible answer. model: a pydantic model or a JSON schema; None for no body."""

    description: str
    model: type[BaseModel] | Mapping[str, Any] | None = None
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)  # name -> description
    also: tuple[str, ...] = ()  # further content types, chosen by Accept


@dataclass(frozen=True, slots=True)
class Route:
    """One call of the API.

    scope: what the caller's credentials must allow; None: open to everybody, no credentials are read;
    query: model of the query string; headers: model of the request headers that it reads;
    body: model or JSON schema of the JSON body; uploads: content types it takes instead of JSON;
    problems: the error statuses it answers besides those of every route (400, 401, 403, 406, 429, 503);
    keyed: how a POST honours Idempotency-Key: its answer is kept, kept sealed since it shows a service key, or the
    handler sees to it (idempotency.py);
    token_in_query: a minted read token may come as `?token=` (browsers' EventSource sends no headers).
    """

    method: Literal["GET", "POST", "PATCH", "PUT", "DELETE"]
    path: str
    handle: Handle
    summary: str
    topic: str
    scope: str | None = "read"
    description: str = ""
    query: type[BaseModel] | None = None
    headers: type[BaseModel] | None = None
    body: type[BaseModel] | Mapping[str, Any] | None = None
    uploads: tuple[str, ...] = ()
    answers: Mapping[int, Answer] = field(default_factory=dict)
    problems: tuple[int, ...] = ()
    keyed: Literal["answer", "sealed", "by_itself"] = "answer"
    token_in_query: bool = False
