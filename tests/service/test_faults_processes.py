"""Whole daemons that are killed, frozen, stopped and doubled: their jobs go on by themselves (P5 to P8)."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg

from tests.fleet import Daemon
from tests.support import eventually

MakeDaemon = Callable[..., Daemon]


async def enqueue(sql: asyncpg.Pool, sleep_s: float = 0.0, **more: Any) -> UUID:
    text = json.dumps({"sleep_s": sleep_s, **more})
    job_id: UUID = await sql.fetchval("select listingd.enqueue_job('ping', $1::jsonb)", text)
    return job_id


async def read(sql: asyncpg.Pool, job_id: UUID) -> asyncpg.Record:
    row = await sql.fetchrow("select * from listingd.job_states where id = $1", job_id)
    assert row is not None
    return row


async def wait_for_state(sql: asyncpg.Pool, job_id: UUID, state: str, within_s: float = 30) -> asyncpg.Record:
    async def reached() -> asyncpg.Record | None:
        row = await read(sql, job_id)
        return row if row["state"] == state else None

    return await eventually(reached, within_s)


async def test_a_restart_takes_its_own_jobs_back_at_once(sql: asyncpg.Pool, daemon: MakeDaemon) -> None:
    """P6: without waiting for the lease of four minutes, since the lock on the state dir proves the other run dead."""
    one = await daemon("one", lease_s=240, heartbeat_s=60, poll_s=5).start()
    job = await enqueue(sql, 60)
    await wait_for_state(sql, job, "processing")
    first = await read(sql, job)

    one.kill()
    await one.start()
    second = await eventually(lambda: _processing_by_another(sql, job, first["worker"]), 30)

    assert (1, 1) == (second["attempt"], second["rescues"])
    assert second["fence"] > first["fence"]


async def _processing_by_another(sql: asyncpg.Pool, job: UUID, worker: int) -> asyncpg.Record | None:
    row = await read(sql, job)
    return row if row["state"] == "processing" and row["worker"] != worker else None


async def start_two(
    sql: asyncpg.Pool, daemon: MakeDaemon
) -> Callable[[UUID], Awaitable[tuple[Daemon, Daemon]]]:
    """Two daemons run; `await holder_first(job)` gives the one that runs a job, and the other."""
    one, two = daemon("one"), daemon("two")
    await asyncio.gather(one.start(), two.start())

    async def holder_first(job: UUID) -> tuple[Daemon, Daemon]:
        row = await wait_for_state(sql, job, "processing")
        instance = await sql.fetchval("select instance from listingd.workers where id = $1", row["worker"])
        return (one, two) if instance == "one" else (two, one)

    return holder_first


async def test_another_daemon_takes_over_when_the_lease_has_run_out(
    sql: asyncpg.Pool, daemon: MakeDaemon
) -> None:
    """P6, by a daemon that lives."""
    holder_first = await start_two(sql, daemon)
    job = await enqueue(sql, 60)
    holder, _ = await holder_first(job)
    first = await read(sql, job)

    holder.kill()
    second = await eventually(lambda: _processing_by_another(sql, job, first["worker"]), 30)

    assert 1 == second["rescues"]
    attempts = await sql.fetch("select code from listingd.attempts where job_id = $1", job)
    assert ["worker_crashed"] == [a["code"] for a in attempts]


async def test_two_crashes_fail_a_job_with_worker_crashed(sql: asyncpg.Pool, daemon: MakeDaemon) -> None:
    """P7: a job that takes its process down does not do so for ever."""
    one = daemon("one")
    job = await enqueue(sql, 60)
    worker = 0
    for _ in range(2):
        await one.start()
        worker = (await eventually(lambda: _processing_by_another(sql, job, worker), 30))["worker"]  # noqa: B023
        one.kill()

    await one.start()
    failed = await wait_for_state(sql, job, "failed")

    assert 2 == failed["rescues"]
    assert '"worker_crashed"' in failed["error"]


async def test_a_frozen_daemon_that_wakes_up_writes_nothing(sql: asyncpg.Pool, daemon: MakeDaemon) -> None:
    """P5: SIGSTOP for longer than the lease. Its job is finished by another meanwhile; then it works on."""
    holder_first = await start_two(sql, daemon)
    job = await enqueue(sql, 2)
    frozen, other = await holder_first(job)
    first = await read(sql, job)

    frozen.send(signal.SIGSTOP)
    await eventually(lambda: _processing_by_another(sql, job, first["worker"]), 30)
    done = await wait_for_state(sql, job, "completed")
    frozen.send(signal.SIGCONT)
    await frozen.wait_for("lease.lost")
    other.kill()
    later = await enqueue(sql)
    await wait_for_state(sql, later, "completed")

    assert dict(done) == dict(await read(sql, job))
    assert [] == frozen.find("job.completed", job_id=str(job))
    assert 1 == await sql.fetchval("select count(*) from listingd.attempts where job_id = $1", job)
    runs = await sql.fetchval("select count(*) from listingd.workers where instance = $1", frozen.name)
    assert 2 == runs, "it came back as a new run"


async def _has_begun(sql: asyncpg.Pool, job: UUID) -> bool:
    """Its handler runs: a claim alone may still be on its way to the daemon, and a stop hands it back."""
    row = await read(sql, job)
    return row["progress"] is not None or row["state"] == "completed"


async def test_sigterm_hands_back_what_does_not_end_in_time(sql: asyncpg.Pool, daemon: MakeDaemon) -> None:
    """P8: exit 0 within soft + hard + 2 s; no attempt is spent, and what ends in time is kept."""
    one = await daemon("one", workers__soft_stop_s=4, workers__hard_stop_s=1).start()
    short = [await enqueue(sql, 2) for _ in range(5)]
    long = [await enqueue(sql, 60) for _ in range(5)]
    for job in short + long:
        await eventually(lambda job=job: _has_begun(sql, job))

    one.send(signal.SIGTERM)
    await one.wait_for("service.stopping")
    late = await enqueue(sql)
    code = await one.wait(20)

    assert 0 == code
    assert {"completed"} == {(await read(sql, job))["state"] for job in short}
    for job in long:
        row = await read(sql, job)
        assert ("pending", 0, 0) == (row["state"], row["attempt"], row["rescues"])
    assert "pending" == (await read(sql, late))["state"], "no claims once the stop has begun"
    assert await sql.fetchval("select stopped_at is not null from listingd.workers where instance = 'one'")


async def test_jobs_flow_on_while_every_session_is_terminated_again_and_again(
    sql: asyncpg.Pool, daemon: MakeDaemon
) -> None:
    """Claims and ends whose answers are lost are found again; nothing runs twice to an end."""
    one = await daemon("one", workers__concurrency=20).start()
    jobs = [await enqueue(sql, 0.05 * (n % 5), echo=n) for n in range(200)]

    for _ in range(10):
        await sql.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'listingd%'"
            " and datname = current_database()"
        )
        await asyncio.sleep(0.1)  # the fault's own rhythm, nothing is waited for

    for job in jobs:
        await wait_for_state(sql, job, "completed")
    states = await sql.fetch("select distinct rescues, state from listingd.job_states")
    assert [(0, "completed")] == [tuple(row) for row in states]
    assert not one.has_ended()


async def test_the_same_instance_name_is_refused_while_its_holder_lives(
    sql: asyncpg.Pool, daemon: MakeDaemon, dsn: str, tmp_path: Any
) -> None:
    await daemon("one").start()
    second = Daemon(tmp_path / "elsewhere", dsn, name="one")

    second.launch()
    code = await second.wait(60)

    assert code != 0
    assert "instance name one" in "".join(str(line) for line in second.read_log())
    assert 1 == await sql.fetchval("select count(*) from listingd.workers")


async def test_of_twins_started_at_the_same_moment_one_stays(
    sql: asyncpg.Pool, dsn: str, tmp_path: Any
) -> None:
    """Looking for a rival and registering are one step."""
    twins = [Daemon(tmp_path / place, dsn, name="twin") for place in ("here", "there")]
    try:
        for twin in twins:
            twin.launch()
        await eventually(lambda: any(twin.has_ended() for twin in twins), 60)
        await eventually(lambda: any(twin.find("service.ready") for twin in twins), 60)
        assert 1 == sum(twin.has_ended() for twin in twins)
        assert 1 == await sql.fetchval("select count(*) from listingd.workers")
    finally:
        for twin in twins:
            twin.kill()


async def test_a_state_dir_serves_one_daemon(daemon: MakeDaemon, dsn: str) -> None:
    one = await daemon("one").start()
    second = Daemon(one.directory, dsn, name="other")

    second.launch()
    code = await second.wait(60)

    assert code != 0
    assert f"process {one.pid}" in "".join(str(line) for line in second.read_log())


async def test_a_handler_that_never_ends_does_not_keep_the_process(
    sql: asyncpg.Pool, daemon: MakeDaemon
) -> None:
    """P8, with a handler that swallows every cancellation."""
    one = await daemon(
        "one", kinds="tests.fault_kinds", workers__soft_stop_s=0.5, workers__hard_stop_s=0.5
    ).start()
    job = await sql.fetchval("select listingd.enqueue_job('stubborn')")
    await wait_for_state(sql, job, "processing")

    one.send(signal.SIGTERM)
    code = await one.wait(20)

    row = await read(sql, job)
    assert (0, "pending", 0) == (code, row["state"], row["attempt"])
    assert "refuse_to_stop" in one.find("job.cancel_ignored")[0]["stack"]
    assert await sql.fetchval("select stopped_at is not null from listingd.workers where instance = 'one'")


async def test_a_second_signal_ends_the_soft_wait(sql: asyncpg.Pool, daemon: MakeDaemon) -> None:
    """Ctrl-C twice: what runs is cut at once, and still handed back."""
    one = await daemon("one", workers__soft_stop_s=60, workers__hard_stop_s=2).start()
    job = await enqueue(sql, 60)
    await wait_for_state(sql, job, "processing")

    one.send(signal.SIGINT)
    await one.wait_for("service.stopping")
    one.send(signal.SIGINT)
    code = await one.wait(20)

    row = await read(sql, job)
    assert (0, "pending", 0) == (code, row["state"], row["attempt"])
