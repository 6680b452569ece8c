"""The words of a job: its states, what is asked for, one attempt in hand, backoff. No I/O.

    pending --claim--> processing --> completed | failed | cancelled        (final)
       ^                  |  |
       |   retry, release |  +--> waiting (children run; holds no worker) --> pending
       +------------------+
    failed, cancelled --explicit retry--> pending

A retry between attempts is `pending` with a later `run_at`.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID


class State(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})


@dataclass(slots=True)
class NewJob:
    """What a caller asks for. `input` is a JSON object already validated against payloads.INPUTS.

    Not to be changed, but not frozen either: that takes three times as long to build, and every create pays for it.
    """

    kind: str
    input: Mapping[str, Any]
    user_id: str = ""
    project_id: UUID | None = None
    priority: int = 0
    run_at: datetime | None = None
    expires_at: datetime | None = None
    max_attempts: int = 4
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    webhook: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """One job a parent spawns; it inherits user, project, priority and max_attempts.

    `slot` names it inside the parent (unique there), so that a parent's second run spawns no twin.
    """

    kind: str
    slot: str
    input: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChildJob:
    """A child as its parent sees it when it runs again."""

    id: UUID
    slot: str
    state: State
    result: Any
    error: Mapping[str, Any] | None


class ClaimedJob(NamedTuple):
    """One attempt in a worker's hands. `fence` guards every write that this attempt makes.

    A tuple, made from the flush's row as it is: there are tens of thousands of them a second.

    `input_text` is undecoded JSON: jsonb holds values that Python cannot read (integers of thousands of
    digits), and such a row must fail alone, not take the whole batch with it.
    """

    id: UUID
    fence: int
    kind: str
    user_id: str
    attempt: int
    max_attempts: int
    input_text: str
    project_id: UUID | None = None
    parent_id: UUID | None = None
    slot: str | None = None


@dataclass(frozen=True, slots=True)
class FannedOut:
    """Waiting until all `children` have ended."""

    children: Sequence[Child]


@dataclass(slots=True)
class Took:
    """What one attempt took from outside, for its line in the log. provider_s: its calls together, which may run side
    by side; bytes: of the files that it kept.
    """

    provider_s: float = 0.0
    cost_usd: Decimal = Decimal(0)
    bytes: int = 0


def backoff_s(
    attempt: int, *, base_s: float, cap_s: float, at_least_s: float = 0.0, roll: float | None = None
) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1): full jitter.

    Uniform in [0, min(cap_s, base_s * 2**(attempt-1))], never earlier than `at_least_s` (the server's own
    Retry-After, to which the jitter is then added so that a crowd does not come back at one instant).
    Source: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """
    ceiling = min(cap_s, base_s * 2.0 ** min(attempt - 1, 60))
    jitter = (random.random() if roll is None else roll) * ceiling
    return at_least_s + jitter if at_least_s > 0 else jitter


_entropy: list[int] = []  # 80 random bits each: asking the kernel once for many ids costs a tenth


def new_id() -> UUID:
    """A UUIDv7: ids made later sort later (to the millisecond), so that indexes grow at one end.

    Source: RFC 9562 section 5.7.
    """
    try:
        rand = _entropy.pop()
    except IndexError:
        pool = os.urandom(10 * 256)
        _entropy.extend(int.from_bytes(pool[at : at + 10], "big") for at in range(0, len(pool), 10))
        rand = _entropy.pop()
    millis = time.time_ns() // 1_000_000
    return UUID(
        int=(millis & 0xFFFF_FFFF_FFFF) << 80
        | 0x7000 << 64
        | (rand >> 62 & 0x0FFF) << 64
        | 0b10 << 62
        | (rand & 0x3FFF_FFFF_FFFF_FFFF)
    )


def first_id(at: float) -> UUID:
    """The lowest UUIDv7 of a moment, given in seconds since 1970."""
    return UUID(int=max(0, int(at * 1000)) << 80)
