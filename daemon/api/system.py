"""livez, readyz, version, metrics, problem pages, the start page and the page that shows the document."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aiohttp import web

from daemon import metrics
from daemon.api import models
from daemon.api.access import no_such
from daemon.api.answers import json_answer
from daemon.api.deps import ApiDeps
from daemon.api.problem_pages import PAGES
from daemon.api.routing import Answer, Route

_FOLDER = Path(__file__).parent.parent / "dashboard"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_DOCS_LINKS = re.compile(rb'<span id="docs">.*?</span>')
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def read_version() -> str:
    """The installed version, or 0 in a bare checkout."""
    try:
        return version("listingd")
    except PackageNotFoundError:
        return "0"


def routes(deps: ApiDeps, document: Callable[[], dict[str, Any]]) -> list[Route]:
    """The routes of this topic. document: gives the OpenAPI document once all routes are known."""
    pages = {path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}
    if not deps.settings.http.docs:
        pages["index.html"] = _DOCS_LINKS.sub(b"", pages["index.html"])
    about = {"version": read_version(), "api": "v1"}

    async def livez(_: web.Request) -> web.Response:
        return json_answer({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        found = await deps.readiness()
        state = "ready" if found.ready else "not_ready"
        headers = None if found.ready else {"Retry-After": "2"}
        return json_answer(
            {"status": state, "components": dict(found.components)}, 200 if found.ready else 503, headers
        )

    async def read_about(_: web.Request) -> web.Response:
        return json_answer(about)

    async def read_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def read_document(_: web.Request) -> web.Response:
        return json_answer(await asyncio.to_thread(document))

    async def read_start(_: web.Request) -> web.Response:
        return _page(pages["index.html"], "text/html")

    async def read_docs(_: web.Request) -> web.Response:
        return _page(pages["docs.html"], "text/html")

    async def read_file(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in pages:
            raise no_such("page")
        return _page(pages[name], _TYPES["." + name.rpartition(".")[2]])

    async def read_problem(request: web.Request) -> web.Response:
        code = request.match_info["code"]
        page = PAGES.get(code)
        if page is None:
            raise no_such("page")
        title = html.escape(page.title)
        advice = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(page.advice))
        text = (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
            '<link rel="icon" href="data:,"><link rel="stylesheet" href="/static/style.css">'
            f'<main><p><a href="/">listingd</a></p><h1>{title}</h1>'
            f"<p><code>{code}</code></p><p>{advice}</p></main></html>"
        )
        return _page(text.encode(), "text/html")

    text = {"type": "string"}
    found = Answer("A page.", text, content_type="text/html")
    shown = [
        Route("GET", "/", read_start, "Start page", "pages", None, answers={200: found}),
        Route("GET", "/static/{name}", read_file, "Files of the pages", "pages", None,
              answers={200: Answer("A file.", text, content_type="*/*")}, problems=(404,)),
        Route("GET", "/problems/{code}", read_problem, "What an error code means", "pages", None,
              answers={200: found}, problems=(404,)),
        Route("GET", "/livez", livez, "Whether the process lives", "system", None,
              description="Asks nothing of the database.", answers={200: Answer("It does.", models.Liveness)}),
        Route("GET", "/readyz", readyz, "Whether it takes work", "system", None,
              answers={200: Answer("It does.", models.Readiness), 503: Answer("Not now.", models.Readiness)}),
        Route("GET", "/version", read_about, "Version", "system", None,
              answers={200: Answer("The versions.", models.Version)}),
        Route("GET", "/metrics", read_metrics, "Prometheus metrics", "system", None,
              answers={200: Answer("Text format.", text, content_type="text/plain")}),
    ]  # fmt: skip
    if deps.settings.http.docs:
        shown += [
            Route("GET", "/openapi.json", read_document, "This document", "system", None,
                  answers={200: Answer("OpenAPI 3.1.", {"type": "object"})}),
            Route("GET", "/docs", read_docs, "A page to read it", "pages", None, answers={200: found}),
        ]  # fmt: skip
    return shown


def _page(body: bytes, content_type: str) -> web.Response:
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)
