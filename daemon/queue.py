"""Every state change of a job, one method per statement (sql/queries/queue.sql, sql/functions).

Must never: build SQL text, decide who runs next (scheduler.py), or know HTTP. A write of an attempt names
its fence and worker; what matches no row is lost: another attempt, a cancel or an erase came first.

Creates commit together: while one statement is in flight the next batch gathers (natural group commit), so
idle latency is one round trip and a crowd costs few transactions. A job whose user has nothing older waiting
is stored already claimed when a slot is free (claim at birth).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol, cast
from uuid import UUID

import asyncpg
from pydantic_core import PydanticSerializationError, to_json

from daemon import db as database
from daemon.errors import Conflict, InvalidInput, Unavailable
from daemon.jobs import ChildJob, ClaimedJob, NewJob, State, new_id
from daemon.json_text import write_json

MAX_BATCH = 1000
"""Jobs stored by one statement."""
_NOT_STORABLE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, PydanticSerializationError)
RECONNECT_WAIT_S = 0.5
"""How long a caller waits for a lost connection to come back before the answer is 503."""
SOON_S = 60.0
"""Every process looks at once at a stored job that is due within so many seconds; their polls find later ones in
time, since they reach as far as the feeder's horizon."""


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


@dataclass(frozen=True, slots=True)
class JobMove:
    """A job's state after a cancel or a retry. changed: False when it was not in a state for it."""

    id: UUID
    state: State
    cancel_requested: bool
    changed: bool


class Ended(NamedTuple):
    """One attempt's end: a row of the flush's parameters (a tuple: there are 40 000 a second of them).

    delay_s only counts for pending; gives_back: 1 to give the attempt back, else 0.
    """

    fence: int
    state: State
    result_text: str | None = None
    error_text: str | None = None
    delay_s: float = 0.0
    gives_back: int = 0


class ReadyRow(NamedTuple):
    """A job as the scheduler needs it. wait_s: seconds until run_at, 0 without one."""

    fence: int
    kind: str
    user_id: str
    priority: int
    wait_s: float = 0.0


class ReadyGroup(NamedTuple):
    """Jobs that are alike to the scheduler, fences in ascending order. wait_s: seconds until run_at, None
    without one; age_s: since ready, as far as known. pending: False for rows that only fill the order.
    """

    fences: list[int]
    kind: str
    user_id: str
    priority: int
    wait_s: float | None
    age_s: float
    pending: bool = True


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


@dataclass(frozen=True, slots=True)
class Seen:
    """What one statement saw, and its snapshot: oldest = the lowest transaction still running, following = the
    first not yet begun.
    """

    groups: list[ReadyGroup]
    oldest: int
    following: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """What a claim at sight saw: the jobs it claimed, the others, and the fences of both in ascending order."""

    claimed: list[ClaimedJob]
    others: list[ReadyGroup]
    fences: list[int]


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush did: the jobs claimed, the fences of attempts that were no longer ours, of those whose job is
    cancelled now (also when it was to be repeated: a cancel comes true), what is ready again.
    """

    claimed: list[ClaimedJob]
    lost: list[int]
    cancelled: list[int]
    ready: list[ReadyRow]


def _columns(ended: Sequence[Ended]) -> Iterable[Sequence[Any]]:
    """The rows as columns; what is the same for all completed jobs is left out, which is most of it."""
    if all(e.state is State.COMPLETED for e in ended):
        return [e.fence for e in ended], (), [e.result_text for e in ended], (), (), ()
    return zip(*ended, strict=True)


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

    def hint_cancel(self) -> None:
        """A running job is perhaps to stop."""
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

    def hint_cancel(self) -> None: ...


@dataclass(slots=True)
class _Ask:
    """One caller's jobs on their way into a batch."""

    jobs: Sequence[NewJob]
    ids: list[UUID]
    idempotency: Idempotency | None
    done: asyncio.Future[list[Created]]


class Queue:
    """The durable queue. `run_creator` must be running for `create` to return."""

    def __init__(self, db: database.Database, *, births: BirthDesk | None = None) -> None:
        self._db = db
        self.births: BirthDesk = births or NoBirths()
        self.rivals = True  # other processes are alive: tell them of new jobs
        self._asks: list[_Ask] = []
        self._asked = asyncio.Event()
        self._can_store = asyncio.Event()  # cleared while the creator has no connection
        self._can_store.set()

    # -- create -------------------------------------------------------------------------------------

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
            await self._wait_for_creator()
        ask = _Ask(jobs, [new_id() for _ in jobs], idempotency, asyncio.get_running_loop().create_future())
        self._asks.append(ask)
        self._asked.set()
        return await ask.done

    async def _wait_for_creator(self) -> None:
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

    async def run_creator(self) -> None:
        """Store what callers ask for, for ever; one statement in flight, on a connection of its own.

        While it cannot connect, whoever asks is refused after a moment. Errors: Unavailable; run it again.
        """
        try:
            connection = await self._db.dedicated_connection("creator")
        except Unavailable as exc:
            self._can_store.clear()
            self._refuse_all(exc)
            raise
        connection.add_termination_listener(lambda _: self._asked.set())
        self._can_store.set()
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                if connection.is_closed():
                    raise Unavailable("The creator's connection was closed.")
                while self._asks:
                    batch = self._next_batch()
                    try:
                        await self._store(connection, batch)
                    except _NOT_STORABLE as exc:
                        await self._store_one_by_one(connection, batch, exc)
                    except BaseException as exc:
                        self._refuse(batch, exc)
                        raise
        finally:
            self._can_store.clear()
            connection.terminate()

    async def _fetch(self, connection: database.Connection, name: str, *args: Any) -> list[asyncpg.Record]:
        with database.translate_errors():
            rows: list[asyncpg.Record] = await connection.fetch(self._db.sql[name], *args)
            return rows

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

    async def _store_one_by_one(
        self, connection: database.Connection, batch: Sequence[_Ask], exc: Exception
    ) -> None:
        """One caller's unreadable value must not refuse the others' jobs."""
        if len(batch) == 1:
            self._refuse(
                batch,
                InvalidInput(f"The database cannot hold a value of this job: {exc}.", code="not_storable"),
            )
            return
        for ask in batch:
            try:
                await self._store(connection, [ask])
            except _NOT_STORABLE as own:
                await self._store_one_by_one(connection, [ask], own)

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
            stored = await self._fetch(
                connection, "create_jobs", to_json(rows).decode(), self.births.worker_id, self.rivals, SOON_S
            )
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
                if row is None:
                    if job_id in born:
                        self.births.give_back(job.kind, job.user_id)
                elif job_id in born:
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
        rows = await self._fetch(connection, "read_idempotency_keys", [key.principal], [key.key])
        if not rows:
            raise Conflict(
                "A request with the same Idempotency-Key is in flight.",
                code="idempotency_in_flight", data={"retry_after_s": 1},
            )  # fmt: skip
        if rows[0]["fingerprint"] != key.fingerprint:
            raise InvalidInput(
                "This Idempotency-Key was used with another request body.",
                code="idempotency_key_reused",
                hint="Use a new key for a new request.",
            )
        ids = json.loads(rows[0]["response"]) if rows[0]["response"] else [str(rows[0]["job_id"])]
        return [Created(UUID(i), None, replayed=True) for i in ids]

    # -- finish and claim ---------------------------------------------------------------------------------

    async def flush(
        self, connection: database.Connection, ended: Sequence[Ended], worker: int, claims: Sequence[int]
    ) -> Flushed:
        """Write the ends of attempts and claim jobs by their fences, in one statement.

        A claim that another process was faster on is simply not among the claimed. Errors: Unavailable.
        """
        fences, states, results, errors, delays, gives_back = _columns(ended)
        rows = await self._fetch(
            connection, "flush", fences, states, results, errors, delays, gives_back, worker, claims
        )
        meta = json.loads(rows[-1][6])
        return Flushed(
            claimed=[ClaimedJob._make(row) for row in rows[:-1]],
            lost=meta["lost"],
            cancelled=meta["cancelled"],
            ready=[ReadyRow._make(row) for row in meta["ready"]],
        )  # fmt: skip

    async def fan_out(
        self, fence: int, worker: int, children: Sequence[Mapping[str, Any]]
    ) -> list[ReadyRow] | None:
        """Spawn children ({id, kind, slot, input}) and wait for them; what is ready now, None when lost."""
        rows = await self._db.fetch("fan_out", fence, worker, write_json(children))
        if not rows[0]["ok"]:
            return None
        return [ReadyRow(r["fence"], r["kind"], r["user_id"], r["priority"]) for r in rows[1:] if r["ok"]]

    async def report_progress(self, reports: Mapping[int, Mapping[str, Any]], worker: int) -> set[int]:
        """Write the latest progress of running jobs; the fences that still were ours."""
        rows = await self._db.fetch(
            "report_progress", list(reports), [write_json(p) for p in reports.values()], worker
        )
        return {row["fence"] for row in rows}

    async def read_children(self, parent_id: UUID) -> list[ChildJob]:
        """A parent's children with their results."""
        rows = await self._db.fetch("read_children", parent_id)
        return [
            ChildJob(
                r["id"], r["slot"], State(r["state"]),
                json.loads(r["result_text"]) if r["result_text"] else None,
                json.loads(r["error_text"]) if r["error_text"] else None,
            )
            for r in rows
        ]  # fmt: skip

    # -- what users and operators do -------------------------------------------------------------------

    async def cancel(self, job_id: UUID, user_id: str | None = None) -> JobMove | None:
        """Cancel a job with its children; None for an unknown or foreign id. Idempotent."""
        row = await self._db.fetchrow("cancel_job", job_id, user_id)
        if row is None:
            return None
        self.births.hint_cancel()  # it may run here: no need to wait for the notification
        state = State(row["state"])
        return JobMove(
            row["id"], state, row["cancel_requested"], state is State.CANCELLED or row["cancel_requested"]
        )

    async def retry(self, job_id: UUID, user_id: str | None = None) -> JobMove | None:
        """Make a failed or cancelled job pending again; None for an unknown or foreign id."""
        row = await self._db.fetchrow("retry_job", job_id, user_id)
        return None if row is None else JobMove(row["id"], State(row["state"]), False, row["retried"])

    # -- what is ready ----------------------------------------------------------------------------------

    async def connect_feeder(self) -> database.Connection:
        """A connection for looks: statements planned once, by index; commits that do not wait for the disk.

        Errors: Unavailable.
        """
        connection = await self._db.dedicated_connection("feeder")
        if not self._db.pooled:  # behind a transaction pooler the settings would leak to strangers
            await self._fetch(connection, "set_flusher")
            await self._fetch(connection, "set_feeder")
        return connection

    async def make_lasting(self) -> None:
        """Bring what was committed without waiting to the disk."""
        await self._db.fetch("make_lasting")

    async def read_ready(
        self, after: int, holes: Sequence[int], limit: int, connection: database.Connection | None = None
    ) -> Seen:
        """Jobs above a fence or in the holes, whatever their state; by a connection of the pool without one."""
        arguments = (after, holes, limit)
        if connection is None:
            rows = await self._db.fetch("read_ready", *arguments)
        else:
            rows = await self._fetch(connection, "read_ready", *arguments)
        last = rows[-1]
        return Seen([ReadyGroup._make(row[:7]) for row in rows], last["oldest"], last["following"])

    async def claim_fresh(
        self,
        connection: database.Connection,
        after: int,
        *,
        limit: int,
        kinds: Sequence[str],
        waiting_users: Sequence[str],
        worker: int,
    ) -> Fresh:
        """Jobs above a fence, those that may start claimed in the same statement; none when there are more than
        `limit`. waiting_users: their jobs are not claimed. Errors: Unavailable; perhaps some were claimed.
        """
        rows = await self._fetch(connection, "claim_fresh", after, limit, kinds, waiting_users, worker)
        claimed, groups = [], []
        for fence, kind, user_id, priority, wait_s, pending, job_id, *job in rows:
            if job_id is None:
                groups.append(ReadyGroup([fence], kind, user_id, priority, wait_s, 0.0, pending))
            else:
                claimed.append(ClaimedJob(job_id, fence, kind, user_id, *job))
        return Fresh(claimed, groups, [row[0] for row in rows])

    async def read_backlog(
        self, fence: int, last: int, kinds: Sequence[str], oldest: int | None, limit: int
    ) -> list[ReadyGroup]:
        """The first `limit` pending jobs without run_at from a fence to another. oldest: only what this transaction
        or a later one has written.
        """
        rows = await self._db.fetch("read_backlog", fence, last, kinds, oldest, limit)
        return [ReadyGroup._make(row) for row in rows]

    async def read_user_pending(self, user_id: str, fence: int, limit: int) -> list[ReadyGroup]:
        """A user's first pending jobs without run_at from a fence on."""
        return [
            ReadyGroup._make(row) for row in await self._db.fetch("read_user_pending", user_id, fence, limit)
        ]

    async def read_due(
        self, from_s: float | None, to_s: float, after: tuple[datetime, int] | None, limit: int
    ) -> tuple[list[ReadyGroup], tuple[datetime, int] | None]:
        """Pending jobs due in (from_s, to_s] seconds from now, soonest first; None: the overdue too. The second is to
        be given as `after` for the next ones, None at the end.
        """
        rows = await self._db.fetch("read_due", from_s, to_s, *(after or (None, None)), limit)
        last = (rows[-1]["run_at"], rows[-1]["fences"][0]) if len(rows) == limit else None
        return [ReadyGroup._make(row[:7]) for row in rows], last

    async def find_foreign(self, fence: int, below: int, kinds: Sequence[str]) -> int | None:
        """The first pending job without run_at, from a fence to below another, that is of none of these kinds."""
        return cast("int | None", await self._db.fetchval("find_foreign", fence, below, kinds))

    async def read_mark(self) -> tuple[int, int, int]:
        """(fence below which nothing is ready, last fence drawn, oldest transaction still running)."""
        row = await self._db.fetchrow("read_mark")
        assert row is not None  # the migration stored it
        return row["fence"], row["last_fence"], row["oldest"]

    async def raise_mark(self, fence: int) -> None:
        await self._db.fetch("raise_mark", fence)

    # -- housekeeping ----------------------------------------------------------------------------------

    async def read_cancels(self, fences: Sequence[int], worker: int) -> list[int]:
        """Of these running fences, the ones that must stop: cancelled, or no longer this worker's."""
        return [row["fence"] for row in await self._db.fetch("read_cancels", fences, worker)]

    async def rescue(
        self, *, allowed_rescues: int, dead_instance: str | None, own_worker: int
    ) -> list[asyncpg.Record]:
        """Take the jobs of dead processes back: rows (id, fence, kind, user_id, priority, state, worker)."""
        return await self._db.fetch("rescue_jobs", allowed_rescues, dead_instance, own_worker)

    async def expire(self, limit: int = 500) -> list[UUID]:
        """Fail pending jobs whose expires_at has passed."""
        return [row["id"] for row in await self._db.fetch("expire_jobs", limit)]
