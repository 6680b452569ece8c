"""Postgres stopped at once and started again, notifications that die, a primary that is lost (P9, P10)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fleet import HEADERS, Daemon, Proxy, Server
from tests.support import eventually

MakeDaemon = Callable[..., Daemon]
PING = {"kind": "ping", "input": {"echo": 1}}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers=HEADERS, timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


async def call(http: aiohttp.ClientSession, method: str, url: str, **more: Any) -> tuple[int, Any, Any]:
    async with http.request(method, url, **more) as answer:
        return answer.status, await answer.json(content_type=None), answer.headers


async def run_ping(http: aiohttp.ClientSession, daemon: Daemon) -> bool:
    """Whether a job that is created now is done within a few seconds."""
    status, job, _ = await call(
        http, "POST", f"{daemon.url}/v1/jobs", json=PING, headers={"Prefer": "wait=10"}
    )
    return status == 200 and job["state"] == "completed"


async def test_without_postgres_the_daemon_stays_says_so_and_is_back_by_itself(
    server: Server, daemon: MakeDaemon, http: aiohttp.ClientSession
) -> None:
    """P9, after an immediate stop: as when Postgres crashes."""
    one = await daemon("one", lease_s=240, heartbeat_s=60, poll_s=5).start()  # no beat tells it
    assert await run_ping(http, one)

    server.stop(signal.SIGQUIT)
    try:
        await eventually(lambda: _has_status(http, f"{one.url}/readyz", 503))
        status, problem, headers = await call(http, "POST", f"{one.url}/v1/jobs", json=PING)
        alive, _, _ = await call(http, "GET", f"{one.url}/livez")
        assert (503, "unavailable", 200) == (status, problem["code"], alive)
        assert int(headers["Retry-After"]) >= 1
    finally:
        server.start()
    await eventually(lambda: _has_status(http, f"{one.url}/readyz", 200))
    await eventually(lambda: run_ping(http, one))
    assert one.find("database.lost")
    assert one.find("database.restored")
    told = [line["error"] for line in one.find("listener.lost")]
    assert len(told) == len(set(told)), "an outage is told once"
    assert [] == [line for line in one.read_log() if "exception" in line], "it is no bug of ours"


async def test_the_metrics_say_whether_postgres_and_notifications_are_there(
    server: Server, daemon: MakeDaemon, http: aiohttp.ClientSession
) -> None:
    one = await daemon("one", workers__concurrency=7).start()
    await one.wait_for("listener.connected")

    before = await _read_metrics(http, one)
    server.stop(signal.SIGQUIT)
    try:
        await one.wait_for("database.lost")
        await one.wait_for("listener.lost")
        during = await _read_metrics(http, one)
    finally:
        server.start()

    names = ("database_up", "listener_up", "worker_slots", "worker_slots_busy", "log_lines_dropped")
    assert [1, 1, 7, 0, 0] == [before[f"listingd_{name}"] for name in names]
    assert [0, 0] == [during[f"listingd_{name}"] for name in names[:2]]
    assert 0 < before["listingd_lease_age_seconds"] < during["listingd_lease_age_seconds"]


async def _read_metrics(http: aiohttp.ClientSession, daemon: Daemon) -> dict[str, float]:
    """The metrics without labels."""
    async with http.get(f"{daemon.url}/metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
    return {
        sample.name: sample.value for family in families for sample in family.samples if not sample.labels
    }


async def _has_status(http: aiohttp.ClientSession, url: str, wanted: int) -> bool:
    status, _, _ = await call(http, "GET", url)
    return status == wanted


async def test_jobs_survive_a_crash_of_postgres(
    server: Server, daemon: MakeDaemon, sql: asyncpg.Pool
) -> None:
    """P1, P2: what runs while Postgres is away is not lost, and ends once; also when that takes longer than
    the lease allows.
    """
    one = await daemon("one", workers__concurrency=20).start()
    jobs = [
        await sql.fetchval(
            "select listingd.enqueue_job('ping', jsonb_build_object('sleep_s', $1::float8))", s
        )
        for s in [0.1, 1.0, 8.0] * 5
    ]

    async def run() -> bool:
        return bool(
            await sql.fetchval(
                "select count(*) filter (where state = 'pending') = 0 from listingd.job_states"
            )
        )

    await eventually(run, 30)

    server.stop(signal.SIGQUIT)
    await one.wait_for("lease.lost")
    server.start()

    async def all_done() -> bool:
        states = await sql.fetch("select distinct state from listingd.job_states")
        return [row["state"] for row in states] == ["completed"]

    await eventually(all_done, 40)
    assert len(jobs) == await sql.fetchval("select count(*) from listingd.job_states")


async def test_when_notifications_die_jobs_start_by_polling_and_the_listener_comes_back(
    server: Server, daemon: MakeDaemon, dsn: str, sql: asyncpg.Pool
) -> None:
    """P10: the connection stays open but nothing passes any more; TCP alone would not notice for hours."""
    async with Proxy(server.port) as proxy:
        one = await daemon(
            "one", listen_database_url=dsn.replace(str(server.port), str(proxy.port)), poll_s=1
        ).start()
        await one.wait_for("listener.connected")

        proxy.break_silently()
        job = await sql.fetchval("select listingd.enqueue_job('ping')")

        async def is_done() -> bool:
            return "completed" == await sql.fetchval(
                "select state from listingd.job_states where id = $1", job
            )

        await eventually(is_done, 10)
        await one.wait_for("listener.lost", 40)
        await eventually(lambda: len(one.find("listener.connected")) == 2, 20)


async def test_the_daemon_follows_the_primary_after_a_promote(
    tmp_path: Any, http: aiohttp.ClientSession
) -> None:
    """A DSN with both hosts: the primary dies, its standby is promoted, the daemon goes on there."""
    primary = Server(tmp_path / "primary").create().start()
    dsn = await asyncio.to_thread(primary.create_database, "ld")
    standby = Server(tmp_path / "standby").copy(primary).start()
    both = dsn.replace(f":{primary.port}/", f":{primary.port},127.0.0.1:{standby.port}/")
    one = Daemon(tmp_path / "one", both)
    try:
        await one.start()
        assert await run_ping(http, one)
        await eventually(lambda: _is_caught_up(primary, standby), 20)

        primary.stop(signal.SIGQUIT)
        status, _, _ = await call(http, "POST", f"{one.url}/v1/jobs", json=PING)
        assert status == 503
        standby.promote()

        await eventually(lambda: _has_status(http, f"{one.url}/readyz", 200), 30)
        await eventually(lambda: run_ping(http, one), 30)
        connection = await asyncpg.connect(dsn.replace(str(primary.port), str(standby.port)))
        assert 2 <= await connection.fetchval("select count(*) from listingd.job_states")
        await connection.close()
    finally:
        one.kill()
        standby.stop()
        primary.stop()


async def _is_caught_up(primary: Server, standby: Server) -> bool:
    there, here = await asyncio.gather(asyncpg.connect(primary.dsn), asyncpg.connect(standby.dsn))
    try:
        at = await there.fetchval("select pg_current_wal_flush_lsn()::text")
        return bool(await here.fetchval("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", at))
    finally:
        await there.close()
        await here.close()
