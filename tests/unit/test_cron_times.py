"""When a schedule fires: its zone's clock, spring and autumn, and what becomes of times that were missed."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import InvalidInput
from daemon.schedules import MAX_MISSED, find_fires, find_missed

BERLIN = "Europe/Berlin"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def utc(times: list[datetime]) -> list[str]:
    return [f"{time.astimezone(UTC):%m-%d %H:%M}" for time in times]


def test_times_are_the_zones_own() -> None:
    assert ["01-10 08:00", "01-11 08:00"] == utc(find_fires("0 9 * * *", BERLIN, at("2027-01-09T12:00"), 2))
    assert ["07-10 07:00"] == utc(find_fires("0 9 * * *", BERLIN, at("2027-07-09T12:00"), 1))


def test_a_time_that_spring_skips_comes_right_after_the_gap() -> None:
    """28 March 2027, 02:00 becomes 03:00 in Berlin: 01:00 UTC is the first moment after."""
    assert ["03-27 01:30", "03-28 01:00", "03-29 00:30"] == utc(
        find_fires("30 2 * * *", BERLIN, at("2027-03-26T12:00"), 3)
    )


def test_a_time_that_autumn_repeats_comes_once() -> None:
    """31 October 2027: 02:30 comes at 00:30 and at 01:30 UTC."""
    assert ["10-30 00:30", "10-31 00:30", "11-01 01:30"] == utc(
        find_fires("30 2 * * *", BERLIN, at("2027-10-29T12:00"), 3)
    )


@pytest.mark.parametrize(
    ("cron", "following"),
    [("30 2 * * *", "11-01 01:30"), ("*/30 * * * *", "10-31 01:30"), ("5 * * * *", "10-31 02:05")],
)
def test_what_comes_next_comes_later_in_the_hour_that_autumn_repeats(cron: str, following: str) -> None:
    """01:10 UTC is the second 02:10; a schedule that is set then must not wait for a time that has gone by."""
    assert [following] == utc(find_fires(cron, BERLIN, at("2027-10-31T01:10"), 1))


def test_every_hour_is_every_hour_whatever_the_clock_shows() -> None:
    fires = find_fires("0 * * * *", BERLIN, at("2027-10-30T22:30"), 6)

    assert {timedelta(hours=1)} == {
        later.astimezone(UTC) - earlier.astimezone(UTC) for earlier, later in itertools.pairwise(fires)
    }


@given(
    st.sampled_from(["30 2 * * *", "0 * * * *", "*/20 1-3 * * *", "15 1,2,3 * * 0", "0 0 1 * *", "59 23 L * *"]),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "UTC"]),
    st.sampled_from(["2027-03-13T20:00", "2027-03-27T20:00", "2027-04-03T10:00", "2027-10-02T10:00",
                     "2027-10-30T20:00", "2027-11-06T20:00"]),
)  # fmt: skip
def test_going_on_from_a_fire_gives_what_comes_next(cron: str, zone: str, start: str) -> None:
    """Each fire is computed from the one before, perhaps by another daemon: none is skipped and none twice."""
    straight = find_fires(cron, zone, at(start), 8)

    stepwise, after = [], at(start)
    for _ in straight:
        after = find_fires(cron, zone, after, 1)[0].astimezone(UTC)
        stepwise.append(after)

    assert [time.astimezone(UTC) for time in straight] == stepwise
    assert stepwise == sorted(set(stepwise))


@pytest.mark.parametrize(
    ("missed", "made"),
    [
        ("skip", []),
        ("once", ["06-01 11:00"]),
        ("all", ["06-01 08:00", "06-01 09:00", "06-01 10:00", "06-01 11:00"]),
    ],
)
def test_missed_times_are_made_up_for_as_asked(missed: str, made: list[str]) -> None:
    due, following = find_missed("0 * * * *", "UTC", at("2027-06-01T08:00"), at("2027-06-01T11:30"), missed)  # type: ignore[arg-type]

    assert made == utc(due)
    assert at("2027-06-01T12:00") == following


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_a_time_that_has_just_come_is_not_missed(missed: str) -> None:
    due, _ = find_missed("0 * * * *", "UTC", at("2027-06-01T08:00"), at("2027-06-01T08:00"), missed)  # type: ignore[arg-type]

    assert ["06-01 08:00"] == utc(due)


def test_a_long_outage_is_made_up_for_by_a_bounded_number_of_jobs() -> None:
    due, following = find_missed("* * * * *", "UTC", at("2026-01-01T00:00"), at("2027-06-01T00:00"), "all")

    assert MAX_MISSED == len(due)
    assert (at("2027-06-01T00:00"), at("2027-06-01T00:01")) == (due[-1], following)


def test_a_missed_time_in_the_spring_gap_is_found_again() -> None:
    waited_for = find_fires("30 2 * * *", BERLIN, at("2027-03-27T12:00"), 1)[0].astimezone(UTC)

    due, following = find_missed("30 2 * * *", BERLIN, waited_for, waited_for, "once")

    assert ["03-28 01:00"] == utc(due)
    assert following is not None
    assert datetime(2027, 3, 29, 2, 30, tzinfo=ZoneInfo(BERLIN)) == following


@pytest.mark.parametrize(
    ("cron", "zone", "code"),
    [
        ("61 * * * *", "UTC", "cron_invalid"),
        ("* * * *", "UTC", "cron_invalid"),
        ("* * * * * *", "UTC", "cron_invalid"),
        ("0 0 30 2 *", "UTC", "cron_invalid"),
        ("@daily", "UTC", "cron_invalid"),
        ("* * * * *", "Mars/Olympus", "time_zone_unknown"),
        ("* * * * *", "../../etc/passwd", "time_zone_unknown"),
        ("* * * * *", "", "time_zone_unknown"),
    ],
)
def test_what_never_fires_is_refused(cron: str, zone: str, code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        find_fires(cron, zone, at("2027-01-01T00:00"), 1)

    assert [code] == [error.code for error in caught.value.errors]
