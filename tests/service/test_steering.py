"""Two whole daemons on one database: limits, pauses and turns hold over both, and change at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from daemon.jobs import NewJob
from daemon.service import Service, run_service
from daemon.settings import Http, Settings, Webhooks, Workers
from tests.support import eventually

Pair = tuple[Service, Service]


@pytest.fixture
async def pair(database: str, tmp_path: Path) -> AsyncIterator[Pair]:
    """Polls and heartbeats come too late to help: what happens at once was told."""
    async with AsyncExitStack() as stack:
        both = [
            await stack.enter_async_context(
                run_service(
                    Settings(
                        state_dir=tmp_path / name, instance=name, database_url=SecretStr(database), http=Http(port=0),
                        workers=Workers(concurrency=8), webhooks=Webhooks(concurrency=3), poll_s=60.0, lease_s=240.0,
                        heartbeat_s=60.0,
                    )
                )
            )
            for name in ("one", "two")
        ]  # fmt: skip
        for service in both:
            await eventually(lambda service=service: service.listener.connected)
            await service.steering.apply()  # the first has started without knowing of the second
        yield both[0], both[1]


async def patch(service: Service, path: str, body: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {service.service_key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.patch(service.url + path, json=body) as answer:
            assert 200 == answer.status, await answer.text()


async def count(service: Service, state: str) -> int:
    return int(
        await service.db.pool.fetchval("select count(*) from listingd.job_states where state = $1", state)
    )


async def most_at_once(service: Service, kind: str) -> int:
    """The greatest number of jobs of a kind that ran at one moment, by the database's clock. An end and the
    claim that follows it are one statement: ends come first.
    """
    return int(
        await service.db.pool.fetchval(
            "select max(n) from (select sum(d) over (order by at, d) as n from ("
            "select started_at as at, 1 as d from listingd.job_states where kind = $1 "
            "union all select finished_at, -1 from listingd.job_states where kind = $1) as e) as r",
            kind,
        )
    )


async def test_a_limit_over_both_is_kept_and_used(pair: Pair) -> None:
    await patch(pair[0], "/v1/admin/queues/ping", {"concurrency": 3})
    await eventually(lambda: pair[1].scheduler.kinds["ping"].is_shared)
    for service in pair:
        await service.creator.create(
            [NewJob("ping", {"sleep_s": 0.02}, user_id=f"u{n % 5}") for n in range(40)]
        )

    await eventually(lambda: _has_ended(pair[0], 80), within_s=20)

    assert 3 == await most_at_once(pair[0], "ping")


async def _has_ended(service: Service, jobs: int) -> bool:
    return await count(service, "completed") == jobs


async def test_a_pause_counts_in_both_before_it_is_answered_or_at_once(pair: Pair) -> None:
    await patch(pair[0], "/v1/admin/queues/ping", {"paused": True})
    assert pair[0].scheduler.kinds["ping"].paused
    await eventually(lambda: pair[1].scheduler.kinds["ping"].paused)

    for service in pair:
        await service.creator.create([NewJob("ping", {})])
    assert 2 == await count(pair[0], "pending")

    await patch(pair[1], "/v1/admin/queues/ping", {"paused": False})
    await eventually(lambda: _has_ended(pair[0], 2))


async def test_a_held_user_waits_while_others_go_on(pair: Pair) -> None:
    await patch(pair[0], "/v1/admin/users/held", {"paused": True})
    await eventually(lambda: "held" in pair[1].scheduler._paused_users)

    for service in pair:
        await service.creator.create([NewJob("ping", {}, user_id="held"), NewJob("ping", {}, user_id="free")])
    await eventually(lambda: _has_ended(pair[0], 2))
    assert 2 == await count(pair[0], "pending")

    await patch(pair[1], "/v1/admin/users/held", {"paused": False})
    await eventually(lambda: _has_ended(pair[0], 4))


async def test_a_user_with_one_job_starts_within_one_turn_of_one_with_thousands(pair: Pair) -> None:
    for _ in range(4):
        await pair[0].creator.create([NewJob("ping", {"sleep_s": 0.01}, user_id="many") for _ in range(1000)])
    [one] = await pair[0].creator.create([NewJob("ping", {}, user_id="one")])

    await eventually(
        lambda: pair[0].db.pool.fetchval("select finished_at from listingd.job_states where id = $1", one.id),
        within_s=10,
    )

    # Starts of the others between its creation and its own start: at most what both have slots for.
    before = await pair[0].db.pool.fetchval(
        "select count(*) from listingd.job_states as s, listingd.jobs as j, listingd.job_states as o "
        "where j.id = $1 and o.id = $1 and s.id <> $1 and s.started_at > j.created_at and s.started_at < o.started_at",
        one.id,
    )
    assert before <= 16


async def test_deliveries_leave_slots_to_the_others(pair: Pair) -> None:
    assert [3, 3] == [service.scheduler.kinds["webhook"].limit for service in pair]


async def test_a_claim_that_waits_for_the_database_holds_the_mark(pair: Pair) -> None:
    """Out of the scheduler's hands and not yet committed: the mark must not pass it by."""
    one, two = pair
    await patch(one, "/v1/admin/queues/ping", {"paused": True})
    [made] = await one.creator.create([NewJob("ping", {})])
    fence = await one.db.pool.fetchval("select fence from listingd.job_states where id = $1", made.id)
    await eventually(lambda: fence in one.scheduler.known)

    async with two.db.transaction() as stranger:
        await stranger.execute("lock table listingd.job_states in exclusive mode")
        await patch(one, "/v1/admin/queues/ping", {"paused": False})
        await eventually(lambda: [fence] == list(one.scheduler.claiming))
        assert fence == one.scheduler.lowest_fence()
    await eventually(lambda: _has_ended(one, 1))
    await eventually(lambda: not one.scheduler.claiming)
