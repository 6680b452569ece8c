"""Schedules in the database: fired once by any number of daemons, also when one is killed in between."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from daemon.db import Database, open_pool
from daemon.schedules import Schedule, Schedules
from daemon.settings import Settings
from tests.support import eventually

HOURLY = Schedule("nightly", "ping", {"echo": 1}, "0 * * * *", user_id="u", priority=5)


@pytest.fixture
def schedules(db: Database) -> Schedules:
    return Schedules(db)


async def wait_since(db: Database, ago: timedelta = timedelta(0)) -> datetime:
    """Schedules of every full hour have been waiting since the one so long ago (0: this hour's, which is due)."""
    next_at = (datetime.now(UTC) - ago).replace(minute=0, second=0, microsecond=0)
    await db.pool.execute("update listingd.schedules set next_at = $1", next_at)
    return next_at


async def jobs(db: Database) -> list[Any]:
    return list(
        await db.pool.fetch(
            "select id, user_id, priority, input::text, metadata ->> 'schedule' as schedule, "
            "metadata ->> 'scheduled_at' as at from listingd.jobs order by metadata ->> 'scheduled_at'"
        )
    )


async def test_a_schedule_waits_for_its_next_time(db: Database, schedules: Schedules) -> None:
    await schedules.set(HOURLY, datetime(2027, 6, 1, 8, 30, tzinfo=UTC))

    [stored] = await schedules.list_all()

    assert datetime(2027, 6, 1, 9, 0, tzinfo=UTC) == stored.next_at
    assert [] == await schedules.fire_due()
    assert [] == await jobs(db)


async def test_a_job_is_enqueued_as_it_was_asked_for(db: Database, schedules: Schedules) -> None:
    await schedules.set(HOURLY, datetime.now(UTC))
    due = await wait_since(db)

    fired = await schedules.fire_due()

    [job] = await jobs(db)
    assert [job["id"]] == fired
    assert ("u", 5, '{"echo": 1}', "nightly") == (
        job["user_id"],
        job["priority"],
        job["input"],
        job["schedule"],
    )
    [after] = await schedules.list_all()
    assert (due, job["id"]) == (after.last_at, after.last_job_id)
    assert after.next_at is not None
    assert datetime.now(UTC) < after.next_at <= datetime.now(UTC) + timedelta(hours=1)
    assert [] == await schedules.fire_due()


async def test_many_daemons_fire_it_once(db: Database, database: str, settings: Settings) -> None:
    """Each with a pool of its own, all at the same moment, ten times over."""
    others = [await open_pool(settings, dsn=database) for _ in range(4)]
    daemons = [Schedules(other) for other in others]
    await daemons[0].set(HOURLY, datetime.now(UTC))
    for _ in range(10):
        await wait_since(db)
        fired = await asyncio.gather(*(daemon.fire_due() for daemon in daemons))
        assert 1 == sum(len(ids) for ids in fired)
    for other in others:
        await other.close()

    assert 10 == len(await jobs(db))


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
async def test_missed_times_are_made_up_for_as_asked(db: Database, schedules: Schedules, missed: Any) -> None:
    now = datetime.now(UTC)
    minute = (now - timedelta(minutes=20)).minute  # so that none of its times is just now
    await schedules.set(Schedule("s", "ping", {}, f"{minute} * * * *", missed=missed), now)
    next_at = (now - timedelta(hours=3, minutes=20)).replace(second=0, microsecond=0)
    await db.pool.execute("update listingd.schedules set next_at = $1", next_at)

    fired = await schedules.fire_due()

    assert {"skip": 0, "once": 1, "all": 4}[missed] == len(fired) == len(await jobs(db))


@pytest.mark.parametrize("state", ["pending", "processing", "waiting"])
async def test_an_open_job_holds_the_next_one_back(db: Database, schedules: Schedules, state: str) -> None:
    await schedules.set(Schedule("s", "ping", {}, "0 * * * *", overlap="skip"), datetime.now(UTC))
    await wait_since(db)
    [first] = await schedules.fire_due()
    await db.pool.execute("update listingd.job_states set state = $2 where id = $1", first, state)

    await wait_since(db)
    while_open = await schedules.fire_due()
    await db.pool.execute(
        "update listingd.job_states set state = 'completed', finished_at = now() where id = $1", first
    )
    await wait_since(db)
    after = await schedules.fire_due()

    assert ([], 1) == (while_open, len(after))


async def test_one_that_was_changed_meanwhile_fires_as_it_is_now(db: Database, schedules: Schedules) -> None:
    await schedules.set(HOURLY, datetime.now(UTC))
    waited_for = await wait_since(db)
    await schedules.set(Schedule("nightly", "ping", {}, "5 5 * * *"), datetime.now(UTC))

    late = await db.fetch(
        "fire_schedule",
        "nightly",
        waited_for,
        "0 * * * *",
        "UTC",
        waited_for + timedelta(hours=1),
        [waited_for],
    )

    assert [] == late
    assert [] == await schedules.fire_due()


async def test_setting_the_same_again_keeps_its_time(db: Database, schedules: Schedules) -> None:
    """A deployment that sets all schedules at every start must not lose one that is due."""
    await schedules.set(HOURLY, datetime.now(UTC))
    due = await wait_since(db)
    await schedules.set(HOURLY, datetime.now(UTC))

    assert [due] == [schedule.next_at for schedule in await schedules.list_all()]
    assert 1 == len(await schedules.fire_due())


async def test_one_that_is_off_fires_nothing_and_makes_up_for_nothing(
    db: Database, schedules: Schedules
) -> None:
    await schedules.set(Schedule("s", "ping", {}, "0 * * * *", is_enabled=False), datetime.now(UTC))
    await wait_since(db, timedelta(hours=3))
    while_off = await schedules.fire_due()
    await schedules.set(Schedule("s", "ping", {}, "0 * * * *"), datetime.now(UTC))

    assert ([], []) == (while_off, await schedules.fire_due())


async def test_a_kill_between_reading_and_firing_loses_and_doubles_nothing(
    db: Database, schedules: Schedules
) -> None:
    """The jobs and the next time are one transaction: what is rolled back is fired by the next daemon."""
    await schedules.set(HOURLY, datetime.now(UTC))
    waited_for = await wait_since(db)
    killed = await db.dedicated_connection("killed")
    await killed.execute("begin")
    await killed.fetch(
        db.sql["fire_schedule"],
        "nightly",
        waited_for,
        "0 * * * *",
        "UTC",
        waited_for + timedelta(hours=1),
        [waited_for],
    )
    meanwhile = await schedules.fire_due()
    killed.terminate()
    [fired] = await eventually(schedules.fire_due)

    assert [] == meanwhile
    assert [fired] == [job["id"] for job in await jobs(db)]


@pytest.mark.parametrize("wrong", ["cron = 'at noon on some days'", "time_zone = 'Mars/Olympus'"])
async def test_one_that_cannot_be_read_stops_alone(db: Database, schedules: Schedules, wrong: str) -> None:
    """Written by SQL, or its zone was abolished. It would end every daemon's task again and again."""
    await schedules.set(HOURLY, datetime.now(UTC))
    await schedules.set(replace(HOURLY, name="sound"), datetime.now(UTC))
    await wait_since(db)
    await db.pool.execute(f"update listingd.schedules set {wrong} where name = 'nightly'")

    fired = await schedules.fire_due()
    stopped = [schedule.name for schedule in await schedules.list_all() if schedule.next_at is None]
    await schedules.set(HOURLY, datetime.now(UTC))

    assert (1, ["nightly"]) == (len(fired), stopped)
    assert all(schedule.next_at is not None for schedule in await schedules.list_all())


async def test_one_that_a_stranger_has_locked_holds_up_no_other(db: Database, schedules: Schedules) -> None:
    """It fires once the lock is gone; until then its time is looked at once a second, not all the time."""
    await schedules.set(HOURLY, datetime.now(UTC))
    await schedules.set(replace(HOURLY, name="sound"), datetime.now(UTC))
    await wait_since(db)
    async with db.transaction() as stranger:
        await stranger.execute("select from listingd.schedules where name = 'nightly' for update")
        running = asyncio.create_task(schedules.run())
        [others] = await eventually(lambda: jobs(db))

    async def both() -> list[Any]:
        found = await jobs(db)
        return found if len(found) == 2 else []

    fired = await eventually(both)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert "sound" == others["schedule"]
    assert {"nightly", "sound"} == {job["schedule"] for job in fired}


async def test_one_that_was_stopped_goes_on_when_it_is_set_again_as_it_was(
    db: Database, schedules: Schedules
) -> None:
    await schedules.set(HOURLY, datetime.now(UTC))
    await db.pool.execute("update listingd.schedules set next_at = null")

    await schedules.set(HOURLY, datetime.now(UTC))

    [schedule] = await schedules.list_all()
    assert schedule.next_at is not None


async def test_a_running_daemon_heeds_a_schedule_at_its_hint(db: Database, schedules: Schedules) -> None:
    running = asyncio.create_task(schedules.run())
    await schedules.set(HOURLY, datetime.now(UTC))
    await wait_since(db)
    schedules.hint()

    [row] = await eventually(lambda: jobs(db))

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert "nightly" == row["schedule"]
