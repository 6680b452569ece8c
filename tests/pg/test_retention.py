"""Retention as the daemon runs it: rows go by their age, their files with them, and nothing that is still named."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from daemon.changes import Changes
from daemon.db import Database
from daemon.errors import Unavailable
from daemon.feeder import Feeder
from daemon.housekeeping import DAY_S, FILE_AGE_S, Housekeeper
from daemon.jobs import new_id
from daemon.lanes import Lanes, plan_lanes
from daemon.queue import Queue
from daemon.scheduler import Scheduler
from daemon.settings import Settings
from daemon.storage import Storage, open_storage
from tests.pg.test_prune import end_job


@dataclass
class House:
    """A store of files, a database, and the housekeeper of both."""

    db: Database
    storage: Storage
    keeper: Housekeeper

    async def store(self, data: bytes, *, age_s: float = 2 * FILE_AGE_S) -> str:
        """A file that was stored so long ago."""
        sha256 = await self.storage.put(data, "image/png")
        path = self.storage.path(sha256)
        assert path is not None
        then = time.time() - age_s
        os.utime(path, (then, then))
        return sha256

    async def execute(self, statement: str, *args: Any) -> None:
        await self.db.pool.execute(statement, *args)

    async def add_upload(self, sha256: str, *, days_ago: int, user_id: str = "") -> UUID:
        upload = aged_id(days_ago)
        await self.execute(
            "insert into listingd.uploads (id, user_id, sha256, content_type, size_bytes, width_px, height_px, created_at)"
            " values ($1, $2, $3, 'image/png', 1, 1, 1, now() - make_interval(days => $4))",
            upload, user_id, sha256, days_ago,
        )  # fmt: skip
        return upload

    async def add_job(self, state: str, text: str = "") -> UUID:
        """A job in this state, with the text somewhere in its input."""
        job: UUID = await self.db.pool.fetchval(
            "select listingd.enqueue_job('ping', jsonb_build_object('x', $1::text))", text
        )
        await self.execute(
            "update listingd.job_states set state = $2, finished_at = case when $2 = 'completed' then now() end"
            " where id = $1", job, state,
        )  # fmt: skip
        return job

    async def add_asset(self, sha256: str, job: UUID, *, days_ago: int) -> UUID:
        asset = aged_id(days_ago)
        await self.execute(
            "insert into listingd.assets (id, job_id, role, content_type, size_bytes, sha256, version, created_at)"
            " values ($1, $2, 'image', 'image/png', 1, $3, 2, now() - make_interval(days => $4))",
            asset, job, sha256, days_ago,
        )  # fmt: skip
        return asset

    async def count(self, table: str) -> int:
        return int(await self.db.pool.fetchval(f"select count(*) from listingd.{table}"))


def aged_id(days_ago: int) -> UUID:
    """An id that was made so many days ago: it begins with its time."""
    return UUID(int=new_id().int - (int(days_ago * DAY_S * 1000) << 80))


async def keep_house(db: Database, settings: Settings, **retention: Any) -> House:
    own = settings.model_copy(
        update={"retention": settings.retention.model_copy(update={"batch_size": 2} | retention)}
    )
    storage = await open_storage(own)
    queue = Queue(db)
    feeder = Feeder(queue, Scheduler(["ping"]), poll_s=1.0, on_ready=lambda *_: None)
    # Retention asks neither workers nor a lease: it is the same whether jobs run or not.
    keeper = Housekeeper(
        db=db, queue=queue, workers=None, feeder=feeder, lease=None, changes=Changes(),  # type: ignore[arg-type]
        lanes=Lanes(db, plan_lanes(own), lambda: None), storage=storage, settings=own,
    )  # fmt: skip
    return House(db, storage, keeper)


@pytest.fixture
async def house(db: Database, settings: Settings) -> House:
    return await keep_house(db, settings, assets_days=30, uploads_days=7)


async def test_old_uploads_go_in_batches_with_their_files(house: House) -> None:
    old = [await house.store(f"old {n}".encode()) for n in range(5)]
    for sha256 in old:
        await house.add_upload(sha256, days_ago=8)
    young = await house.store(b"young")
    await house.add_upload(young, days_ago=6)

    await house.keeper.retain()

    assert 1 == await house.count("uploads")
    assert [False] * 5 == [await house.storage.exists(sha256) for sha256 in old]
    assert await house.storage.exists(young)


async def test_files_that_cannot_be_looked_for_hold_up_nothing_else(house: House) -> None:
    """What open jobs name is read from all of them: while hundreds of thousands wait that takes longer than a statement may."""
    await house.add_upload("0" * 64, days_ago=8)
    await house.execute(
        "create or replace function listingd.find_named_ids() returns table (user_id text, id uuid) language plpgsql"
        " as $$ begin raise exception using errcode = 'query_canceled'; end $$"
    )
    await house.execute(
        "insert into listingd.idempotency_keys (principal, key, fingerprint, created_at)"
        " values ('p', 'k', 'f', now() - interval '2 days')"
    )
    await house.execute(
        "insert into listingd.steps (id, job_id, kind, name, provider, worker, fence, estimated_usd, reserved_on, created_at)"
        " values ($1, $1, 'image', 'paint', 'openai', 1, 1, 0.25, current_date, now() - interval '1 hour')",
        new_id(),
    )

    with pytest.raises(Unavailable):
        await house.keeper.retain()

    assert 0 == await house.count("idempotency_keys")
    assert "unknown" == await house.db.pool.fetchval("select state from listingd.steps")


async def test_a_file_that_another_row_names_stays(house: House) -> None:
    """Two sellers with one photo share its bytes."""
    shared = await house.store(b"shared")
    await house.add_upload(shared, days_ago=8, user_id="ann")
    await house.add_upload(shared, days_ago=1, user_id="bob")

    await house.keeper.retain()

    assert 1 == await house.count("uploads")
    assert await house.storage.exists(shared)


async def test_a_photo_that_an_open_job_names_stays(house: House) -> None:
    """A job may be planned for later than its photo is kept."""
    planned, done = await house.store(b"planned"), await house.store(b"done")
    await house.add_job("pending", str(await house.add_upload(planned, days_ago=8)))
    await house.add_job("completed", str(await house.add_upload(done, days_ago=8)))

    await house.keeper.retain()

    assert (True, False) == (await house.storage.exists(planned), await house.storage.exists(done))


async def test_an_id_counts_however_it_is_written(house: House) -> None:
    """The queue keeps an input as it was sent, and the API takes ids in capitals and without hyphens."""
    files = [await house.store(name) for name in (b"capitals", b"bare")]
    capitals, bare = [await house.add_upload(sha256, days_ago=8) for sha256 in files]
    await house.add_job("pending", str(capitals).upper())
    await house.add_job("waiting", bare.hex)

    await house.keeper.retain()

    assert [True, True] == [await house.storage.exists(sha256) for sha256 in files]


async def test_a_photo_that_a_schedule_names_stays(house: House) -> None:
    weekly = await house.store(b"weekly")
    upload = await house.add_upload(weekly, days_ago=400)
    await house.execute(
        "insert into listingd.schedules (name, kind, input, cron) values ('weekly', 'image', $1, '0 0 * * 1')",
        f'{{"photo": {{"upload_id": "{upload}"}}}}',
    )

    await house.keeper.retain()

    assert await house.storage.exists(weekly)


async def test_old_results_go_with_their_files_and_their_jobs_stay(house: House) -> None:
    old, young, running = [await house.store(name) for name in (b"old", b"young", b"running")]
    done, open_job = await house.add_job("completed"), await house.add_job("processing")
    await house.add_asset(old, done, days_ago=31)
    await house.add_asset(young, done, days_ago=29)
    await house.add_asset(running, open_job, days_ago=31)

    await house.keeper.retain()

    assert [False, True, True] == [await house.storage.exists(sha256) for sha256 in (old, young, running)]
    assert 2 == await house.count("jobs")


async def test_a_result_that_an_open_job_starts_from_stays(house: House) -> None:
    source = await house.store(b"source")
    asset = await house.add_asset(source, await house.add_job("completed"), days_ago=31)
    await house.add_job("pending", str(asset))

    await house.keeper.retain()

    assert await house.storage.exists(source)


async def test_without_a_limit_results_stay_with_their_jobs(db: Database, settings: Settings) -> None:
    house = await keep_house(db, settings, assets_days=None)
    kept = await house.store(b"kept")
    await house.add_asset(kept, await house.add_job("completed"), days_ago=80)

    await house.keeper.retain()

    assert await house.storage.exists(kept)


async def test_ended_jobs_stay_as_long_as_their_state_says(db: Database, settings: Settings) -> None:
    house = await keep_house(db, settings, completed_days=3, failed_days=9)
    async with db.acquire() as connection:
        for state in ("completed", "failed", "cancelled"):
            for days_ago in (2, 5, 10):
                await end_job(connection, days_ago=days_ago, state=state)

    await house.keeper.retain()

    rows = await db.pool.fetch("select state, count(*) as n from listingd.job_states group by state")
    assert {"completed": 1, "failed": 2, "cancelled": 2} == {row["state"]: row["n"] for row in rows}


async def test_an_idempotency_key_holds_for_a_day(house: House) -> None:
    for hours in (1, 23, 25, 100):
        await house.execute(
            "insert into listingd.idempotency_keys (principal, key, fingerprint, created_at)"
            " values ('ann', $1, 'x', now() - make_interval(hours => $2))",
            str(hours), hours,
        )  # fmt: skip

    await house.keeper.retain()

    rows = await house.db.pool.fetch("select key from listingd.idempotency_keys")
    assert {"1", "23"} == {row["key"] for row in rows}


async def test_a_file_stored_a_moment_ago_is_left_to_the_sweep(house: House) -> None:
    """Its next owner may be on the way: a job of the same photo that has stored it and not yet said so."""
    just_now = await house.storage.put(b"just now", "image/png")
    await house.add_upload(just_now, days_ago=8)

    await house.keeper.retain()

    assert 0 == await house.count("uploads")
    assert await house.storage.exists(just_now)


async def test_the_daily_sweep_finds_what_a_crash_left(house: House) -> None:
    left, named, young = [
        await house.store(name, age_s=age_s)
        for name, age_s in ((b"left", 2 * DAY_S), (b"named", 2 * DAY_S), (b"young", 2 * FILE_AGE_S))
    ]
    await house.add_upload(named, days_ago=2)

    await house.keeper.sweep()

    assert [False, True, True] == [await house.storage.exists(sha256) for sha256 in (left, named, young)]


async def test_turns_of_the_dead_and_unused_lanes_are_forgotten(house: House) -> None:
    alive = await house.db.fetchval("start_worker", "alive", 60.0, ["ping"], 8, "{}")
    await house.execute(
        "insert into listingd.lanes (name, provider, max_in_flight, allowed, started_at) values"
        " ('used', 'p', 8, 4, now()), ('unused', 'p', 8, 4, now() - interval '31 days')"
    )
    await house.execute(
        "insert into listingd.lane_turns (lane, worker, in_flight) values ('used', $1, 1), ('used', $1 + 1000, 1)", alive
    )  # fmt: skip

    await house.keeper.retain()

    assert "used" == await house.db.pool.fetchval("select string_agg(name, ',') from listingd.lanes")
    assert alive == await house.db.pool.fetchval("select sum(worker) from listingd.lane_turns")
