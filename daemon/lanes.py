"""One lane for each provider and key: how many calls at once and a minute, shared by all jobs and daemons.

    turn ──▶ door (one of this process asks at a time) ──▶ take_turn, one statement ──▶ the call ──▶ end_turn
               │                                              │ not now
               └── closed a moment ago ───────────────────────┴──▶ wait up to 1 s, else Retry: the slot is free
                                                                   for other work, no attempt is spent

What is learned from a call is everybody's at once: a throttled call halves the calls in flight and keeps the
provider's own delay, a success adds one; an empty account or a refused key closes the lane for all daemons
and lets one probing call through after 60 s, then later and later, up to 15 minutes.
Jobs that are sent away come back one after another at the lane's own pace, not as a crowd.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from asyncpg import Record

from daemon import logs, metrics
from daemon.db import Database
from daemon.errors import Fate, Lost, ProviderError, Retry, Unavailable
from daemon.providers.protocols import RateHint
from daemon.settings import Settings
from daemon.shield import settle

PATIENCE_S = 1.0
"""A job waits so long for its turn in its slot; for more it gives the slot back."""
HORIZON_S = 300.0
"""Jobs are never sent away for longer: an operator may open the lane meanwhile."""
_RECHECK_S = 5.0
_THROTTLED = frozenset({429, 503, 529})

log = logs.get_logger()


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """One provider with one key. calls_per_minute: the account's limit; max_in_flight: over all daemons."""

    name: str
    provider: str
    max_in_flight: int
    calls_per_minute: float


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane as operators see it. allowed: calls in flight it allows now; paused_s: seconds until a probe may
    try; wait_s: seconds the provider told us to wait.
    """

    name: str
    provider: str
    allowed: int
    max_in_flight: int
    in_flight: int
    is_paused: bool
    paused_s: float
    pause_code: str | None
    pause_why: str | None
    is_probing: bool
    wait_s: float


@dataclass(frozen=True, slots=True)
class _Grant:
    worker: int
    taken_at: datetime
    began: float
    is_probe: bool


def plan_lanes(settings: Settings) -> dict[str, LaneLimits]:
    """The lanes of the configured providers, by provider name. Offline work needs none.

    A lane's name holds a short hash of key and address, so that another key has its own limits.
    """
    lanes: dict[str, LaneLimits] = {}

    def add(provider: str, secret: str, address: str | None, max_in_flight: int, per_minute: float) -> None:
        mark = hashlib.sha256(f"listingd lane\n{secret}\n{address}".encode()).hexdigest()[:8]
        lanes[provider] = LaneLimits(f"{provider}:{mark}", provider, max_in_flight, per_minute)

    o, c, g = settings.openai, settings.cutout, settings.gemini
    if o.api_key:
        per_minute = min(o.images_per_minute, o.requests_per_minute)
        add("openai", o.api_key.get_secret_value(), o.base_url, o.concurrency, per_minute)
    if c.effective_protocol != "offline":
        key = c.api_key.get_secret_value() if c.api_key else ""
        add(c.effective_protocol, key, c.base_url, c.concurrency, c.requests_per_minute)
    if g.api_key:
        add("gemini", g.api_key.get_secret_value(), g.base_url, g.concurrency, g.requests_per_minute)
    return lanes


class Lanes:
    """All lanes of this process. worker_id: the row of listingd.workers that our calls in flight hang on."""

    def __init__(
        self, db: Database, limits: Mapping[str, LaneLimits], worker_id: Callable[[], int | None]
    ) -> None:
        self._db = db
        self._lanes = {provider: Lane(db, lane, worker_id) for provider, lane in limits.items()}

    def find(self, provider: str) -> Lane | None:
        """The lane of a provider; None when it has none and may be called freely."""
        return self._lanes.get(provider)

    async def read(self) -> list[LaneState]:
        """The state of every lane that was ever used, over all daemons."""
        return [LaneState(**row) for row in await self._db.fetch("read_lanes")]

    async def resume(self, name: str) -> bool:
        """Open a paused lane by hand, and let the jobs it sent away come back; False when it was not paused."""
        if await self._db.fetchval("resume_lane", name) is None:
            return False
        await self._db.fetch("recall_parked", name)
        return True

    async def pause(self, name: str, *, for_s: float, why: str) -> bool:
        """Close a lane by hand for so many seconds, then a probing call opens it; False for an unknown lane."""
        return await self._db.fetchval("pause_lane", name, for_s, why) is not None

    def look_again(self) -> None:
        """An operator may have opened a lane: forget what was heard of it."""
        for lane in self._lanes.values():
            lane.look_again()

    async def prune(self) -> None:
        """Forget calls in flight of dead processes, and lanes that nobody uses."""
        await self._db.fetch("prune_lanes")


class Lane:
    """One lane, as this process uses it."""

    def __init__(self, db: Database, limits: LaneLimits, worker_id: Callable[[], int | None]) -> None:
        self.limits = limits
        self.in_flight = 0
        self._db = db
        self._worker_id = worker_id
        self._door = asyncio.Lock()
        self._freed = asyncio.Event()
        self._closed_until = 0.0
        self._closed: tuple[str, str] = ("", "")
        self._last_ticket = 0.0
        self._call_s = 2.0  # running mean of a call's duration, seconds
        self._allowed = float(limits.max_in_flight)

    def turn(self, price: float = 1.0) -> Turn:
        """`async with lane.turn():` around one call, which costs `price` of the calls per minute.

        Errors: Retry (no attempt counted) when the turn is not near. A ProviderError that leaves the block, or
        causes what leaves it, is learned from; a block without one that never said `turn.heard` has called nothing.
        """
        return Turn(self, price)

    def look_again(self) -> None:
        self._closed_until = 0.0

    async def enter(self, price: float) -> _Grant:
        """Wait for the turn. Errors: Retry."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        self._refuse_if_closed(loop.time())
        async with self._door:
            while True:
                self._refuse_if_closed(loop.time())
                worker = self._worker_id()
                if worker is None:
                    raise Unavailable("This process has no lease.", data={"retry_after_s": 1})
                self._freed.clear()
                row = await self._ask(worker, price)
                self._allowed = row["allowed"]
                metrics.LANE_LIMIT.labels(self.limits.provider).set(self._allowed)
                now = loop.time()
                if row["granted"]:
                    return self._grant(worker, row)
                wait_s: float | None = row["wait_s"]
                if wait_s is None:
                    if not await self._wait_for_a_free_place(deadline):
                        raise self._send_away(now, self._call_s / 2, row["code"], row["why"])
                elif now + wait_s <= deadline:
                    await asyncio.sleep(wait_s)
                else:
                    self._closed_until = now + min(wait_s, _RECHECK_S)
                    self._closed = (row["code"], row["why"])
                    raise self._send_away(now, wait_s, *self._closed)

    async def _ask(self, worker: int, price: float) -> Record:
        """The answer of take_turn. A turn that was granted to somebody who is cancelled meanwhile is given back: a
        probe that nobody ends would keep the lane closed for ten minutes.
        """
        asking = asyncio.create_task(
            self._db.fetchrow(
                "take_turn", self.limits.name, self.limits.provider, worker, self.in_flight,
                self.limits.max_in_flight, self.limits.calls_per_minute,
                math.floor(max(1.0, self.limits.calls_per_minute)), price,
            )
        )  # fmt: skip
        try:
            row = await settle(asking)
        except asyncio.CancelledError:
            if asking.done() and not asking.cancelled() and asking.exception() is None:
                row = asking.result()
                if row is not None and row["granted"]:
                    grant = self._grant(worker, row)
                    await self.leave(grant, "unused", price, not_before_s=None, code="", why="")
            raise
        assert row is not None  # the function always returns a row
        return row

    def _grant(self, worker: int, row: Record) -> _Grant:
        self.in_flight += 1
        return _Grant(worker, row["taken_at"], asyncio.get_running_loop().time(), row["is_probe"])

    async def leave(
        self, grant: _Grant, ended: str, price: float, *, not_before_s: float | None, code: str, why: str
    ) -> None:
        """Tell everybody how the call went. Never raises: the call's own outcome matters more."""
        loop = asyncio.get_running_loop()
        self.in_flight -= 1
        if ended == "ok":
            self._call_s += 0.2 * (loop.time() - grant.began - self._call_s)
        try:
            row = await settle(
                self._db.fetchrow(
                    "end_turn", self.limits.name, grant.worker, self.in_flight, grant.taken_at, ended,
                    grant.is_probe, price, not_before_s, code, why,
                )
            )  # fmt: skip
        except Unavailable:
            row = None  # the count of calls in flight is put right by the next turn
        finally:
            self._freed.set()
        if row is not None:
            self._tell(ended, row["paused_s"], row["opened_s"], not_before_s, row["allowed"], why)

    def _tell(
        self,
        ended: str,
        paused_s: float | None,
        opened_s: float | None,
        not_before_s: float | None,
        allowed: float,
        why: str,
    ) -> None:
        provider = self.limits.provider
        metrics.LANE_LIMIT.labels(provider).set(allowed)
        if paused_s is not None:
            log.error("provider.paused", provider=provider, why=why, until=f"{paused_s:.0f} s from now")
            metrics.LANE_PAUSED.labels(provider).set(1)
        elif opened_s is not None:
            log.info("provider.resumed", provider=provider, paused_s=round(opened_s, 1))
            metrics.LANE_PAUSED.labels(provider).set(0)
            self._closed_until = 0.0
        elif ended == "throttled":
            log.warning(
                "provider.throttled", provider=provider, retry_after_s=not_before_s, lane_limit=allowed
            )

    async def _wait_for_a_free_place(self, deadline: float) -> bool:
        """Whether a call of this process ended in time; those of others are looked for again later."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._freed.wait()
        except TimeoutError:
            return False
        return True

    def _refuse_if_closed(self, now: float) -> None:
        if now < self._closed_until:
            raise self._send_away(now, self._closed_until - now, *self._closed)

    def _send_away(self, now: float, wait_s: float, code: str, why: str) -> Retry:
        """Come back in `wait_s`, behind those who were sent away before, at the lane's own pace."""
        wait_s = min(wait_s, HORIZON_S)
        pace_s = max(60 / self.limits.calls_per_minute, self._call_s / max(self._allowed, 1.0))
        ticket = max(now + wait_s, self._last_ticket + pace_s)
        if ticket - now <= HORIZON_S:
            self._last_ticket = ticket
            after_s = ticket - now
        else:  # a long queue: spread it, so that at no time all or none of it is here
            after_s = wait_s + random.random() * HORIZON_S
        return Retry(
            f"The lane to {self.limits.provider} has no room now: {why}",
            after_s=after_s,
            counts_attempt=False,
            code="lane_closed",
            data={"lane": self.limits.name, "reason": code},
        )


class Turn:
    """One call's turn in a lane: `async with lane.turn() as turn`."""

    __slots__ = ("_grant", "_is_answered", "_lane", "_price", "_rate")

    def __init__(self, lane: Lane, price: float) -> None:
        self._lane = lane
        self._price = price
        self._grant: _Grant | None = None
        self._rate: RateHint | None = None
        self._is_answered = False

    def heard(self, rate: RateHint | None) -> None:
        """The provider has answered, and said this about its rate."""
        self._is_answered = True
        self._rate = rate

    async def __aenter__(self) -> Self:
        self._grant = await self._lane.enter(self._price)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._grant is not None  # entered
        delay_s, code, why = _delay_s(self._rate), "", ""
        refusal = exc if isinstance(exc, ProviderError) else exc and exc.__cause__
        if isinstance(refusal, ProviderError):
            ended, delay_s = _judge(refusal), refusal.retry_after_s
            code, why = refusal.code, refusal.message
            if delay_s is None and isinstance(rate := refusal.data.get("rate"), dict):
                delay_s = _delay_s(RateHint(**rate))
        elif self._is_answered:
            ended = "ok"
        elif exc is None or isinstance(exc, (Lost, Unavailable)):
            ended = "unused"  # there was nothing to call, or our own database said no before
        else:
            ended = "failed"  # cancelled, or a bug: nothing is known of the provider
        await self._lane.leave(self._grant, ended, self._price, not_before_s=delay_s, code=code, why=why)


def _judge(exc: ProviderError) -> str:
    match exc.fate:
        case Fate.BUDGET | Fate.CONFIG:
            return "paused"
        case Fate.PERMANENT:
            return "ok"  # it was read and judged: the account works
        case Fate.RETRY if exc.status in _THROTTLED:
            return "throttled"
        case _:
            return "failed"


def _delay_s(rate: RateHint | None) -> float | None:
    """Seconds to wait because the answer said that nothing is left of the window."""
    if rate is None:
        return None
    delays = [
        reset
        for left, reset in ((rate.remaining, rate.reset_s), (rate.tokens_remaining, rate.tokens_reset_s))
        if left == 0 and reset is not None
    ]
    return max(delays, default=None)
