"""Flushes in flight beside one another: a crowd does not wait for one that is held up, a few jobs do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from daemon.flusher import FLIGHTS, SMALL_FLUSH
from daemon.queue import Flushed
from daemon.service import Service, run_service
from daemon.settings import Http, Settings, Workers
from tests.support import eventually


@dataclass
class Gate:
    """Holds up the next flush until it is told to let go; all others pass."""

    service: Service
    held: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    before: bool = True  # it has not reached the database yet
    is_set: bool = False
    at_once: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        flush = self.service.queue.flush

        async def gated(*arguments: Any) -> Flushed:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                if not self.is_set:
                    return await flush(*arguments)
                self.is_set = False
                done = None if self.before else await flush(*arguments)
                self.held.set()
                await self.let_go.wait()
                return done if done is not None else await flush(*arguments)
            finally:
                self.at_once -= 1

        self.service.queue.flush = gated  # type: ignore[method-assign]


@pytest.fixture
async def service(settings: Settings, database: str) -> AsyncIterator[Service]:
    async with run_service(_with_many_slots(settings, database)) as running:
        yield running


def _with_many_slots(settings: Settings, database: str) -> Settings:
    return settings.model_copy(
        update={
            "database_url": SecretStr(database), "http": Http(port=0),
            "workers": Workers(concurrency=4 * SMALL_FLUSH),
        }
    )  # fmt: skip


async def _enqueue(service: Service, count: int) -> None:
    await service.db.pool.fetch(
        'select listingd.enqueue_jobs((select jsonb_agg(\'{"kind": "ping"}\'::jsonb) from generate_series(1, $1)))',
        count,
    )


async def _completed(service: Service) -> int:
    count: int = await service.db.pool.fetchval(
        "select count(*) from listingd.job_states where state = 'completed' and attempt = 1"
    )
    return count


async def _are_completed(service: Service, count: int) -> bool:
    return await _completed(service) == count


async def test_a_crowd_passes_a_flush_that_is_held_up(service: Service) -> None:
    gate = Gate(service, is_set=True)
    await _enqueue(service, 1)
    await gate.held.wait()

    await _enqueue(service, 3 * SMALL_FLUSH)

    await eventually(lambda: _has_at_least(service, 2 * SMALL_FLUSH))
    gate.let_go.set()
    await eventually(lambda: _are_completed(service, 3 * SMALL_FLUSH + 1))
    assert gate.most_at_once == FLIGHTS


async def _has_at_least(service: Service, count: int) -> bool:
    return await _completed(service) >= count


async def test_a_few_jobs_wait_for_the_flush_in_flight_and_go_together(service: Service) -> None:
    """A commit for each of them would cost the database more than the wait costs them."""
    gate = Gate(service, is_set=True)
    await _enqueue(service, 1)
    await gate.held.wait()

    await _enqueue(service, SMALL_FLUSH - 1)
    await eventually(lambda: service.scheduler.ready == SMALL_FLUSH - 1)
    assert (0, 1) == (await _completed(service), gate.at_once)

    gate.let_go.set()
    await eventually(lambda: _are_completed(service, SMALL_FLUSH))
    assert gate.most_at_once == 1


@pytest.mark.parametrize("before", [True, False], ids=["not-arrived", "committed"])
async def test_a_flight_whose_connection_breaks_loses_and_repeats_nothing(
    service: Service, database: str, before: bool
) -> None:
    """P2: whether its statement had been committed or not, while the other flight goes on."""
    gate = Gate(service, before=before, is_set=True)
    await _enqueue(service, 1)
    await gate.held.wait()
    await _enqueue(service, 3 * SMALL_FLUSH)
    await eventually(lambda: _has_at_least(service, 2 * SMALL_FLUSH))

    breaker = await asyncpg.connect(database)
    await breaker.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()"
    )
    gate.let_go.set()

    await eventually(lambda: _are_finished(breaker, 3 * SMALL_FLUSH + 1), within_s=30)
    assert [3 * SMALL_FLUSH + 1] == [
        row["n"]
        for row in await breaker.fetch("select count(*) as n from listingd.job_states group by state")
    ]
    await breaker.close()


async def _are_finished(connection: asyncpg.Connection, count: int) -> bool:
    found: int = await connection.fetchval(
        "select count(*) from listingd.job_states where state = 'completed'"
    )
    return found == count


async def test_a_stop_writes_what_is_in_flight(settings: Settings, database: str) -> None:
    async with run_service(_with_many_slots(settings, database)) as service:
        gate = Gate(service)
        await _enqueue(service, 1)
        await eventually(lambda: _are_completed(service, 1))
        gate.is_set = True
        await _enqueue(service, 1)
        await gate.held.wait()
        asyncio.get_running_loop().call_later(0.1, gate.let_go.set)

    after = await asyncpg.connect(database)
    states = await after.fetch("select state, count(*) as n from listingd.job_states group by state")
    assert "processing" not in {row["state"] for row in states}
    await after.close()


async def test_two_flights_that_lower_the_fence_of_rescue_leave_it_at_the_lower_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else rescue would look for the jobs of one of them too high after a kill. The higher one's statement is slow."""
    last: int = await service.db.pool.fetchval("select last_value from listingd.fences")
    slow = f"select pg_sleep(case when $2 > {last + SMALL_FLUSH} then 0.3 else 0 end)"
    lower = service.db.sql["lower_fence_mark"]
    sql = {
        **service.db.sql,
        "lower_fence_mark": f"with slow as materialized ({slow}) {lower} and exists (select from slow)",
    }
    monkeypatch.setattr(service.db, "sql", sql)
    await service.db.pool.execute("update listingd.workers set low_fence = $1", last + 1_000_000)
    service.lease.low_fence = last + 1_000_000  # as when nothing was held for a while

    await _enqueue(service, 3 * SMALL_FLUSH)
    await eventually(lambda: _are_completed(service, 3 * SMALL_FLUSH))

    first: int = await service.db.pool.fetchval("select min(fence) from listingd.job_states")
    assert await service.db.pool.fetchval("select min(low_fence) from listingd.workers") <= first


async def test_a_claim_whose_answer_is_on_its_way_is_no_orphan(service: Service) -> None:
    gate = Gate(service, is_set=True, before=False)
    await service.db.fetchrow("set_queue", "ping", None, "", True, 1000)  # so that it is not claimed at sight
    await service.steering.apply()
    await _enqueue(service, 1)
    await gate.held.wait()
    claimed = await service.db.pool.fetchval(
        "update listingd.job_states set started_at = now() - interval '1 minute' returning fence"
    )

    await service.workers._adopt()
    gate.let_go.set()

    await eventually(lambda: _are_completed(service, 1))
    assert claimed == await service.db.pool.fetchval("select fence from listingd.job_states")


async def test_a_limit_that_goes_while_its_places_are_asked_for_leaves_the_books_right(
    service: Service, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second flight that took jobs meanwhile would leave nothing to put the refused ones back from."""
    db, ping = service.db, service.scheduler.kinds["ping"]
    await db.fetchrow("set_queue", "ping", None, "", True, 1)
    await service.steering.apply()
    other = await db.fetchval("start_worker", "other", 60.0, ["ping"], 1, "{}")
    held: int = await db.pool.fetchval(
        "insert into listingd.job_states (id, kind, user_id, state, attempt, worker, started_at) "
        "values (listingd.new_id(), 'ping', '', 'processing', 1, $1, now()) returning fence", other
    )  # fmt: skip
    await db.fetch("hold_places", other, [held])
    asked = f"with asked as materialized ({db.sql['reserve_places']})"
    patience = "select set_config('lock_timeout', '10s', true), count(*) from asked"
    gate = f"gate as materialized (select pg_advisory_xact_lock(1) from ({patience}) as p)"
    sql = {**db.sql, "reserve_places": f"{asked}, {gate} select asked.* from asked, gate"}
    monkeypatch.setattr(db, "sql", sql)
    keeper = await asyncpg.connect(database)
    await keeper.execute("select pg_advisory_lock(1)")
    await _enqueue(service, 1)
    waits = "select true from pg_locks where locktype = 'advisory' and objid = 1 and not granted"
    await eventually(lambda: db.pool.fetchval(waits))

    await db.fetchrow("set_queue", "ping", None, "", True, None)
    await service.steering.apply()
    await _enqueue(service, SMALL_FLUSH + 1)
    await eventually(lambda: ping.ready > SMALL_FLUSH or ping.running > SMALL_FLUSH)
    await keeper.close()

    await eventually(lambda: _are_completed(service, SMALL_FLUSH + 2))
    assert (0, 0) == (ping.running, ping.ready)
