"""How an attempt ends: again, for good, or handed back."""

from __future__ import annotations

import pytest

from daemon import outcomes
from daemon.errors import Fate, ListingdError, ProviderError, Reject, Retry, Unavailable
from daemon.jobs import ClaimedJob, State, new_id
from daemon.settings import Retry as RetrySettings

SETTINGS = RetrySettings(base_s=2, cap_s=600)


def attempt(number: int, of: int = 4) -> ClaimedJob:
    return ClaimedJob(new_id(), 7, "ping", "ann", number, of, "{}")


def provider(fate: Fate, retry_after_s: float | None = None) -> ProviderError:
    return ProviderError("No.", provider="painter", fate=fate, code="no", retry_after_s=retry_after_s)


PASSING = [provider(Fate.RETRY), provider(Fate.AMBIGUOUS), Retry("Later.")]
FOR_GOOD = [provider(Fate.PERMANENT), Reject("No.", code="no")]
NOBODYS_FAULT = [
    provider(Fate.BUDGET), provider(Fate.CONFIG), Unavailable("Away."), Retry("Wait.", counts_attempt=False),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSING)
def test_what_may_pass_is_tried_again_until_the_last_attempt(error: ListingdError) -> None:
    """P7: attempts never exceed their maximum."""
    ends = [outcomes.failed(attempt(number), error, SETTINGS) for number in (1, 3, 4, 5)]

    assert [State.PENDING, State.PENDING, State.FAILED, State.FAILED] == [end.state for end in ends]
    assert not any(end.gives_back for end in ends)


def test_crashes_and_deadlines_end_with_the_last_attempt_too() -> None:
    for number, state in ((3, State.PENDING), (4, State.FAILED)):
        assert state is outcomes.crashed(attempt(number), ValueError(), SETTINGS).state
        assert state is outcomes.timed_out(attempt(number), 5, SETTINGS).state


@pytest.mark.parametrize("error", FOR_GOOD)
def test_what_will_not_pass_fails_at_once(error: ListingdError) -> None:
    assert State.FAILED is outcomes.failed(attempt(1), error, SETTINGS).state


@pytest.mark.parametrize("error", NOBODYS_FAULT)
def test_what_is_nobodys_fault_costs_no_attempt_not_even_the_last(error: ListingdError) -> None:
    ended = outcomes.failed(attempt(4), error, SETTINGS)

    assert (State.PENDING, 1) == (ended.state, ended.gives_back)
    assert ended.delay_s > 0


def test_nobody_comes_back_before_the_servers_own_delay() -> None:
    ended = outcomes.failed(attempt(1), provider(Fate.RETRY, retry_after_s=30), SETTINGS)

    assert 30 <= ended.delay_s <= 32
