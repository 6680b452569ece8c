"""Every error that listingd raises on purpose.

    ListingdError
      InvalidInput          the caller's fault, names the field          (422, or 400 for bytes that are no JSON)
      Unauthenticated       no or unusable credentials                   (401)
      Forbidden             good credentials, missing scope              (403)
      NotFound              unknown or somebody else's: never says which (404)
      Conflict              not in this state                            (409)
      Gone                  was here, is erased or pruned                (410)
      TooLarge              over a size limit                            (413)
      UnsupportedMedia      bytes of a type we do not take               (415)
      TooManyRequests       over a rate limit                            (429)
      BudgetSpent           the money is used up                         (402)
      Unavailable           database gone, draining, starting            (503)
      Misconfigured         the operator must change a setting           (exit code 2)
      ProviderError         an AI provider said no; `fate` says what follows
      Retry                 a handler asks for another attempt
      Reject                a handler gives up for good
      Lost                  the fence was raised: this attempt is no longer ours

`code` is stable and dotted or snake_case, `message` is one sentence saying what happened, `hint` what
the reader can do about it, `data` the fields. HTTP statuses live in api/problems.py alone.
Secrets, tokens and users' prompts must never get into any of the four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class ListingdError(Exception):
    """Root of the tree: `code`, `message`, `hint`, `data`."""

    code = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data: dict[str, Any] = dict(data or {})
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


def first_cause(exc: BaseException) -> str:
    """Why, in one line and in the words of what it came of: for the operator, never for a client."""
    cause = exc.__cause__ or exc
    return str(cause).partition("\n")[0] or type(cause).__name__


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: `pointer` is a JSON pointer into the request body (RFC 6901)."""

    pointer: str
    code: str
    detail: str


class InvalidInput(ListingdError):
    """A field or a document the caller must change; `errors` names each field."""

    code = "invalid_input"

    def __init__(self, message: str, *, errors: Sequence[FieldError] = (), **kw: Any) -> None:
        super().__init__(message, **kw)
        self.errors = tuple(errors)


class MalformedBody(InvalidInput):
    """Bytes that are no JSON document we read: bad UTF-8, NUL, NaN, duplicate keys, too deep."""

    code = "malformed_body"


class Unauthenticated(ListingdError):
    code = "unauthenticated"


class Forbidden(ListingdError):
    code = "forbidden"


class NotFound(ListingdError):
    code = "not_found"


class Conflict(ListingdError):
    code = "conflict"


class Gone(ListingdError):
    code = "gone"


class TooLarge(ListingdError):
    code = "too_large"


class UnsupportedMedia(ListingdError):
    code = "unsupported_media"


class TooManyRequests(ListingdError):
    """`data["retry_after_s"]` says when to come back."""

    code = "too_many_requests"


class BudgetSpent(ListingdError):
    code = "budget_spent"


class Unavailable(ListingdError):
    """Nothing was changed; the same call may succeed after `data["retry_after_s"]`."""

    code = "unavailable"


class Misconfigured(ListingdError):
    code = "misconfigured"


class Fate(StrEnum):
    """What a provider's error means for the job (facts: error classes)."""

    RETRY = "retry"  # counts an attempt, full-jitter backoff, never before retry_after_s
    AMBIGUOUS = "ambiguous"  # may have been billed: at most one more try, `unknown` in the ledger
    PERMANENT = "permanent"  # the job fails now
    BUDGET = "budget"  # no attempt counted; the provider's lane is paused for everybody
    CONFIG = "config"  # as budget, but a person must change a key, model or URL


class ProviderError(ListingdError):
    """A provider refused, failed or could not be understood.

    `message` can be shown to a seller; `fate` decides what follows; `retry_after_s` is the server's own
    delay (seconds) when it gave one; `request_id` is the provider's id for its support desk.
    """

    code = "provider_failed"

    def __init__(
        self,
        message: str,
        *,
        provider: str,
        fate: Fate,
        retry_after_s: float | None = None,
        request_id: str | None = None,
        status: int | None = None,
        **kw: Any,
    ) -> None:
        super().__init__(message, **kw)
        self.provider = provider
        self.fate = fate
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        self.status = status


class Retry(ListingdError):
    """A handler asks to be run again, not earlier than `after_s` seconds from now.

    With `counts_attempt=False` the attempt is given back (a paused lane, a spent budget).
    """

    code = "retry"

    def __init__(self, message: str, *, after_s: float = 0.0, counts_attempt: bool = True, **kw: Any) -> None:
        super().__init__(message, **kw)
        self.after_s = after_s
        self.counts_attempt = counts_attempt


class Reject(ListingdError):
    """A handler gives up for good: the job fails now with this code, message and hint."""

    code = "rejected"


class Lost(ListingdError):
    """A fenced write matched no row: another attempt, a cancel or an erase came first. Stop at once."""

    code = "lost"
