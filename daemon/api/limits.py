"""How many requests one caller may make: a bucket that refills all the time, per principal, in memory."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from daemon.api.principal import Principal
from daemon.errors import TooManyRequests

WINDOW_S = 60
REMEMBERED = 20_000


class RequestLimit:
    """Buckets of the last 20 000 callers. Service keys are not limited: they act for everybody."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = per_minute
        self._per_s = per_minute / WINDOW_S
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # id -> left, at
        self.policy = f'"requests";q={per_minute};w={WINDOW_S}'

    def take(self, principal: Principal) -> str | None:
        """Take one request; the RateLimit field, None for callers without a limit.

        Source: draft-ietf-httpapi-ratelimit-headers-10. Errors: TooManyRequests.
        """
        if principal.kind == "service":
            return None
        now = self._clock()
        left, at = self._buckets.get(principal.id, (float(self._size), now))
        left = min(self._size, left + (now - at) * self._per_s)
        if left < 1:
            wait_s = math.ceil((1 - left) / self._per_s)
            raise TooManyRequests(
                f"More than {self._size} requests in {WINDOW_S} s.",
                data={"retry_after_s": wait_s, "rate_limit": f'"requests";r=0;t={wait_s}'},
            )
        left -= 1
        self._buckets[principal.id] = (left, now)
        self._buckets.move_to_end(principal.id)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return f'"requests";r={int(left)};t={math.ceil((self._size - left) / self._per_s)}'
