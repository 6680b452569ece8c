"""The life of jobs as SQL makes it, against a model in Python: any order of creates, claims, ends, fan-outs, cancels,
retries, crashes, rescues, expiries and prunes by several workers, with late words of stale ones in between.

After every step the whole table is read. What the step may change is told by the model; the rest must stand still.

    P1  no job vanishes, but finished ones that were pruned
    P2  a final state never changes, except by a retry
    P5  a word with a fence that is not held changes nothing
    P7  attempts <= max_attempts, rescues <= what is allowed
    and: a fence only grows; a waiting parent counts exactly its open children, and is released at the last one
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from daemon.db import Database, open_pool
from daemon.jobs import State, new_id
from daemon.queue import Ended, Queue
from daemon.settings import Settings

T = TypeVar("T")

EXAMPLES = int(os.environ.get("LISTINGD_TEST_EXAMPLES", "15"))
ALLOWED_RESCUES = 2
OPEN = {"pending", "processing", "waiting"}
FINAL = {"completed", "failed", "cancelled"}
CLEAR = (
    "truncate listingd.jobs, listingd.job_states, listingd.workers, listingd.attempts, listingd.steps cascade"
)
READ = """
select id, fence, parent_id, state, attempt, max_attempts, rescues, open_children, cancel_requested, worker, unique_key
from listingd.job_states
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A job as the table has it."""

    id: UUID
    fence: int
    parent_id: UUID | None
    state: str
    attempt: int
    max_attempts: int
    rescues: int
    open_children: int
    cancel_requested: bool
    worker: int | None
    unique_key: str | None


pick = st.integers(0, 10**6)


class Jobs(RuleBasedStateMachine):
    """Everything is picked by number, so that a failing run can be made shorter."""

    def __init__(self, runner: asyncio.Runner, db: Database) -> None:
        super().__init__()
        self._runner = runner
        self._db = db
        self._queue = Queue(db)
        self.rows: dict[UUID, Row] = {}
        self.fences: list[int] = []  # every fence ever seen
        self.workers: list[int] = []
        self.dead: set[int] = set()
        self.expected: dict[UUID, str | None] = {}  # job -> state that the step must leave; None: gone

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def execute(self, text: str, *args: Any) -> None:
        self.do(self._db.pool.execute(text, *args))

    def value(self, text: str, *args: Any) -> Any:
        return self.do(self._db.pool.fetchval(text, *args))

    def one_of(self, number: int, *states: str) -> Row | None:
        """One of the jobs in these states."""
        found = sorted((r for r in self.rows.values() if r.state in states), key=lambda r: r.fence)
        return found[number % len(found)] if found else None

    def children_of(self, job: UUID) -> list[Row]:
        return [row for row in self.rows.values() if row.parent_id == job]

    def ends(self, row: Row, state: str) -> None:
        """A child's end may release its parent."""
        self.expected[row.id] = state
        parent = self.rows.get(row.parent_id) if row.parent_id else None
        if parent is None or parent.state != "waiting" or state in OPEN:
            return
        others = [
            c
            for c in self.children_of(parent.id)
            if self.expected.get(c.id, c.state) in OPEN and c.id != row.id
        ]
        self.expected[parent.id] = "waiting" if others else "pending"  # it counts

    @contextmanager
    def step(self) -> Iterator[None]:
        """Read the table afterwards: the expected changes and no others."""
        self.expected = {}
        before = self.rows
        yield
        rows = self.do(self._db.pool.fetch(READ))
        self.rows = {row["id"]: Row(**row) for row in rows}
        for job_id, row in before.items():
            now = self.rows.get(job_id)
            if job_id not in self.expected:
                assert row == now, "the step changed what it must not touch"
                continue
            wanted = self.expected[job_id]
            if wanted is None:
                assert now is None
                continue
            assert now is not None, "a job vanished"
            assert wanted == now.state
            assert now.fence >= row.fence
        self.fences.extend(row.fence for row in self.rows.values() if row.fence not in self.fences)

    # -- steps ----------------------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        self.execute(CLEAR)
        for name in "ab":
            self.start_worker(name)

    @rule(name=st.sampled_from("abc"))
    def start_worker(self, name: str) -> None:
        row = self.do(
            self._db.fetchrow("start_worker", f"{name}{len(self.workers)}", 600.0, ["ping"], 4, "{}")
        )
        assert row is not None
        self.workers.append(row["id"])

    @rule(attempts=st.integers(1, 3), key=st.sampled_from([None, None, "k"]))
    def create(self, attempts: int, key: str | None) -> None:
        holder = next((r for r in self.rows.values() if r.unique_key == key and key is not None), None)
        with self.step():
            made = self.value(
                "select listingd.enqueue_job('ping', '{}', 'u', max_attempts => $1, unique_key => $2)",
                attempts,
                key,
            )
        assert made in self.rows
        assert holder is None or holder.id == made

    @rule(number=pick, worker=pick, many=st.integers(1, 5), blind=st.booleans())
    def claim(self, number: int, worker: int, many: int, blind: bool) -> None:
        """Any fences, stale and foreign ones too; only pending jobs are claimed, only by the living."""
        claimer = self.workers[worker % len(self.workers)]
        ready = sorted(row.fence for row in self.rows.values() if row.state == "pending")
        fences = self.fences if blind else ready
        asked = [fences[(number + n) % len(fences)] for n in range(many)] if fences else []
        with self.step():
            for row in self.rows.values():
                if row.fence in asked and row.state == "pending" and claimer not in self.dead:
                    self.expected[row.id] = "processing"
            done = self.do(self.flush(claimer, claims=sorted(set(asked))))
        assert {job.id for job in done.claimed} == set(self.expected)

    async def flush(self, worker: int, *ended: Ended, claims: list[int] | None = None) -> Any:
        async with self._db.acquire() as connection:
            return await self._queue.flush(connection, ended, worker, claims or [])

    @precondition(lambda self: self.fences)
    @rule(
        number=pick, worker=pick, how=st.sampled_from(["completed", "failed", "again", "released", "cancelled"]),
        held=st.booleans(),
    )  # fmt: skip
    def end(self, number: int, worker: int, how: str, held: bool) -> None:
        """The end of an attempt, told by whoever; only its holder's word counts."""
        row = self.one_of(number, "processing") if held else None
        fence = row.fence if row else self.fences[number % len(self.fences)]
        teller = row.worker if row and row.worker else self.workers[worker % len(self.workers)]
        state = State.PENDING if how in {"again", "released"} else State(how)
        ended = Ended(
            fence, state, None, '{"code": "x"}' if how == "again" else None, gives_back=int(how == "released")
        )
        with self.step():
            target = next((r for r in self.rows.values() if r.fence == fence), None)
            counts = target is not None and target.state == "processing" and target.worker == teller
            if counts:
                assert target is not None
                # A worker asks for another attempt only while there is one (outcomes.py).
                if how == "again" and target.attempt >= target.max_attempts:
                    ended, state = Ended(fence, State.FAILED, None, '{"code": "x"}'), State.FAILED
                final = "cancelled" if state is State.PENDING and target.cancel_requested else state.value
                self.ends(target, final)
            done = self.do(self.flush(teller, ended))
        assert ([] if counts else [fence]) == done.lost

    @precondition(lambda self: self.fences)
    @rule(number=pick, retry=st.booleans(), completes=st.booleans())
    def end_by_sql(self, number: int, retry: bool, completes: bool) -> None:
        """The functions for other languages name the fence alone."""
        fence = self.fences[number % len(self.fences)]
        with self.step():
            row = next((r for r in self.rows.values() if r.fence == fence and r.state == "processing"), None)
            if row is not None and completes:
                self.ends(row, "completed")
            elif row is not None:
                again = retry and row.attempt < row.max_attempts
                self.ends(row, "cancelled" if row.cancel_requested else "pending" if again else "failed")
            if completes:
                self.execute(
                    "select listingd.mark_jobs_completed(jsonb_build_array(jsonb_build_object('fence', $1::bigint)))",
                    fence,
                )
            else:
                self.execute("select listingd.mark_job_failed($1, 'x', 'X.', $2, 0)", fence, retry)

    @rule(number=pick, children=st.integers(1, 3))
    def fan_out(self, number: int, children: int) -> None:
        row = self.one_of(number, "processing")
        if row is None or row.parent_id is not None:
            return
        slots = [{"id": str(new_id()), "kind": "ping", "slot": str(n), "input": {}} for n in range(children)]
        there = self.children_of(row.id)
        with self.step():
            if not row.cancel_requested:
                is_open = len(there) < children or any(c.state in OPEN for c in there)
                self.expected[row.id] = "waiting" if is_open else "pending"
            assert row.worker is not None
            ready = self.do(self._queue.fan_out(row.fence, row.worker, slots))
        assert (ready is None) == row.cancel_requested
        if ready is not None:
            assert max(len(there), children) == len(self.children_of(row.id))

    @rule(children=st.integers(2, 3))
    def start_family(self, children: int) -> None:
        """A parent that waits for children that run: few random walks get that far."""
        living = next(w for w in self.workers if w not in self.dead)
        slots = [{"id": str(new_id()), "kind": "ping", "slot": str(n), "input": {}} for n in range(children)]
        with self.step():
            parent = self.value("select listingd.enqueue_job('pack')")
            fence = self.value("select fence from listingd.job_states where id = $1", parent)
            self.do(self.flush(living, claims=[fence]))
            ready = self.do(self._queue.fan_out(fence, living, slots))
            assert ready is not None
            self.do(self.flush(living, claims=[row.fence for row in ready]))
        assert ["waiting"] == [self.rows[parent].state]
        assert {"processing"} == {child.state for child in self.children_of(parent)}

    @rule(number=pick)
    def cancel(self, number: int) -> None:
        row = self.one_of(number, *OPEN, *FINAL)
        if row is None:
            return
        with self.step():
            if row.parent_id is not None and row.state == "pending":
                self.ends(row, "cancelled")
            for member in [row, *self.children_of(row.id)]:
                if member.state in {"pending", "waiting"}:
                    self.expected[member.id] = "cancelled"
                elif member.state == "processing":
                    self.expected[member.id] = "processing"
            self.do(self._queue.cancel(row.id))
        for member in [row, *self.children_of(row.id)]:
            assert self.rows[member.id].state in FINAL or self.rows[member.id].cancel_requested

    @rule(number=pick)
    def retry(self, number: int) -> None:
        """The one way out of a final state, and not out of "completed"."""
        row = (
            self.one_of(number, "failed", "cancelled")
            if number % 4
            else self.one_of(number, "completed", *OPEN)
        )
        if row is None:
            return
        with self.step():
            if row.state in {"failed", "cancelled"}:
                for child in self.children_of(row.id):
                    if child.state in {"failed", "cancelled"}:
                        self.expected[child.id] = "pending"
                waits = any(self.expected.get(c.id, c.state) in OPEN for c in self.children_of(row.id))
                self.expected[row.id] = "waiting" if waits else "pending"
                parent = self.rows.get(row.parent_id) if row.parent_id else None
                if parent is not None and parent.state == "waiting":
                    self.expected[parent.id] = "waiting"
            move = self.do(self._queue.retry(row.id))
        assert move is not None
        assert move.changed == (row.state in {"failed", "cancelled"})

    @rule(worker=pick)
    def die(self, worker: int) -> None:
        if len(self.workers) - len(self.dead) > 1:
            victim = self.workers[worker % len(self.workers)]
            self.dead.add(victim)
            self.execute(
                "update listingd.workers set lease_until = now() - interval '1 s' where id = $1", victim
            )

    @rule()
    def rescue(self) -> None:
        living = next(w for w in self.workers if w not in self.dead)
        with self.step():
            for row in self.rows.values():
                if row.state == "processing" and row.worker in self.dead:
                    failed = row.rescues + 1 >= ALLOWED_RESCUES
                    self.ends(row, "cancelled" if row.cancel_requested else "failed" if failed else "pending")
            self.do(
                self._queue.rescue(allowed_rescues=ALLOWED_RESCUES, dead_instance=None, own_worker=living)
            )

    @rule(number=pick)
    def expire(self, number: int) -> None:
        row = self.one_of(number, *OPEN)
        if row is None:
            return
        self.execute(
            "update listingd.job_states set expires_at = now() - interval '1 s' where id = $1", row.id
        )
        with self.step():
            if row.state == "pending":
                self.ends(row, "failed")
            self.do(self._queue.expire())
        self.execute("update listingd.job_states set expires_at = null")

    @rule(states=st.sampled_from([["completed"], ["failed", "cancelled"]]))
    def prune(self, states: list[str]) -> None:
        """Only whole families that have ended go."""
        self.expected = {}
        before = self.rows
        self.do(self._db.fetchrow("prune_jobs", states, -1.0, 100, None))
        rows = self.do(self._db.pool.fetch(READ))
        self.rows = {row["id"]: Row(**row) for row in rows}
        for job_id, row in before.items():
            if job_id in self.rows:
                assert row == self.rows[job_id]
            else:
                assert row.state in FINAL
                parent = before.get(row.parent_id) if row.parent_id else None
                assert parent is None or parent.state in FINAL

    # -- what always holds ------------------------------------------------------------------------------

    @invariant()
    def limits_hold(self) -> None:
        for row in self.rows.values():
            assert 0 <= row.attempt <= row.max_attempts
            assert 0 <= row.rescues <= ALLOWED_RESCUES
            assert (row.worker is not None) == (row.state == "processing")
            assert row.unique_key is None or row.state in OPEN
        fences = [row.fence for row in self.rows.values()]
        assert len(fences) == len(set(fences))

    @invariant()
    def parents_count_their_open_children(self) -> None:
        for row in self.rows.values():
            if row.state == "waiting":
                is_open = [child for child in self.children_of(row.id) if child.state in OPEN]
                assert len(is_open) == row.open_children > 0


def test_jobs_live_as_the_model_says(database: str, settings: Settings) -> None:
    with asyncio.Runner() as runner:
        db = runner.run(open_pool(settings, dsn=database))
        try:
            run_state_machine_as_test(
                lambda: Jobs(runner, db),
                settings=hypothesis_settings(
                    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck), print_blob=True,
                ),
            )  # fmt: skip
        finally:
            runner.run(db.close())
