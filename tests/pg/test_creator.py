"""Creates: idempotency keys, who is told, and what the database cannot hold (daemon/creator.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from daemon.creator import BirthDesk, Creator, Idempotency, NoBirths
from daemon.db import Connection, Database
from daemon.errors import Conflict, InvalidInput, Unavailable
from daemon.feeder import HORIZON_S
from daemon.jobs import ClaimedJob, NewJob
from daemon.queue import Queue


class CountedLooks(NoBirths):
    """Counts how often the feeder is asked to look."""

    def __init__(self) -> None:
        self.count = 0

    def look(self) -> None:
        self.count += 1


class BornAtOnce(NoBirths):
    """A worker with a free slot for every new job."""

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.heard: list[str] = []

    def admit(self, kind: str, user_id: str) -> bool:
        return True

    def give_back(self, kind: str, user_id: str) -> None:
        self.heard.append("give back")

    def start(self, job: ClaimedJob) -> None:
        self.heard.append("start")

    def offer(self, fence: int, kind: str, user_id: str, priority: int) -> None:
        self.heard.append("offer")


async def start_worker(db: Database) -> int:
    worker: int = await db.fetchval("start_worker", "test", 60.0, ["ping"], 4, "{}")
    return worker


class LosesItsConnection(Queue):
    """Its third statement finds the session ended."""

    count = 0

    async def create_jobs(
        self, connection: Connection, rows: str, worker: int | None
    ) -> list[asyncpg.Record]:
        self.count += 1
        if self.count == 3:
            await self._db.pool.fetchval("select pg_terminate_backend($1, 5000)", connection.get_server_pid())
        return await super().create_jobs(connection, rows, worker)


@pytest.fixture
async def creator(db: Database) -> AsyncIterator[Creator]:
    creator = Creator(Queue(db))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(creator.run())
        yield creator
        running.cancel()


@pytest.fixture
async def connection(db: Database) -> AsyncIterator[Connection]:
    connection = await db.dedicated_connection("test")
    yield connection
    connection.terminate()


async def test_the_same_key_at_once_makes_one_job(creator: Creator, connection: Connection) -> None:
    """P1: a client that retries gets the job it already has."""
    key = Idempotency("user:u", "k1", "hash")

    made = await asyncio.gather(*(creator.create([NewJob("ping", {})], idempotency=key) for _ in range(100)))

    assert 1 == len({m[0].id for m in made})
    assert 1 == sum(not m[0].replayed for m in made)
    assert 1 == await connection.fetchval("select count(*) from listingd.jobs")


async def test_a_keyed_batch_is_replayed_whole(creator: Creator, connection: Connection) -> None:
    key = Idempotency("user:u", "k1", "hash")
    jobs = [NewJob("ping", {"echo": i}) for i in range(3)]

    first = await creator.create(jobs, idempotency=key)
    second = await creator.create(jobs, idempotency=key)

    assert [m.id for m in first] == [m.id for m in second]
    assert all(m.replayed for m in second)
    assert 3 == await connection.fetchval("select count(*) from listingd.jobs")


@pytest.mark.parametrize(("due_in_s", "is_looked_at"), [(-5.0, True), (HORIZON_S, True), (86_400.0, False)])
async def test_only_a_job_that_is_due_soon_is_looked_at(
    creator: Creator, due_in_s: float, is_looked_at: bool
) -> None:
    """The feeder finds the others by its polls: a look for each of them cost as much as storing it."""
    creator.births = looks = CountedLooks()

    await creator.create([NewJob("ping", {}, run_at=datetime.now(UTC) + timedelta(seconds=due_in_s))])

    assert is_looked_at == (looks.count == 1)


async def test_other_processes_hear_only_of_what_they_could_run_soon(
    creator: Creator, connection: Connection, db: Database
) -> None:
    """A notification makes each of them read, and commits that carry one wait for each other."""
    heard: list[str] = []
    await connection.add_listener("listingd_jobs", lambda *_: heard.append("jobs"))

    async def is_told(births: BirthDesk, due_in_s: float | None = None) -> bool:
        creator.births = births
        heard.clear()
        run_at = None if due_in_s is None else datetime.now(UTC) + timedelta(seconds=due_in_s)
        await creator.create([NewJob("ping", {}, run_at=run_at)])
        for _ in range(2):  # the server tells before it answers; the callback runs before the second answer
            await connection.fetchval("select 1")
        return bool(heard)

    assert await is_told(NoBirths())
    assert await is_told(NoBirths(), due_in_s=HORIZON_S)
    assert not await is_told(NoBirths(), due_in_s=86_400.0)
    assert not await is_told(BornAtOnce(await start_worker(db)))


async def test_nothing_is_born_to_a_worker_whose_lease_is_over(
    creator: Creator, connection: Connection, db: Database
) -> None:
    """Its statement was long on the way, and rescue has been there: nobody would ever look for the job."""
    creator.births = births = BornAtOnce(await start_worker(db))

    await creator.create([NewJob("ping", {})])
    await connection.execute("update listingd.workers set lease_until = now()")
    await creator.create([NewJob("ping", {})])

    assert ["start", "give back", "offer"] == births.heard
    states = await connection.fetch("select state from listingd.job_states order by fence")
    assert ["processing", "pending"] == [row["state"] for row in states]


async def test_a_key_with_another_body_is_refused(creator: Creator, connection: Connection) -> None:
    await creator.create([NewJob("ping", {})], idempotency=Idempotency("u", "k", "one"))

    with pytest.raises(InvalidInput) as caught:
        await creator.create([NewJob("ping", {})], idempotency=Idempotency("u", "k", "two"))
    assert "idempotency_key_reused" == caught.value.code


async def test_one_unstorable_job_refuses_nobody_else(creator: Creator, connection: Connection) -> None:
    good = creator.create([NewJob("ping", {"echo": "fine"})])
    bad = creator.create([NewJob("ping", {"echo": "\x00"})])

    answers = await asyncio.gather(good, bad, return_exceptions=True)

    assert not isinstance(answers[0], BaseException)
    assert isinstance(answers[1], InvalidInput)


async def test_a_lost_connection_leaves_nobody_without_an_answer(db: Database) -> None:
    """It is lost just when a batch with a value that cannot be held is stored one by one."""
    queue = LosesItsConnection(db)
    creator = Creator(queue)
    good, bad = NewJob("ping", {"echo": "fine"}), NewJob("ping", {"echo": "\x00"})
    asks = asyncio.gather(creator.create([bad]), creator.create([good]), return_exceptions=True)
    await asyncio.sleep(0)  # both are in one batch

    with pytest.raises(Unavailable):
        await creator.run()

    async with asyncio.timeout(5):
        answers = await asks
    assert [InvalidInput, Unavailable] == [type(answer) for answer in answers]


async def test_who_asks_just_when_an_idle_connection_is_lost_is_answered_by_the_next(db: Database) -> None:
    creator = Creator(Queue(db))
    asks: list[asyncio.Task[Any]] = []
    connect = creator._queue.connect_creator

    async def connect_and_ask_at_its_end() -> Connection:
        connection = await connect()
        connection.add_termination_listener(
            lambda _: asks.append(asyncio.create_task(creator.create([NewJob("ping", {})])))
        )
        return connection

    creator._queue.connect_creator = connect_and_ask_at_its_end  # type: ignore[method-assign]
    running = asyncio.create_task(creator.run())
    await creator.create([NewJob("ping", {})])
    await db.pool.fetchval(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name = 'listingd:creator'"
    )
    with pytest.raises(Unavailable):
        await running

    again = asyncio.create_task(creator.run())  # as the supervisor does
    async with asyncio.timeout(5):
        await asks[0]
    again.cancel()
    await asyncio.wait({again})


async def test_conflict_says_what_to_do(creator: Creator, connection: Connection) -> None:
    """A key that another transaction holds and has not committed: the caller is told to send it again."""
    with pytest.raises(Conflict) as caught:
        await creator._replay(connection, Idempotency("nobody", "none", "x"))
    assert "idempotency_in_flight" == caught.value.code
