"""Handlers that misbehave, inputs that cannot be read, leases and answers that get lost: one daemon in this process,
with kinds of the test's own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from daemon import workers
from daemon.errors import Retry
from daemon.handlers import HANDLERS
from daemon.handlers.context import Handler, JobContext
from daemon.service import Service, run_service
from daemon.settings import Http, Settings, Workers
from tests.support import eventually

Run = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def run(settings: Settings, database: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`async with run(kind=handler, concurrency=1) as service`."""

    @asynccontextmanager
    async def start(
        concurrency: int = 4, timeouts_s: Any = None, **handlers: Handler
    ) -> AsyncIterator[Service]:
        for kind, handler in handlers.items():
            monkeypatch.setitem(HANDLERS, kind, handler)
        own = settings.model_copy(
            update={
                "database_url": SecretStr(database), "http": Http(port=0), "poll_s": 0.5, "lease_s": 3,
                "heartbeat_s": 0.3,
                "workers": Workers(concurrency=concurrency, soft_stop_s=0.1, attempt_timeouts_s=timeouts_s or {}),
            }
        )  # fmt: skip
        async with run_service(own) as service:
            yield service

    return start


async def enqueue(service: Service, kind: str, text: str = "{}", **more: Any) -> UUID:
    names = "".join(f", {name} => ${n}" for n, name in enumerate(more, 3))
    job_id: UUID = await service.db.pool.fetchval(
        f"select listingd.enqueue_job($1, $2::jsonb{names})", kind, text, *more.values()
    )
    return job_id


async def read(service: Service, job_id: UUID) -> Any:
    return await service.db.pool.fetchrow("select * from listingd.job_states where id = $1", job_id)


async def wait_for_state(service: Service, job_id: UUID, state: str, within_s: float = 15) -> Any:
    async def reached() -> Any:
        row = await read(service, job_id)
        return row if row["state"] == state else None

    return await eventually(reached, within_s)


async def make_orphan(service: Service) -> UUID:
    """A job that is the service's own in the database, and that nothing in its memory knows of."""
    async with service.db.transaction() as connection:
        job: UUID = await connection.fetchval("select listingd.enqueue_job('ping', '{}')")
        await connection.execute(
            "update listingd.job_states set state = 'processing', worker = $2, attempt = 1,"
            " started_at = now() - interval '5 s' where id = $1", job, service.lease.worker_id,
        )  # fmt: skip
        await service.db.fetch("lower_fence_mark", service.lease.worker_id, 0)
        service.lease.low_fence = 0
    return job


async def wait_for_ever(_: JobContext) -> None:
    await asyncio.Event().wait()


async def test_a_handler_that_swallows_its_cancellation_loses_its_slot(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job ends without it, its stack is told, and the only slot runs the next job."""
    monkeypatch.setattr(workers, "SWALLOW_GRACE_S", 0.3)
    entered, let_go = asyncio.Event(), asyncio.Event()

    async def refuse_to_stop(_: JobContext) -> None:
        entered.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    with capture_logs() as logs:
        async with run(stubborn=refuse_to_stop, concurrency=1) as service:
            job = await enqueue(service, "stubborn")
            await asyncio.wait_for(entered.wait(), 10)
            await service.queue.cancel(job)
            await wait_for_state(service, job, "cancelled")
            after = await enqueue(service, "ping")
            await wait_for_state(service, after, "completed")
            assert 1 == len(service.workers.stubborn)
            let_go.set()
            await eventually(lambda: not service.workers.stubborn)
            assert "cancelled" == (await read(service, job))["state"]

    (told,) = [line for line in logs if line["event"] == "job.cancel_ignored"]
    assert "refuse_to_stop" in told["stack"]


async def test_a_handler_that_turns_its_cancellation_into_something_else_leaves_no_trace(run: Run) -> None:
    """The worker's next job must not see the cancellation of the last one, whatever that made of it."""
    entered = asyncio.Event()

    async def disguise(_: JobContext) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Retry("Not now.", after_s=60) from None

    async def use_a_group(_: JobContext) -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        task = asyncio.current_task()
        assert task is not None
        return f"cancelled {task.cancelling()} times"

    async with run(disguise=disguise, grouped=use_a_group, concurrency=1) as service:
        job = await enqueue(service, "disguise")
        await asyncio.wait_for(entered.wait(), 10)
        await service.queue.cancel(job)
        await wait_for_state(service, job, "cancelled")
        after = await enqueue(service, "grouped")
        done = await wait_for_state(service, after, "completed")

    assert "cancelled 0 times" == json.loads(done["result"])


async def test_a_cancellation_from_within_a_handler_ends_its_attempt_and_keeps_its_slot(run: Run) -> None:
    """Nobody stops the attempt: something that it waits for was cancelled by somebody else."""

    async def wait_for_something_cancelled(_: JobContext) -> None:
        awaited = asyncio.get_running_loop().create_future()
        awaited.cancel()
        await awaited

    async with run(broken=wait_for_something_cancelled, concurrency=1) as service:
        job = await enqueue(service, "broken", max_attempts=1)
        failed = await wait_for_state(service, job, "failed")
        after = await enqueue(service, "ping")
        await wait_for_state(service, after, "completed")

    assert "handler_failed" == json.loads(failed["error"])["code"]


async def test_a_cancel_that_meets_an_end_to_be_repeated_is_told_as_what_it_became(run: Run) -> None:
    """The row says cancelled; so must the log."""

    async def give_up(ctx: JobContext) -> None:
        await service.queue.cancel(ctx.job_id)
        raise Retry("Not now.", after_s=60)

    with capture_logs() as logs:
        async with run(fickle=give_up) as service:
            job = await enqueue(service, "fickle")
            await wait_for_state(service, job, "cancelled")
            await eventually(lambda: [line for line in logs if line.get("job_id") == job])

    assert ["job.cancelled"] == [line["event"] for line in logs if line.get("job_id") == job]


async def test_an_attempt_that_takes_too_long_is_stopped_and_tried_again(run: Run) -> None:
    """The limit of its kind; the other kinds keep theirs."""
    async with run(slow=wait_for_ever, patient=wait_for_ever, timeouts_s={"slow": 0.3}) as service:
        patient = await enqueue(service, "patient")
        job = await enqueue(service, "slow", max_attempts=1)

        failed = await wait_for_state(service, job, "failed")

        assert "timed_out" == json.loads(failed["error"])["code"]
        assert "processing" == (await read(service, patient))["state"]
        await service.queue.cancel(patient)
        await wait_for_state(service, patient, "cancelled")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"echo": ' + "9" * 5000 + "}", "input_unreadable"),
        ('{"echo": ' + "[" * 3000 + "]" * 3000 + "}", "input_unreadable"),
        ('{"sleep_s": 1e400}', "invalid_input"),
        ('{"sleep_s": "soon"}', "invalid_input"),
        ('{"unheard_of": 1}', "invalid_input"),
        ("[1, 2]", "invalid_input"),
        ("null", "invalid_input"),
    ],
    ids=["5000 digits", "3000 levels", "beyond a float", "wrong type", "unknown field", "a list", "null"],
)  # fmt: skip
async def test_an_input_that_python_cannot_take_fails_alone(run: Run, text: str, code: str) -> None:
    """It stands at the head of the queue, before good jobs, and jsonb holds it happily."""
    async with run(concurrency=1) as service:
        async with service.db.transaction() as connection:
            bad = await connection.fetchval("select listingd.enqueue_job('ping', $1::jsonb)", text)
            good = await connection.fetchval("select listingd.enqueue_job('ping', '{\"echo\": 1}')")

        failed = await wait_for_state(service, bad, "failed")
        await wait_for_state(service, good, "completed")

    assert code == json.loads(failed["error"])["code"]
    assert 1 == failed["attempt"]


async def test_a_kind_that_nobody_here_knows_waits_for_one_who_does(run: Run) -> None:
    async with run() as service:
        foreign = await enqueue(service, "engrave")
        good = await enqueue(service, "ping")

        await wait_for_state(service, good, "completed")

        assert "pending" == (await read(service, foreign))["state"]


async def test_a_lease_that_comes_back_gives_its_jobs_another_run(run: Run) -> None:
    """The database answered too late: the jobs were stopped, but nobody else has taken them."""
    entered: list[int] = []

    async def note(ctx: JobContext) -> None:
        entered.append(ctx.attempt)
        if len(entered) == 1:
            await asyncio.Event().wait()

    with capture_logs() as logs:
        async with run(note=note) as service:
            job = await enqueue(service, "note")
            await eventually(lambda: entered)
            worker = service.lease.worker_id
            async with service.db.transaction() as connection:
                await connection.execute("select 1 from listingd.workers where id = $1 for update", worker)
                await eventually(lambda: any(line["event"] == "lease.lost" for line in logs), 10)
            await wait_for_state(service, job, "completed")

            assert worker == service.lease.worker_id

    assert [1, 1] == entered, "the second run is the same attempt: the first was given back"


@pytest.mark.parametrize("statement", ["raise_fence_mark", "read_own_claims"])
async def test_jobs_are_stopped_before_others_take_them_whatever_waits_for_the_database(
    run: Run, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """A connection that has gone silent is found out after 20 s, when the lease is long over."""
    monkeypatch.setattr(workers, "LOW_EVERY_S", 0.0)
    has_begun, is_stopped = asyncio.Event(), asyncio.Event()

    async def endless(_: JobContext) -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            is_stopped.set()

    async with run(endless=endless) as service:
        fetch, is_waiting = service.db.fetch, asyncio.Event()

        async def fall_silent(name: str, *arguments: Any) -> Any:
            if name != statement:
                return await fetch(name, *arguments)
            is_waiting.set()
            return await asyncio.Event().wait()

        monkeypatch.setattr(service.db, "fetch", fall_silent)
        await enqueue(service, "endless")
        await has_begun.wait()
        service.lease.low_fence = 0
        service.workers.adopt_soon()
        await asyncio.wait_for(is_waiting.wait(), 10)

        service.lease.gone = True

        await asyncio.wait_for(is_stopped.wait(), 5)


async def test_a_daemon_declared_dead_begins_anew(run: Run) -> None:
    """As after a SIGSTOP: another process has stopped its run and taken its jobs."""
    entered: list[int] = []

    async def note(ctx: JobContext) -> None:
        entered.append(ctx.attempt)
        if len(entered) == 1:
            await asyncio.Event().wait()

    async with run(note=note) as service:
        job = await enqueue(service, "note")
        await eventually(lambda: entered)
        old = service.lease.worker_id
        async with service.db.transaction() as connection:
            await connection.execute("update listingd.workers set lease_until = now() - interval '1 s'")
            await connection.fetch("select * from listingd.rescue_jobs(9, null, 0)")

        done = await wait_for_state(service, job, "completed")

        assert 1 == done["rescues"]
        assert service.lease.worker_id != old
        assert (await service.readiness()).ready


async def test_a_claim_whose_answer_was_lost_is_handed_back(run: Run) -> None:
    """In the database the job is ours; in memory nobody knows of it."""
    async with run() as service:
        job = await make_orphan(service)
        service.workers.adopt_soon()  # what a lost answer to a claim or a birth does

        done = await wait_for_state(service, job, "completed")

    assert (1, 0) == (done["attempt"], done["rescues"])


async def test_doubts_that_come_all_the_time_do_not_put_off_the_search_for_orphans(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ADOPT_AFTER_S", (1.5, 2.0))
    async with run() as service:
        job = await make_orphan(service)

        async def is_done() -> bool:
            service.workers.adopt_soon()
            return bool((await read(service, job))["state"] == "completed")

        await eventually(is_done, within_s=8)


async def test_rescue_would_begin_above_what_has_ended_and_below_what_is_in_hand(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LOW_EVERY_S", 0.0)

    async def low_fence() -> int:
        fence: int = await service.db.pool.fetchval(
            "select low_fence from listingd.workers where id = $1", service.lease.worker_id
        )
        return fence

    async with run(endless=wait_for_ever) as service:
        later = await enqueue(service, "endless", run_at=datetime.now(UTC) + timedelta(seconds=4))
        ended = await enqueue(service, "ping")
        await wait_for_state(service, ended, "completed")

        async def has_risen() -> bool:
            return await low_fence() > (await read(service, ended))["fence"]

        await eventually(has_risen)
        row = await wait_for_state(service, later, "processing")
        for _ in range(3):
            assert await low_fence() <= row["fence"]
            await asyncio.sleep(workers.WATCH_EVERY_S * workers.LOW_CANDIDATES)


async def test_rescue_would_find_an_attempt_whose_end_cannot_be_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is locked for as long as somebody likes, and meanwhile others come and go."""
    monkeypatch.setattr(workers, "LOW_EVERY_S", 0.0)
    entered, let_go = asyncio.Event(), asyncio.Event()

    async def wait(_: JobContext) -> None:
        entered.set()
        await let_go.wait()

    async with run(patient=wait, endless=wait_for_ever) as service:
        job = await enqueue(service, "patient")
        await asyncio.wait_for(entered.wait(), 10)
        async with service.db.transaction() as connection:
            row = await connection.fetchrow(
                "select fence from listingd.job_states where id = $1 for update", job
            )
            let_go.set()
            await wait_for_state(service, await enqueue(service, "endless"), "processing")
            await asyncio.sleep(2 * workers.WATCH_EVERY_S * workers.LOW_CANDIDATES)
            low = await service.db.pool.fetchval(
                "select low_fence from listingd.workers where id = $1", service.lease.worker_id
            )
            assert low <= row["fence"]
        await wait_for_state(service, job, "completed")


async def test_a_stop_gives_the_lease_back_with_nothing_in_hand(run: Run, db: Any) -> None:
    async with run(endless=wait_for_ever) as service:
        job = await enqueue(service, "endless")
        await wait_for_state(service, job, "processing")
        worker = service.lease.worker_id

    row = await db.pool.fetchrow("select * from listingd.job_states where id = $1", job)
    stopped = await db.pool.fetchval("select stopped_at from listingd.workers where id = $1", worker)
    assert ("pending", 0, 0) == (row["state"], row["attempt"], row["rescues"])
    assert stopped is not None
