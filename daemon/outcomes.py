"""How an attempt ended: whatever a handler returned or raised, turned into the one row the flush writes.

The single place that decides between another attempt, failure and handing back. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.errors import (
    Fate,
    InvalidInput,
    ListingdError,
    ProviderError,
    Reject,
    Retry,
    Unavailable,
)
from daemon.jobs import ClaimedJob, State, backoff_s
from daemon.json_text import write_json
from daemon.queue import Ended
from daemon.settings import Retry as RetrySettings

PARKED_S = 60.0
"""Seconds after which a job comes back that waits for a provider's account or for the database."""


def problem(error: ListingdError) -> dict[str, Any]:
    """The JSON object kept as a job's error: code, message, hint, and the provider's own words."""
    document: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.hint:
        document["hint"] = error.hint
    if isinstance(error, InvalidInput) and error.errors:
        document["errors"] = [
            {"pointer": e.pointer, "code": e.code, "detail": e.detail} for e in error.errors
        ]
    if isinstance(error, ProviderError):
        document["provider"] = error.provider
        if error.request_id:
            document["provider_request_id"] = error.request_id
    for key in ("findings", "missing", "items", "paid", "measured", "rule", "reasons", "lane"):
        if key in error.data:
            document[key] = error.data[key]
    return document


def completed(job: ClaimedJob, result: Any) -> Ended:
    """A handler returned. Errors: TypeError when the result is no JSON."""
    return Ended(job.fence, State.COMPLETED, None if result is None else write_json(result))


def failed(job: ClaimedJob, error: ListingdError, retry: RetrySettings) -> Ended:
    """A handler raised: what follows from the kind of error."""
    document = problem(error)
    match error:
        case Retry(counts_attempt=False):
            return _hand_back(job, document, error.after_s)
        case Retry():
            return _try_again(job, document, retry, error.after_s)
        case ProviderError(fate=Fate.PERMANENT) | Reject() | InvalidInput():
            return _give_up(job, document)
        case ProviderError(fate=Fate.BUDGET | Fate.CONFIG):
            return _hand_back(job, document, error.retry_after_s or PARKED_S)
        case ProviderError():
            return _try_again(job, document, retry, error.retry_after_s or 0.0)
        case Unavailable():  # our own database or storage: nobody's fault, no attempt spent
            return _hand_back(job, document, float(error.data.get("retry_after_s", 1)))
        case _:
            return _give_up(job, document)


def crashed(job: ClaimedJob, exc: BaseException, retry: RetrySettings) -> Ended:
    """Anything else that escaped a handler is a bug: retried as an unknown failure, without its text (which
    may hold a secret); the log has the traceback.
    """
    document = {
        "code": "handler_failed",
        "message": f"The {job.kind} handler failed unexpectedly ({type(exc).__name__}).",
        "hint": "The daemon's log has the traceback under this job_id.",
    }
    return _try_again(job, document, retry, 0.0)


def timed_out(job: ClaimedJob, limit_s: float, retry: RetrySettings) -> Ended:
    """The attempt was stopped at its deadline; tried again like any passing failure."""
    document = {
        "code": "timed_out",
        "message": f"The attempt took longer than {limit_s:g} s.",
        "hint": "See LISTINGD_WORKERS__ATTEMPT_TIMEOUTS_S.",
    }
    return _try_again(job, document, retry, 0.0)


def cancelled(job: ClaimedJob) -> Ended:
    """Stopped because its user asked for it."""
    document = {"code": "cancelled", "message": "The job was cancelled."}
    return Ended(job.fence, State.CANCELLED, error_text=write_json(document))


def not_storable(job: ClaimedJob, exc: Exception) -> Ended:
    """What the handler returned is JSON, and still nothing that the database can hold (a number without end)."""
    document = {
        "code": "not_storable",
        "message": f"The database cannot hold the result of this job: {exc}.",
        "hint": "The handler must return something else; a retry would end the same way.",
    }
    return _give_up(job, document)


def interrupted(job: ClaimedJob) -> Ended:
    """Stopped with the process: pending again at once, the attempt given back."""
    return Ended(job.fence, State.PENDING, gives_back=1)


def _hand_back(job: ClaimedJob, document: Mapping[str, Any], delay_s: float) -> Ended:
    return Ended(
        job.fence, State.PENDING, error_text=write_json(document), delay_s=max(delay_s, 0.05), gives_back=1
    )


def _try_again(
    job: ClaimedJob, document: Mapping[str, Any], retry: RetrySettings, at_least_s: float
) -> Ended:
    if job.attempt >= job.max_attempts:
        return _give_up(job, document)
    delay_s = backoff_s(job.attempt, base_s=retry.base_s, cap_s=retry.cap_s, at_least_s=at_least_s)
    return Ended(job.fence, State.PENDING, error_text=write_json(document), delay_s=delay_s)


def _give_up(job: ClaimedJob, document: Mapping[str, Any]) -> Ended:
    return Ended(job.fence, State.FAILED, error_text=write_json(document))
