"""Every state change of a job, one method per statement (sql/queries/queue.sql, sql/functions).

Must never: build SQL text, decide who runs next (scheduler.py), or know HTTP. A write of an attempt names
its fence and worker; what matches no row is lost: another attempt, a cancel or an erase came first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, cast
from uuid import UUID

import asyncpg

from daemon import db as database
from daemon.jobs import ChildJob, ClaimedJob, State
from daemon.json_text import write_json

SOON_S = 60.0
"""Every process looks at once at a stored job that is due within so many seconds; their polls find later ones in
time, since they reach as far as the feeder's horizon."""


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


class Queue:
    """The durable queue. on_cancel: called after a cancel; a job that runs here is perhaps to stop."""

    def __init__(self, db: database.Database) -> None:
        self._db = db
        self.rivals = True  # other processes are alive: tell them of new jobs
        self.on_cancel: Callable[[], None] = lambda: None

    async def _fetch(self, connection: database.Connection, name: str, *args: Any) -> list[asyncpg.Record]:
        with database.translate_errors():
            rows: list[asyncpg.Record] = await connection.fetch(self._db.sql[name], *args)
            return rows

    # -- create ---------------------------------------------------------------------------------------

    async def connect_creator(self) -> database.Connection:
        """A connection for creates. Errors: Unavailable."""
        return await self._db.dedicated_connection("creator")

    async def create_jobs(
        self, connection: database.Connection, rows: str, worker: int | None
    ) -> list[asyncpg.Record]:
        """Store jobs, a JSON array as the statement describes it; rows (id, fence, created_at, is_soon, is_born) of
        those that were stored. worker: claims what is born running. Errors: Unavailable; asyncpg's DataError and
        IntegrityConstraintViolationError for what cannot be stored.
        """
        return await self._fetch(connection, "create_jobs", rows, worker, self.rivals, SOON_S)

    async def read_idempotency_key(
        self, connection: database.Connection, principal: str, key: str
    ) -> asyncpg.Record | None:
        """What a key was used for (fingerprint, job_id, response), once that is committed."""
        rows = await self._fetch(connection, "read_idempotency_keys", [principal], [key])
        return rows[0] if rows else None

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
        self.on_cancel()  # it may run here: no need to wait for the notification
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
