"""What providers' headers say about time and rate: Retry-After, x-ratelimit-*, X-RateLimit-*."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from daemon.providers.protocols import RateHint

# A server's delay of days, or a clock that is wrong, must not park a lane for good: after an hour at most
# one call looks again. Absurd values count as this hour, not as none: the server does want us to go away.
MAX_DELAY_S = 3600.0
MAX_DURATION = 64
"""Characters of a duration in words."""

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def cap_delay_s(seconds: float) -> float:
    """Between 0 and an hour; NaN (which compares false with everything) is an hour."""
    return max(0.0, seconds) if seconds < MAX_DELAY_S else MAX_DELAY_S


def parse_duration_s(text: str) -> float | None:
    """Seconds of `6m0s`, `20ms`, `1h2m3.5s`, `38s` (Google's too); None when it is nothing of the kind."""
    if len(text) > MAX_DURATION:  # the search below takes the square of it
        return None
    parts = _PART.findall(text)
    if not parts or "".join(n + unit for n, unit in parts) != text.strip():
        return None
    return cap_delay_s(sum(float(n) * _SECONDS[unit] for n, unit in parts))


def parse_retry_after_s(text: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds of a Retry-After header, a number or an HTTP date, capped; None when absent or unreadable.

    Source: RFC 9110 section 10.2.3.
    """
    if text is None:
        return None
    try:
        return cap_delay_s(float(text))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # a year or a zone beyond what C's integers hold
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return cap_delay_s((when - (now or datetime.now(UTC))).total_seconds())


def retry_after_s(headers: Mapping[str, str], *, is_throttled: bool) -> float | None:
    """The server's own delay: Retry-After (or OpenAI's finer retry-after-ms), else X-RateLimit-Reset.

    headers: case-insensitive. X-RateLimit-Reset is a Unix time (remove.bg) or seconds. It stands in every answer,
    so it is a delay only when the server refused for its rate (is_throttled).
    """
    millis = _number(headers.get("retry-after-ms"))
    if millis is not None:
        return cap_delay_s(millis / 1000)
    delay_s = parse_retry_after_s(headers.get("retry-after"))
    return _reset_s(headers.get("x-ratelimit-reset")) if delay_s is None and is_throttled else delay_s


def read_rate(headers: Mapping[str, str]) -> RateHint | None:
    """The window that the headers describe, in OpenAI's or in remove.bg's words; None when they do not."""
    hint = RateHint(
        limit=_count(headers, "x-ratelimit-limit-requests", "x-ratelimit-limit"),
        remaining=_count(headers, "x-ratelimit-remaining-requests", "x-ratelimit-remaining"),
        reset_s=_reset_s(headers.get("x-ratelimit-reset-requests", headers.get("x-ratelimit-reset"))),
        tokens_remaining=_count(headers, "x-ratelimit-remaining-tokens"),
        tokens_reset_s=_reset_s(headers.get("x-ratelimit-reset-tokens")),
    )
    return None if hint == RateHint() else hint


def rate_data(headers: Mapping[str, str]) -> dict[str, Any]:
    """`{"rate": {...}}` for ProviderError.data, or {}."""
    hint = read_rate(headers)
    return {} if hint is None else {"rate": {k: v for k, v in asdict(hint).items() if v is not None}}


def _reset_s(text: str | None) -> float | None:
    if text is None:
        return None
    number = _number(text)
    if number is None:
        return parse_duration_s(text)
    # A count of seconds is small, a Unix time large.
    return cap_delay_s(number - datetime.now(UTC).timestamp() if number > 1e8 else number)


def _count(headers: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        number = _number(headers.get(name))
        if number is not None and abs(number) < 1e15:
            return int(number)
    return None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
