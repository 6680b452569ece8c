"""Small makers of answers that several topics share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from daemon.views import dump

MAX_WAIT_S = 60
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*(\"?)(\d{1,6})\1\s*(?:$|[,;])", re.IGNORECASE)


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer. body: JSON text, or what `dump` takes."""
    text = body if isinstance(body, str) else dump(body)
    return web.Response(
        body=text.encode("utf-8", "backslashreplace"),
        status=status,
        headers=headers,
        content_type="application/json",
    )


def etag(version: int) -> str:
    """Of a job's version. Weak: what moves without a change of the job (queue_position) is no reason to read it again."""
    return f'W/"{version}"'


def matches(request: web.Request, tag: str) -> bool:
    """Whether If-None-Match names this entity tag, weakly compared (RFC 9110 section 13.1.2)."""
    given = request.headers.get("If-None-Match")
    if given is None:
        return False
    bare = tag.removeprefix("W/")
    return given.strip() == "*" or any(part.strip().removeprefix("W/") == bare for part in given.split(","))


def read_wait_s(request: web.Request) -> int:
    """Seconds of `Prefer: wait=N`, at most 60; 0 without it (RFC 7240 section 4.3)."""
    given = request.headers.get("Prefer")
    if given is None:
        return 0
    found = _WAIT.search(",".join(request.headers.getall("Prefer")))
    return min(int(found[2]), MAX_WAIT_S) if found else 0
