"""The HTTP server: the application of all routes, and the socket it listens on.

    build_app(deps)  -> web.Application      routes, one middleware, one hook
    serve(app, …)    -> the URL, for the length of a block

Must never decide anything about jobs: that is below. The floor of imports is daemon/api.
"""

from __future__ import annotations

import asyncio
import functools
import resource
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from daemon.api import (
    admin,
    assets,
    events,
    explain,
    jobs,
    openapi,
    projects,
    schedules,
    steering,
    system,
    tokens,
    uploads,
    usage,
    webhooks,
)
from daemon.api.connection import Connection, Refused
from daemon.api.deps import ApiDeps
from daemon.api.door import Door
from daemon.api.feed import Feed
from daemon.api.idempotency import with_keys
from daemon.api.routing import Route
from daemon.errors import Misconfigured
from daemon.providers.protocols import Providers
from daemon.settings import Settings
from daemon.tokens import ServiceKeys

FEED: web.AppKey[Feed] = web.AppKey("feed", Feed)
ROUTES: web.AppKey[tuple[Route, ...]] = web.AppKey("routes", tuple)

RESERVED_DESCRIPTORS = 128
"""Kept for the database, storage, providers and logs, besides the pool's own."""
_BACKLOG = 1024


def list_operator_routes(deps: ApiDeps, keys: ServiceKeys, providers: Providers) -> tuple[Route, ...]:
    """The topics with dependencies of their own. keys: the authenticator's, so that a revocation counts at once."""
    return (
        *tokens.routes(deps),
        *webhooks.routes(deps),
        *usage.routes(deps, providers),
        *admin.routes(deps, keys),
        *steering.routes(deps),
        *schedules.routes(deps),
    )


def build_app(deps: ApiDeps, more: Iterable[Route] = ()) -> web.Application:
    """The application. more: `list_operator_routes`.

    `app[FEED].run()` must be running for streams and long polls to see anything move; `serve` sees to it.
    """
    feed = Feed(deps.views, deps.changes)
    table = (
        *jobs.routes(deps, feed),
        *explain.routes(deps),
        *events.routes(deps, feed),
        *assets.routes(deps),
        *uploads.routes(deps),
        *projects.routes(deps),
        *more,
        *system.routes(deps, lambda: document()),
    )
    table = with_keys(table, deps.db, deps.settings.http)

    @functools.cache  # 0.1 s of CPU that few processes are ever asked for
    def document() -> dict[str, Any]:
        return openapi.make_document(
            table, version=system.read_version(), url=deps.settings.http.public_url or "/"
        )

    door = Door(deps, table)
    app = web.Application(middlewares=[door.answer], client_max_size=deps.settings.http.max_upload_bytes)
    an_id = _match_ids(route.path for route in table)
    for route in table:
        path = route.path.replace("{id}", an_id)
        app.router.add_route(route.method, path, route.handle, expect_handler=door.go_on)
        if route.method == "GET" and not route.token_in_query:
            app.router.add_route("HEAD", path, route.handle)
    app.on_response_prepare.append(door.dress)
    app[FEED] = feed
    app[ROUTES] = table

    async def end_streams(_: web.Application) -> None:
        feed.close()

    app.on_shutdown.append(end_streams)
    return app


def _match_ids(paths: Iterable[str]) -> str:
    """What stands for {id} in a path: one segment that is no fixed path's, as `batch` in /v1/jobs/batch is."""
    known = set(paths)
    fixed = (path.rpartition("/") for path in known)
    words = sorted(last for parent, _, last in fixed if f"{parent}/{{id}}" in known and last != "{id}")
    return f"{{id:(?!(?:{'|'.join(words)})(?:/|$))[^/]+}}"


@asynccontextmanager
async def serve(
    app: web.Application, settings: Settings, sockets: Sequence[socket.socket] = ()
) -> AsyncIterator[str]:
    """The application on systemd's socket or on the settings' host and port; gives its URL.

    At the end event streams are closed and open requests get the hard-stop time. Errors: Misconfigured.
    """
    server = HttpServer(app, settings)
    url = await server.start(sockets[0] if sockets else None)
    reader = asyncio.create_task(app[FEED].run(), name="feed")  # never ends by itself
    try:
        yield url
    finally:
        await server.stop()
        reader.cancel()


class HttpServer:
    """One listening socket. start, then stop_accepting and stop; not to be used again after."""

    def __init__(self, app: web.Application, settings: Settings) -> None:
        http = settings.http
        self._http = http
        self._options: dict[str, Any] = {
            "access_log": None,
            "keepalive_timeout": http.keepalive_s,
            "lingering_time": 5.0,
            "max_line_size": 8190,
            "max_field_size": 8190,
            "auto_decompress": False,
        }
        self._runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=settings.workers.hard_stop_s, **self._options
        )
        self._max_connections = min(http.max_connections, _spare_descriptors(settings.database.pool_size))
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self, sock: socket.socket | None = None) -> str:
        """Listen on the socket given (systemd's), else on the host and port of the settings; the URL.

        Errors: Misconfigured when the address is in use or not ours.
        """
        loop = asyncio.get_running_loop()
        await self._runner.setup()

        def connect() -> asyncio.Protocol:
            if len(self._connections) >= self._max_connections or self._runner.server is None:
                return Refused()
            return Connection(self._runner.server, self._count, loop, **self._options)

        try:
            if sock is not None:
                self._server = await loop.create_server(connect, sock=sock, backlog=_BACKLOG)
            else:
                self._server = await loop.create_server(
                    connect, self._http.host, self._http.port, backlog=_BACKLOG
                )
        except OSError as exc:
            await self._runner.cleanup()
            raise Misconfigured(
                f"Cannot listen on {self._http.host}:{self._http.port}: {exc.strerror or exc}.",
                code="address_in_use",
                hint="Stop what uses the port, or correct LISTINGD_HTTP__HOST or LISTINGD_HTTP__PORT.",
            ) from exc
        self._look_for_slow_heads()
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def stop_accepting(self) -> None:
        """Refuse new connections; those that are open go on."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """End event streams, let open requests finish for the hard-stop time, close everything."""
        self.stop_accepting()
        if self._sweep is not None:
            self._sweep.cancel()
        await self._runner.cleanup()

    def _count(self, connection: Connection, change: int) -> None:
        if change > 0:
            self._connections.add(connection)
        else:
            self._connections.discard(connection)

    def _look_for_slow_heads(self) -> None:
        """Close connections whose request head is overdue. One timer for all of them."""
        loop = asyncio.get_running_loop()
        overdue = loop.time() - self._http.header_timeout_s
        for connection in list(self._connections):
            if connection.head_since is not None and connection.head_since < overdue:
                connection.force_close()
        self._sweep = loop.call_later(min(1.0, self._http.header_timeout_s / 4), self._look_for_slow_heads)


def _spare_descriptors(pool_size: int) -> int:
    """How many connections fit under the limit of open files, which is raised as far as allowed first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft == resource.RLIM_INFINITY:
        return 1_000_000
    return max(16, soft - pool_size - RESERVED_DESCRIPTORS)
