"""One client connection: aiohttp's, with deadlines for requests that never come and no word about versions.

A connection has `header_timeout_s` to send a whole request head, from its opening or from the first byte of
a later request; bodies have a deadline where they are read (bodies.py); idle ones end by keep-alive. The
kernel drops a peer that acknowledges nothing for 30 s, so that a reader that never reads holds nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web

from daemon import logs
from daemon.api.door import VISIT
from daemon.api.problems import CONTENT_TYPE, Problem

UNREAD_MS = 30_000
_NO_HTTP = "The request is no HTTP that can be read."

log = logs.get_logger()


class Connection(web.RequestHandler):
    """What aiohttp makes for each connection; `count` is told of its opening and closing."""

    __slots__ = ("_counted", "head_since")

    def __init__(
        self, server: web.Server, count: Callable[[Connection, int], None], loop: asyncio.AbstractEventLoop,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(server, loop=loop, **options)
        self._counted = count
        self.head_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.head_since = self._loop.time()
        self._counted(self, 1)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._counted(self, -1)

    async def start(self) -> None:
        try:
            await super().start()
        except ValueError:  # aiohttp reads the host of an absolute URI outside its own care: `http://xn--a/`
            if self.transport is not None:
                problem = Problem(400, "bad_request", _NO_HTTP)
                self.transport.write(_write_last("400 Bad Request", problem))
            self.force_close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # aiohttp's waiter is there while no request is complete: then these bytes are part of a head.
        waiter = self._waiter
        if waiter is None or waiter.done():
            self.head_since = None
        elif self.head_since is None:
            self.head_since = self._loop.time()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to bytes that are no HTTP (400), and to a bug of ours (500), which is logged here."""
        visit = request.get(VISIT)
        request_id = visit.id if visit else "unread"
        if status >= 500:
            log.error(
                "http.failed", method=request.method, path=request.path, request_id=request_id,
                error=type(exc).__name__, exc_info=exc,
            )  # fmt: skip
            if request.writer.output_size > 0:
                raise ConnectionError("The head is out; the client must see that the body is cut.")
            problem = Problem(
                500, "internal", "A bug of ours; the log has it under the request id.", close=True
            )
        else:
            problem = Problem(400, "bad_request", _NO_HTTP, close=True)
        response = problem.answer(request_id)
        response.headers["Server"] = "listingd"
        response.headers["X-Request-Id"] = request_id
        return response


class Refused(asyncio.Protocol):
    """Answers 503 to whoever connects, and hangs up: all connections are taken."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        problem = Problem(503, "too_many_connections", "All connections are taken.")
        transport.write(_write_last("503 Service Unavailable", problem, "Retry-After: 2\r\n"))
        transport.close()


def _write_last(status: str, problem: Problem, more: str = "") -> bytes:
    """A whole answer for a connection that is closed after it; more: further header lines."""
    body = problem.answer("unread").body
    assert isinstance(body, bytes)
    head = (
        f"HTTP/1.1 {status}\r\nServer: listingd\r\nX-Request-Id: unread\r\nContent-Type: {CONTENT_TYPE}\r\n{more}"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
