"""Errors as HTTP answers: the one place that knows which error is which status (RFC 9457).

    ListingdError --describe--> Problem {status, code, title, detail, ...} --> application/problem+json

Every code has an entry in problem_pages.PAGES, and a page at /problems/<code>. `instance` names the
request, not the path: an unknown id and somebody else's must answer the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import ValidationError

from daemon import errors
from daemon.api.problem_pages import PAGES
from daemon.payloads import INPUTS
from daemon.views import dump

CONTENT_TYPE = "application/problem+json"

STATUSES: dict[type[errors.ListingdError], int] = {
    errors.MalformedBody: 400,
    errors.Unauthenticated: 401,
    errors.BudgetSpent: 402,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.InvalidInput: 422,
    errors.TooManyRequests: 429,
    errors.Unavailable: 503,
    errors.Misconfigured: 503,
    errors.ProviderError: 503,
    errors.Reject: 422,
}
TITLES = {
    400: "The request cannot be read",
    401: "Credentials are missing or not valid",
    402: "The budget is spent",
    403: "The credentials do not allow this",
    404: "There is no such thing",
    405: "The method is not allowed here",
    406: "No such representation",
    408: "The request took too long to arrive",
    409: "Not possible in this state",
    410: "It is gone",
    413: "The request is too large",
    415: "The content type is not taken",
    416: "The file has no such part",
    417: "The expectation cannot be met",
    421: "This host is not served here",
    422: "The request is not valid",
    429: "Too many requests",
    500: "A bug of ours",
    503: "Not available right now",
}
MAX_SHOWN = 100
"""Wrong fields that a problem lists."""
MAX_FAILURES = 10_000
_RETRYABLE = frozenset({408, 429, 503})
_HTTP_CODES = {
    404: ("not_found", "There is nothing at this path."),
    405: ("method_not_allowed", "This path does not take this method."),
    413: ("too_large", "The request is too large."),
    417: ("expectation_failed", "Only `Expect: 100-continue` is understood."),
}


class NotAcceptable(errors.ListingdError):
    """None of the representations that the client accepts exists."""

    code = "not_acceptable"


class Misdirected(errors.ListingdError):
    """The Host header names none of ours."""

    code = "host_unknown"


class TimedOut(errors.ListingdError):
    """The body did not arrive in time."""

    code = "request_timeout"


class NoSuchPart(errors.ListingdError):
    """The file ends before the Range begins; `size_bytes` says where."""

    code = "range_unsatisfiable"


STATUSES |= {NotAcceptable: 406, Misdirected: 421, TimedOut: 408, NoSuchPart: 416}


@dataclass(frozen=True, slots=True)
class Problem:
    """One error as a client sees it; headers are those the status asks for."""

    status: int
    code: str
    detail: str
    fields: Sequence[errors.FieldError] = ()
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False

    def answer(self, request_id: str) -> web.Response:
        """The response, application/problem+json."""
        page = PAGES.get(self.code)
        body = {
            "type": f"/problems/{self.code}",
            "title": page.title if page else TITLES.get(self.status, "An error"),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "instance": f"urn:listingd:request:{request_id}",
            "request_id": request_id,
            "retryable": self.status in _RETRYABLE or self.code == "idempotency_in_flight",
            "errors": [
                {"pointer": f.pointer, "code": f.code, "detail": f.detail} for f in self.fields[:MAX_SHOWN]
            ],
        }
        response = web.Response(
            body=dump(body).encode("utf-8", "backslashreplace"),
            status=self.status,
            content_type=CONTENT_TYPE,
            headers=self.headers,
        )
        if self.close:
            response.force_close()
        return response


def describe(error: errors.ListingdError) -> Problem:
    """What a client is told of an error of ours."""
    status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
    headers: dict[str, str] = {}
    if "retry_after_s" in error.data:
        headers["Retry-After"] = str(max(1, round(float(error.data["retry_after_s"]))))
    elif status in (429, 503):
        headers["Retry-After"] = "2"
    elif status == 409 and error.code == "idempotency_in_flight":
        headers["Retry-After"] = "1"
    if status == 401:
        headers["WWW-Authenticate"] = str(error.data.get("challenge", 'Bearer realm="listingd"'))
    if status == 416:
        headers["Content-Range"] = f"bytes */{error.data['size_bytes']}"
    fields = error.errors if isinstance(error, errors.InvalidInput) else ()
    close = isinstance(error, TimedOut) or status == 413
    return Problem(status, error.code, str(error), fields, headers, close)


def describe_http(exc: web.HTTPException) -> Problem:
    """What a client is told of an error that the router or aiohttp found."""
    code, detail = _HTTP_CODES.get(exc.status, ("bad_request", "The request cannot be read."))
    headers = {}
    if isinstance(exc, web.HTTPMethodNotAllowed):
        headers["Allow"] = ", ".join(sorted({*exc.allowed_methods, "OPTIONS"}))
    status = exc.status if exc.status in _HTTP_CODES else 400
    return Problem(status, code, detail, (), headers, close=status == 413)


def read_failures(exc: ValidationError) -> errors.InvalidInput:
    """Pydantic's findings with a JSON pointer each; values of the caller are not repeated."""
    count = exc.error_count()
    if count > MAX_FAILURES:  # pydantic makes all of them or none: 0.3 s of the loop for 60 000
        raise errors.InvalidInput(f"The body has {count} wrong values.", code="invalid_input")
    found = []
    for failure in exc.errors(include_url=False, include_input=False)[:MAX_SHOWN]:
        pointer = "".join("/" + _escape(part) for part in _without_tag(failure["loc"]))
        detail = failure["msg"]
        if failure["type"] == "union_tag_invalid":  # it quotes the caller
            detail = "{discriminator} should be one of {expected_tags}".format_map(failure["ctx"])
        found.append(errors.FieldError(pointer, failure["type"], detail))
    first = found[0]
    more = f" ({count - 1} more)" if count > 1 else ""
    return errors.InvalidInput(
        f"{first.pointer or 'The body'}: {first.detail}.{more}", code="invalid_input", errors=found
    )


def _without_tag(where: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Pydantic puts the kind into the path of a field of a union; no document has it there."""
    at = 2 if where[:1] == ("jobs",) else 0
    return where[:at] + where[at + 1 :] if where[at : at + 1] and where[at] in INPUTS else where


def _escape(part: int | str) -> str:
    """One reference token of a JSON pointer (RFC 6901 section 3)."""
    return str(part).replace("~", "~0").replace("/", "~1")
