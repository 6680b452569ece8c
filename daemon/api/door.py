"""The one middleware: who comes in, and how every answer goes out.

Host -> CORS preflight -> draining -> credentials -> scope -> rate -> Accept -> the handler
any ListingdError -> problem+json        every answer: ids, times, security headers
"""

from __future__ import annotations

import functools
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from os import urandom

from aiohttp import HttpVersion11, web
from prometheus_client import Counter

from daemon import logs, metrics
from daemon.api.deps import ApiDeps
from daemon.api.limits import RequestLimit
from daemon.api.principal import PRINCIPAL
from daemon.api.problems import Misdirected, NotAcceptable, describe, describe_http
from daemon.api.routing import Route
from daemon.errors import ListingdError, TooManyRequests, Unavailable

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SLOW_S = 1.0
_EXPOSED = (
    "Accept-Ranges, Content-Disposition, Content-Range, ETag, Idempotency-Replayed, Link, Location, "
    "Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, Server-Timing, X-Request-Id"
)
_ALLOWED = (
    "Authorization, Content-Type, Idempotency-Key, If-None-Match, If-Range, Last-Event-ID, Prefer, Range, "
    "X-Request-Id"
)
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": _ALLOWED,
    "Access-Control-Max-Age": "7200",
}
_SECURITY = {
    "Server": "listingd",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_NOTHING_LOADS = "default-src 'none'; frame-ancestors 'none'"
_COMPRESSED = frozenset({"application/json", "application/problem+json"})
_GZIP_FROM_BYTES = 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logs.get_logger()


@dataclass(slots=True)
class Visit:
    """What is known of one request while it is answered."""

    id: str
    started: float
    rate_limit: str | None = None


VISIT: web.RequestKey[Visit] = web.RequestKey("visit", Visit)


class Door:
    """The middleware and the hook that dresses answers. Each handler serves one route."""

    def __init__(self, deps: ApiDeps, routes: Iterable[Route]) -> None:
        http = deps.settings.http
        self._deps = deps
        self._routes = {route.handle: route for route in routes}
        self._makes = {route.handle: _made_types(route) for route in routes}
        self._hosts = frozenset(host.lower() for host in http.allowed_hosts)
        self._origins = frozenset(http.cors_origins)
        self._proxies = tuple(ipaddress.ip_network(network) for network in http.trusted_proxies)
        self._limit = RequestLimit(deps.settings.limits.requests_per_minute)
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._prefix = f"{urandom(5).hex()}-"
        self._count = 0

    async def go_on(self, request: web.Request) -> None:
        """Let the body come. What else is expected is refused in `answer`: aiohttp would answer it without a problem."""
        if _expects_what_we_do(request) and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer has not begun

    @web.middleware
    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let one request in and answer it, whatever happens."""
        given = request.headers.get("X-Request-Id")
        if given is None or not _REQUEST_ID.fullmatch(given):
            self._count += 1
            given = f"{self._prefix}{self._count:x}"
        visit = Visit(given, time.perf_counter())
        request[VISIT] = visit  # before it is cloned: aiohttp sends answers with the original
        if self._proxies:
            request = self._see_through_proxy(request)
        route = self._routes.get(request.match_info.handler)
        response: web.StreamResponse
        try:
            response = await self._admit(request, handler, route, visit)
        except (ListingdError, web.HTTPException) as exc:
            if request.writer.output_size > 0:
                raise  # the head is out: a second answer would be read as part of the body
            if isinstance(exc, TooManyRequests):
                visit.rate_limit = exc.data.get("rate_limit")
            problem = describe(exc) if isinstance(exc, ListingdError) else describe_http(exc)
            response = problem.answer(visit.id)
        if isinstance(response, web.Response):  # not a stream or a file, which have been sent by now
            self._compress(request, response)
            if self._deps.is_draining():
                response.force_close()
        self._note(request, route, response.status, visit)
        return response

    async def _admit(
        self, request: web.Request, handler: Handler, route: Route | None, visit: Visit
    ) -> web.StreamResponse:
        if (
            self._hosts
            and request.host.rpartition(":")[0].lower() not in self._hosts
            and (request.host.lower() not in self._hosts)
        ):
            raise Misdirected("This host name is not served here.")
        if not _expects_what_we_do(request):
            raise web.HTTPExpectationFailed
        if request.method == "OPTIONS" and self._is_preflight(request):
            return web.Response(status=204, headers=_PREFLIGHT)
        if route is None:
            return await handler(request)  # the router's own 404 or 405
        if route.scope is not None:
            if request.method not in ("GET", "HEAD") and self._deps.is_draining():
                raise Unavailable("The daemon is stopping.", code="draining", data={"retry_after_s": 2})
            principal = await self._deps.authenticator.authenticate(request)
            visit.rate_limit = self._limit.take(principal)
            principal.require(route.scope)
            request[PRINCIPAL] = principal
        accept = request.headers.get("Accept")
        if accept is not None and not _accepts(accept, self._makes[request.match_info.handler]):
            raise NotAcceptable("None of the content types that you accept is made here.")
        return await handler(request)

    async def dress(self, request: web.Request, response: web.StreamResponse) -> None:
        """Headers that every answer has; called when an answer is about to be sent."""
        headers = response.headers
        headers.update(_SECURITY)
        headers.setdefault("Cache-Control", "no-store")
        headers.setdefault("Content-Security-Policy", _NOTHING_LOADS)
        visit = request.get(VISIT)
        if visit is not None:
            headers["X-Request-Id"] = visit.id
            headers["Server-Timing"] = f"app;dur={(time.perf_counter() - visit.started) * 1000:.2f}"
            if visit.rate_limit is not None:
                headers["RateLimit"] = visit.rate_limit
                headers["RateLimit-Policy"] = self._limit.policy
        if self._origins:
            _vary(headers, "Origin", "Accept-Encoding")
            origin = request.headers.get("Origin")
            if origin in self._origins:
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = _EXPOSED

    def _is_preflight(self, request: web.Request) -> bool:
        return (
            request.headers.get("Origin") in self._origins
            and "Access-Control-Request-Method" in request.headers
        )

    @staticmethod
    def _compress(request: web.Request, response: web.Response) -> None:
        body = response.body
        if (
            isinstance(body, bytes)
            and len(body) >= _GZIP_FROM_BYTES
            and response.content_type in _COMPRESSED
            and _takes_gzip(request.headers.get("Accept-Encoding", ""))
        ):
            response.enable_compression(web.ContentCoding.gzip)
            _vary(response.headers, "Accept-Encoding")

    def _see_through_proxy(self, request: web.Request) -> web.Request:
        """The request with the client's own address, when our proxy says it.

        From the right: each address that a trusted proxy added is believed, the first other one is the client.
        """
        if not self._is_proxy(request.remote or ""):
            return request
        hops = [
            hop.strip() for line in request.headers.getall("X-Forwarded-For", []) for hop in line.split(",")
        ]
        for hop in reversed(hops):
            if not self._is_proxy(hop):
                try:
                    return request.clone(remote=str(ipaddress.ip_address(hop)))
                except ValueError:
                    return request
        return request

    def _is_proxy(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._proxies)

    def _note(self, request: web.Request, route: Route | None, status: int, visit: Visit) -> None:
        path = route.path if route else "none"
        method = request.method if route else "any"
        counter = self._counters.get((path, method, status))
        if counter is None:
            counter = metrics.HTTP_REQUESTS.labels(path, method, str(status))
            self._counters[path, method, status] = counter
        counter.inc()
        duration_s = time.perf_counter() - visit.started
        metrics.HTTP_RUN.observe(path, (duration_s,))
        # One line for each of 10 000 requests a second would cost more than answering them: what went
        # well and quickly is in the metrics.
        if status >= 400 or duration_s >= _SLOW_S:
            principal = request.get(PRINCIPAL)
            log.info(
                "http.answered",
                method=request.method, path=request.path, route=path, status=status,
                duration_s=round(duration_s, 4), principal=principal.id if principal else None,
                remote=request.remote, request_id=visit.id,
            )  # fmt: skip


def _vary(headers: MutableMapping[str, str], *names: str) -> None:
    """Add to what the answer was chosen by."""
    given = [name for name in headers.get("Vary", "").split(", ") if name]
    headers["Vary"] = ", ".join(dict.fromkeys((*given, *names)))


def _expects_what_we_do(request: web.Request) -> bool:
    return request.headers.get("Expect", "100-continue").lower() == "100-continue"


def _made_types(route: Route) -> frozenset[str]:
    described = [answer for answer in route.answers.values() if answer.model is not None]
    return frozenset({"application/json"}.union(*({a.content_type, *a.also} for a in described)))


@functools.lru_cache(maxsize=512)
def _accepts(accept: str, made: frozenset[str]) -> bool:
    """Whether one of the types made here satisfies an Accept header (RFC 9110 section 12.5.1)."""
    if "*/*" in made:
        return True
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if any(re.fullmatch(r"q\s*=\s*0(\.0*)?", parameter) for parameter in parameters):
            continue
        if kind in ("*/*", "") or kind in made or kind == "application/problem+json":
            return True
        if kind.endswith("/*") and any(name.startswith(kind[:-1]) for name in made):
            return True
    return False


@functools.lru_cache(maxsize=128)
def _takes_gzip(accept_encoding: str) -> bool:
    for part in accept_encoding.split(","):
        name, _, quality = part.partition(";")
        if name.strip().lower() in ("gzip", "*"):
            return not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", quality)
    return False
