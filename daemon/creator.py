"""Stores new jobs: the callers of one moment in one statement (sql/queries/queue.sql, create_jobs).

    create --> asks --> run: create_jobs --> births: what is stored starts, or waits for its turn
                                         --> the callers' answers

While one statement is in flight the next batch gathers (natural group commit), so idle latency is one round trip
and a crowd costs few transactions. A job whose user has nothing older waiting is stored already claimed when a
slot is free (claim at birth). One caller's job that the database cannot hold refuses nobody else's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import asyncpg
from pydantic_core import PydanticSerializationError, to_json

from daemon import db as database
from daemon.errors import Conflict, InvalidInput, Unavailable
from daemon.jobs import ClaimedJob, NewJob, new_id
from daemon.queue import Queue

MAX_BATCH = 1000
"""Jobs stored by one statement."""
_NOT_STORABLE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, PydanticSerializationError)
RECONNECT_WAIT_S = 0.5
"""How long a caller waits for a lost connection to come back before the answer is 503."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A caller's Idempotency-Key. fingerprint: a hash of the request body."""

    principal: str
    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Created:
    """A job that was asked for. replayed: an earlier call with the same key made it."""

    id: UUID
    created_at: datetime | None
    replayed: bool = False


class BirthDesk(Protocol):
    """Says whether a new job may start at birth, and starts it once it is stored (workers.py)."""

    @property
    def worker_id(self) -> int | None: ...

    def admit(self, kind: str, user_id: str) -> bool: ...

    def give_back(self, kind: str, user_id: str) -> None: ...

    def start(self, job: ClaimedJob) -> None: ...

    def offer(self, fence: int, kind: str, user_id: str, priority: int) -> None: ...

    def look(self) -> None:
        """Something is ready that only the database knows in full."""
        ...


class NoBirths:
    """For a process that only enqueues: every job is stored pending and the daemons are told."""

    worker_id: int | None = None

    def admit(self, kind: str, user_id: str) -> bool:
        return False

    def give_back(self, kind: str, user_id: str) -> None: ...

    def start(self, job: ClaimedJob) -> None: ...

    def offer(self, fence: int, kind: str, user_id: str, priority: int) -> None: ...

    def look(self) -> None: ...


def _write_row(job_id: UUID, job: NewJob, at_birth: bool) -> dict[str, Any]:
    """A job as create_jobs reads it. What is as usual is left out: every job pays for its text."""
    row: dict[str, Any] = {
        "id": job_id, "kind": job.kind, "user_id": job.user_id, "priority": job.priority,
        "max_attempts": job.max_attempts, "input": job.input, "born": at_birth,
    }  # fmt: skip
    if job.project_id is not None:
        row["project_id"] = job.project_id
    if job.metadata:
        row["metadata"] = job.metadata
    if job.tags:
        row["tags"] = job.tags
    if job.run_at is not None:
        row["run_at"] = job.run_at
    if job.expires_at is not None:
        row["expires_at"] = job.expires_at
    if job.webhook is not None:
        row["webhook"] = job.webhook
    return row


def _write_key(key: Idempotency, ids: Sequence[UUID], index: int) -> dict[str, Any]:
    """What a keyed batch adds to its rows: the first one carries the key, the others name the first."""
    if index:
        return {"keyed_by": ids[0]}
    return {
        "keyed_by": ids[0], "principal": key.principal, "key": key.key, "fingerprint": key.fingerprint,
        "response": ids if len(ids) > 1 else None,
    }  # fmt: skip


@dataclass(slots=True)
class _Ask:
    """One caller's jobs on their way into a batch."""

    jobs: Sequence[NewJob]
    ids: list[UUID]
    idempotency: Idempotency | None
    done: asyncio.Future[list[Created]]


class Creator:
    """Creates jobs in a queue. `run` must be running for `create` to return. births: without them all is stored
    pending and the daemons are told.
    """

    def __init__(self, queue: Queue, *, births: BirthDesk | None = None) -> None:
        self._queue = queue
        self.births: BirthDesk = births or NoBirths()
        self._asks: list[_Ask] = []
        self._asked = asyncio.Event()
        self._can_store = asyncio.Event()  # cleared while there is no connection
        self._can_store.set()

    async def create(
        self, jobs: Sequence[NewJob], *, idempotency: Idempotency | None = None
    ) -> list[Created]:
        """Store jobs in one transaction; in order. Returns after the commit.

        Errors: InvalidInput (idempotency_key_reused; a value that the database cannot hold),
        Conflict (idempotency_in_flight), Unavailable (nothing is known to be stored).
        """
        if len(jobs) > MAX_BATCH:
            raise InvalidInput(f"At most {MAX_BATCH} jobs at once.", code="batch_too_large")
        if not jobs:
            return []
        if not self._can_store.is_set():
            await self._wait_for_connection()
        ask = _Ask(jobs, [new_id() for _ in jobs], idempotency, asyncio.get_running_loop().create_future())
        self._asks.append(ask)
        self._asked.set()
        return await ask.done

    async def _wait_for_connection(self) -> None:
        """A session that ended is replaced in a moment; a database that is gone is told at once."""
        try:
            async with asyncio.timeout(RECONNECT_WAIT_S):
                await self._can_store.wait()
        except TimeoutError:
            raise Unavailable(
                "The database cannot be reached right now.",
                hint="Nothing was stored; send the request again in a moment.",
                data={"retry_after_s": 1},
            ) from None

    async def run(self) -> None:
        """Store what callers ask for, for ever; one statement in flight, on a connection of its own.

        While it cannot connect, whoever asks is refused after a moment. Errors: Unavailable; run it again.
        """
        try:
            connection = await self._queue.connect_creator()
        except Unavailable as exc:
            self._can_store.clear()
            self._refuse_all(exc)
            raise
        connection.add_termination_listener(lambda _: self._asked.set())
        self._can_store.set()
        self._asked.set()  # somebody may have asked just when the last connection was lost
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                if connection.is_closed():
                    raise Unavailable("The creator's connection was closed.")
                while self._asks:
                    batch = self._next_batch()
                    try:
                        await self._store_all(connection, batch)
                    except BaseException as exc:
                        self._refuse(batch, exc)
                        raise
        finally:
            self._can_store.clear()
            connection.terminate()

    def _refuse_all(self, why: Unavailable) -> None:
        """Answer everybody who waits."""
        asks, self._asks = self._asks, []
        for ask in asks:
            if not ask.done.done():
                ask.done.set_exception(why)

    def _next_batch(self) -> list[_Ask]:
        size = 0
        for count, ask in enumerate(self._asks):
            size += len(ask.jobs)
            if size > MAX_BATCH and count:
                break
        else:
            count = len(self._asks)
        batch, self._asks = self._asks[:count], self._asks[count:]
        return batch

    @staticmethod
    def _refuse(batch: Sequence[_Ask], exc: BaseException) -> None:
        if not isinstance(exc, Exception):  # cancelled: the process stops
            exc = Unavailable("The daemon is stopping.", data={"retry_after_s": 2})
        for ask in batch:
            if not ask.done.done():
                ask.done.set_exception(exc)

    async def _store_all(self, connection: database.Connection, batch: Sequence[_Ask]) -> None:
        """One caller's value that the database cannot hold must not refuse the others' jobs."""
        try:
            await self._store(connection, batch)
        except _NOT_STORABLE as exc:
            if len(batch) > 1:
                for ask in batch:
                    await self._store_all(connection, [ask])
                return
            self._refuse(
                batch,
                InvalidInput(f"The database cannot hold a value of this job: {exc}.", code="not_storable"),
            )

    async def _store(self, connection: database.Connection, batch: Sequence[_Ask]) -> None:
        rows: list[dict[str, Any]] = []
        born: dict[UUID, NewJob] = {}
        for ask in batch:
            for index, (job_id, job) in enumerate(zip(ask.ids, ask.jobs, strict=True)):
                at_birth = job.run_at is None and self.births.admit(job.kind, job.user_id)
                if at_birth:
                    born[job_id] = job
                row = _write_row(job_id, job, at_birth)
                if ask.idempotency is not None:
                    row |= _write_key(ask.idempotency, ask.ids, index)
                rows.append(row)
        try:
            stored = await self._queue.create_jobs(connection, to_json(rows).decode(), self.births.worker_id)
        except BaseException:
            for job in born.values():
                self.births.give_back(job.kind, job.user_id)
            raise
        found = {row["id"]: row for row in stored}
        self._hand_out(batch, found, born)
        await self._answer(connection, batch, found)

    def _hand_out(
        self, batch: Sequence[_Ask], found: Mapping[UUID, asyncpg.Record], born: Mapping[UUID, NewJob]
    ) -> None:
        """Start what was born running, offer the rest to the scheduler."""
        for ask in batch:
            for job_id, job in zip(ask.ids, ask.jobs, strict=True):
                row = found.get(job_id)
                if job_id in born and (row is None or not row["is_born"]):
                    self.births.give_back(job.kind, job.user_id)
                if row is None:
                    continue
                if row["is_born"]:
                    self.births.start(
                        ClaimedJob(
                            id=job_id, fence=row["fence"], kind=job.kind, user_id=job.user_id, attempt=1,
                            max_attempts=job.max_attempts, input_text=to_json(job.input).decode(),
                            project_id=job.project_id,
                        )
                    )  # fmt: skip
                elif job.run_at is None:
                    self.births.offer(row["fence"], job.kind, job.user_id, job.priority)
                elif row["is_soon"]:
                    self.births.look()  # reading it costs a statement, as much as storing it

    async def _answer(
        self, connection: database.Connection, batch: Sequence[_Ask], found: Mapping[UUID, asyncpg.Record]
    ) -> None:
        """A caller whose jobs were not stored gave an idempotency key that was taken."""
        for ask in batch:
            if ask.ids[0] in found:
                if not ask.done.done():
                    ask.done.set_result([Created(i, found[i]["created_at"]) for i in ask.ids])
                continue
            assert ask.idempotency is not None
            try:
                answer = await self._replay(connection, ask.idempotency)
            except Exception as exc:  # handed to the caller who asked, who translates it
                if not ask.done.done():
                    ask.done.set_exception(exc)
            else:
                if not ask.done.done():
                    ask.done.set_result(answer)

    async def _replay(self, connection: database.Connection, key: Idempotency) -> list[Created]:
        found = await self._queue.read_idempotency_key(connection, key.principal, key.key)
        if found is None:
            raise Conflict(
                "A request with the same Idempotency-Key is in flight.",
                code="idempotency_in_flight", data={"retry_after_s": 1},
            )  # fmt: skip
        if found["fingerprint"] != key.fingerprint:
            raise InvalidInput(
                "This Idempotency-Key was used with another request body.",
                code="idempotency_key_reused",
                hint="Use a new key for a new request.",
            )
        ids = json.loads(found["response"]) if found["response"] else [str(found["job_id"])]
        return [Created(UUID(i), None, replayed=True) for i in ids]
