"""The SQL of the queue: creates, claims, ends, fences, rescue, fan-out, cancel, retry, and the SQL functions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from daemon.creator import Creator
from daemon.db import Database
from daemon.jobs import NewJob, State, new_id
from daemon.queue import Ended, Flushed, Queue


class Desk:
    """A queue with a registered worker and its flusher's connection."""

    def __init__(self, db: Database, connection: Any) -> None:
        self.db, self.connection = db, connection
        self.queue = Queue(db)
        self.creator = Creator(self.queue)
        self.worker = 0

    async def flush(self, *ended: Ended, claims: list[int] = [], worker: int | None = None) -> Flushed:  # noqa: B006
        return await self.queue.flush(self.connection, ended, worker or self.worker, claims)

    async def fence(self, job_id: UUID) -> int:
        return int(
            await self.connection.fetchval("select fence from listingd.job_states where id = $1", job_id)
        )

    async def row(self, job_id: UUID) -> Any:
        return await self.connection.fetchrow("select * from listingd.job_states where id = $1", job_id)

    async def create(self, *jobs: NewJob) -> list[UUID]:
        return [made.id for made in await self.creator.create(jobs or [NewJob("ping", {})])]

    async def claim(self, *jobs: NewJob) -> tuple[UUID, int]:
        (job_id,) = await self.create(*jobs)
        fence = await self.fence(job_id)
        assert [fence] == [job.fence for job in (await self.flush(claims=[fence])).claimed]
        return job_id, fence

    async def start_worker(self, lease_s: float = 60.0, instance: str = "other") -> int:
        row = await self.db.fetchrow("start_worker", instance, lease_s, ["ping"], 4, "{}")
        assert row is not None
        return int(row["id"])


@pytest.fixture
async def desk(db: Database) -> AsyncIterator[Desk]:
    connection = await db.dedicated_connection("test")
    desk = Desk(db, connection)
    desk.worker = await desk.start_worker(instance="test")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(desk.creator.run())
        yield desk
        running.cancel()
    connection.terminate()


async def test_a_created_job_is_claimed_once(desk: Desk) -> None:
    (job_id,) = await desk.create(NewJob("ping", {"echo": 1}, user_id="u", project_id=new_id()))
    fence = await desk.fence(job_id)

    first = await desk.flush(claims=[fence])
    second = await desk.flush(claims=[fence])

    assert [job_id] == [job.id for job in first.claimed]
    assert [] == second.claimed
    assert {"echo": 1} == json.loads(first.claimed[0].input_text)
    assert (1, "u") == (first.claimed[0].attempt, first.claimed[0].user_id)


async def test_finishing_writes_the_result_and_claims_the_next(desk: Desk) -> None:
    job_id, fence = await desk.claim()
    (next_id,) = await desk.create()

    done = await desk.flush(Ended(fence, State.COMPLETED, '{"x": 1}'), claims=[await desk.fence(next_id)])

    row = await desk.row(job_id)
    assert ("completed", {"x": 1}) == (row["state"], json.loads(row["result"]))
    assert row["finished_at"] is not None
    assert [next_id] == [job.id for job in done.claimed]


async def test_a_final_state_never_changes(desk: Desk) -> None:
    """P2: whatever a late worker says."""
    job_id, fence = await desk.claim()
    await desk.flush(Ended(fence, State.COMPLETED, "1"))

    late = await desk.flush(Ended(fence, State.FAILED, None, '{"code": "late"}'))

    assert [fence] == late.lost
    assert "completed" == (await desk.row(job_id))["state"]
    assert await desk.queue.cancel(job_id) is not None
    assert "completed" == (await desk.row(job_id))["state"]


async def test_a_stale_worker_writes_nothing(desk: Desk) -> None:
    """P5: progress, assets, documents and the end of an attempt that was taken over."""
    stale = await desk.start_worker(lease_s=0.0)
    job_id, fence = await desk.claim()
    await desk.connection.execute("update listingd.job_states set worker = $1", stale)
    await desk.db.fetch("lower_fence_mark", stale, fence)
    rescued = await desk.queue.rescue(allowed_rescues=2, dead_instance=None, own_worker=desk.worker)
    before = await desk.row(job_id)

    written = await _write_all(desk, fence, stale)

    assert [job_id] == [row["id"] for row in rescued]
    assert _NOTHING == written
    assert before == await desk.row(job_id)


async def test_an_attempt_that_has_ended_writes_nothing_more(desk: Desk) -> None:
    """A handler that swallowed its cancellation runs on, and the fence of what has ended stays."""
    job_id, fence = await desk.claim()
    await desk.flush(Ended(fence, State.CANCELLED))
    before = await desk.row(job_id)

    assert _NOTHING == await _write_all(desk, fence, desk.worker)
    assert before == await desk.row(job_id)


async def test_a_fence_in_the_hands_of_another_worker_writes_nothing(desk: Desk) -> None:
    """Both have tried to claim it; who was too late may believe that it was not."""
    job_id, fence = await desk.claim()
    other = await desk.start_worker()
    before = await desk.row(job_id)

    assert _NOTHING == await _write_all(desk, fence, other)
    assert before == await desk.row(job_id)


_NOTHING = (True, set(), None, None)


async def _write_all(desk: Desk, fence: int, worker: int) -> tuple[bool, set[int], Any, Any]:
    """Every write of an attempt: whether its end was lost, whose progress was written, the asset, the document."""
    progress = await desk.queue.report_progress({fence: {"done": 1}}, worker)
    asset = await desk.db.fetchval(
        "save_asset", fence, worker, new_id(), None, "image", "image/png", 1, 1, 1, "0" * 64, None, "[]", False, "", ""
    )  # fmt: skip
    document = await desk.db.fetchval("save_aplus_content", fence, worker, new_id(), "en-US", "{}")
    ended = await desk.flush(Ended(fence, State.COMPLETED, "1"), worker=worker)
    return [fence] == ended.lost, progress, asset, document


async def test_a_retry_is_pending_with_a_later_run_at_and_a_new_fence(desk: Desk) -> None:
    job_id, fence = await desk.claim()

    done = await desk.flush(Ended(fence, State.PENDING, None, '{"code": "x"}', 30.0))

    row = await desk.row(job_id)
    assert ("pending", 1) == (row["state"], row["attempt"])
    assert row["fence"] > fence
    assert row["run_at"] is not None
    assert 30.0 == done.ready[0].wait_s
    assert [] == (await desk.flush(claims=[row["fence"]])).claimed, "it is not due"
    attempts = await desk.connection.fetch(
        "select attempt, code from listingd.attempts where job_id = $1", job_id
    )
    assert [(1, "x")] == [tuple(a) for a in attempts]


async def test_an_attempt_given_back_does_not_count(desk: Desk) -> None:
    job_id, fence = await desk.claim()

    await desk.flush(Ended(fence, State.PENDING, gives_back=1))

    assert ("pending", 0) == ((row := await desk.row(job_id))["state"], row["attempt"])


async def test_no_claim_without_a_lease(desk: Desk) -> None:
    dead = await desk.start_worker(lease_s=0.0)
    (job_id,) = await desk.create()

    assert [] == (await desk.flush(claims=[await desk.fence(job_id)], worker=dead)).claimed
    fresh = await desk.queue.claim_fresh(
        desk.connection, 0, limit=9, kinds=["ping"], waiting_users=[], worker=dead
    )
    assert [] == fresh.claimed


async def test_a_worker_that_stops_with_a_job_in_hand_leaves_it_to_the_next_rescue(desk: Desk) -> None:
    """Its stop is no proof that its hands are empty: an end may not have been written."""
    stopped = await desk.start_worker()
    (job_id,) = await desk.create()
    await desk.flush(claims=[await desk.fence(job_id)], worker=stopped)

    await desk.db.fetch("stop_worker", stopped)
    rescued = await desk.queue.rescue(allowed_rescues=2, dead_instance=None, own_worker=desk.worker)

    assert [job_id] == [row["id"] for row in rescued]


async def test_two_crashes_fail_a_job_without_spending_attempts(desk: Desk) -> None:
    """P7: rescues are counted apart from attempts."""
    (job_id,) = await desk.create()
    for state, rescues in (("pending", 1), ("failed", 2)):
        dead = await desk.start_worker()
        fence = await desk.fence(job_id)
        await desk.flush(claims=[fence], worker=dead)
        await desk.connection.execute("update listingd.workers set lease_until = now() where id = $1", dead)
        await desk.queue.rescue(allowed_rescues=2, dead_instance=None, own_worker=desk.worker)
        row = await desk.row(job_id)
        assert (state, rescues) == (row["state"], row["rescues"])
    assert "worker_crashed" == json.loads(row["error"])["code"]
    assert 1 == row["attempt"]


async def test_an_explicit_retry_forgives_earlier_crashes(desk: Desk) -> None:
    (job_id,) = await desk.create()
    await desk.connection.execute(
        "update listingd.job_states set state = 'failed', finished_at = now(), rescues = 2 where id = $1",
        job_id,
    )
    await desk.queue.retry(job_id)
    dead = await desk.start_worker()
    await desk.flush(claims=[await desk.fence(job_id)], worker=dead)
    await desk.connection.execute("update listingd.workers set lease_until = now() where id = $1", dead)

    await desk.queue.rescue(allowed_rescues=2, dead_instance=None, own_worker=desk.worker)

    row = await desk.row(job_id)
    assert ("pending", 1) == (row["state"], row["rescues"])


async def test_only_the_dead_are_rescued(desk: Desk) -> None:
    job_id, _ = await desk.claim()
    live = await desk.start_worker(instance="live")

    rescued = await desk.queue.rescue(allowed_rescues=2, dead_instance=None, own_worker=live)

    assert [] == rescued
    assert "processing" == (await desk.row(job_id))["state"]


async def test_the_own_earlier_run_is_dead_by_proof(desk: Desk) -> None:
    """P6: a restart need not wait for the lease of the process it replaces."""
    job_id, _ = await desk.claim()
    restarted = await desk.start_worker(instance="test")

    rescued = await desk.queue.rescue(allowed_rescues=2, dead_instance="test", own_worker=restarted)

    assert [job_id] == [row["id"] for row in rescued]


CHILDREN = [{"kind": "image", "slot": s, "input": {}} for s in ("main", "angle")]


async def fan_out(desk: Desk, fence: int) -> list[int]:
    ready = await desk.queue.fan_out(fence, desk.worker, [{**c, "id": str(new_id())} for c in CHILDREN])
    assert ready is not None
    return [row.fence for row in ready]


async def test_a_parent_waits_and_is_released_once(desk: Desk) -> None:
    parent, fence = await desk.claim(NewJob("pack", {}, user_id="u"))
    children = await fan_out(desk, fence)
    row = await desk.row(parent)
    assert ("waiting", 2, 0) == (row["state"], row["open_children"], row["attempt"])

    await desk.flush(claims=children)
    first = await desk.flush(Ended(children[0], State.COMPLETED))
    second = await desk.flush(Ended(children[1], State.FAILED, None, '{"code": "x"}'))

    assert [] == first.ready
    assert ["pack"] == [r.kind for r in second.ready]
    assert "pending" == (await desk.row(parent))["state"]
    again = await desk.flush(claims=[second.ready[0].fence])
    assert [(parent, 1)] == [(job.id, job.attempt) for job in again.claimed]


async def test_both_children_in_one_flush_release_the_parent(desk: Desk) -> None:
    parent, fence = await desk.claim(NewJob("pack", {}))
    children = await fan_out(desk, fence)
    await desk.flush(claims=children)

    done = await desk.flush(*(Ended(c, State.COMPLETED) for c in children))

    assert 1 == len(done.ready)
    assert "pending" == (await desk.row(parent))["state"]


async def test_a_second_fan_out_makes_no_twins(desk: Desk) -> None:
    """A parent that was rescued right after its fan-out runs it again."""
    parent, fence = await desk.claim(NewJob("pack", {}))
    await fan_out(desk, fence)
    await desk.connection.execute(
        "update listingd.job_states set state = 'processing', worker = $2 where id = $1", parent, desk.worker
    )

    assert [] == await fan_out(desk, fence)
    assert 2 == await desk.connection.fetchval(
        "select count(*) from listingd.jobs where parent_id = $1", parent
    )


async def test_cancelling_a_pack_cancels_its_children(desk: Desk) -> None:
    parent, fence = await desk.claim(NewJob("pack", {}, user_id="u"))
    children = await fan_out(desk, fence)
    await desk.flush(claims=children[:1])

    move = await desk.queue.cancel(parent, "u")

    assert move is not None
    assert State.CANCELLED is move.state
    states = await desk.connection.fetch(
        "select state, cancel_requested from listingd.job_states where parent_id = $1 order by fence", parent
    )
    assert [("processing", True), ("cancelled", False)] == [tuple(s) for s in states]
    assert children[:1] == await desk.queue.read_cancels(children[:1], desk.worker)


async def test_a_foreign_id_cannot_be_cancelled_or_retried(desk: Desk) -> None:
    (job_id,) = await desk.create(NewJob("ping", {}, user_id="owner"))

    assert await desk.queue.cancel(job_id, "stranger") is None
    assert await desk.queue.retry(job_id, "stranger") is None
    assert await desk.queue.cancel(new_id(), None) is None
    assert "pending" == (await desk.row(job_id))["state"]


async def test_retrying_a_pack_revives_only_what_failed(desk: Desk) -> None:
    parent, fence = await desk.claim(NewJob("pack", {}))
    children = await fan_out(desk, fence)
    await desk.flush(claims=children)
    done = await desk.flush(Ended(children[0], State.COMPLETED), Ended(children[1], State.FAILED, None, "{}"))
    await desk.flush(claims=[done.ready[0].fence])
    await desk.flush(Ended(done.ready[0].fence, State.FAILED, None, '{"code": "items_failed"}'))

    move = await desk.queue.retry(parent)

    assert move is not None
    assert (State.WAITING, True) == (move.state, move.changed)
    states = await desk.connection.fetch(
        "select state from listingd.job_states where parent_id = $1 order by state", parent
    )
    assert ["completed", "pending"] == [s["state"] for s in states]
    again = await desk.queue.retry(parent)
    assert again is not None
    assert not again.changed


async def test_a_retry_that_makes_nothing_ready_wakes_nobody(desk: Desk) -> None:
    """A cancelled pack whose item is still stopping waits for it; what the item becomes is told at its end."""
    heard: list[str] = []
    await desk.connection.add_listener("listingd_jobs", lambda *_: heard.append("jobs"))
    parent, fence = await desk.claim(NewJob("pack", {}))
    (child,) = (await fan_out(desk, fence))[:1]
    await desk.flush(claims=[child])
    await desk.connection.execute(
        "delete from listingd.job_states where parent_id = $1 and fence <> $2", parent, child
    )
    await desk.queue.cancel(parent)
    heard.clear()

    waiting = await desk.queue.retry(parent)

    await desk.connection.fetch("select")  # what was told before is here by then
    assert waiting is not None
    assert (State.WAITING, True, []) == (waiting.state, waiting.changed, heard)
    await desk.flush(Ended(child, State.CANCELLED, None, "{}"))
    (done,) = await desk.connection.fetch("select fence from listingd.job_states where id = $1", parent)
    await desk.flush(claims=[done["fence"]])
    await desk.flush(Ended(done["fence"], State.FAILED, None, "{}"))
    await desk.queue.retry(parent)
    await desk.connection.fetch("select")
    assert ["jobs"] == heard


async def test_a_low_fence_that_a_claim_has_lowered_is_not_raised_over_it(desk: Desk) -> None:
    """The raise was decided before the claim; whichever reaches the database second wins."""

    async def low_fence() -> int:
        fence: int = await desk.connection.fetchval(
            "select low_fence from listingd.workers where id = $1", desk.worker
        )
        return fence

    before = await low_fence()
    await desk.db.fetch("raise_fence_mark", desk.worker, before + 50, before)
    assert before + 50 == await low_fence()
    await desk.db.fetch("lower_fence_mark", desk.worker, before + 10)
    await desk.db.fetch("raise_fence_mark", desk.worker, before + 100, before + 50)
    assert before + 10 == await low_fence()


async def test_a_unique_key_gives_the_job_that_holds_it(desk: Desk) -> None:
    async def enqueue() -> UUID:
        job_id: UUID = await desk.connection.fetchval(
            "select listingd.enqueue_job('ping', user_id => 'u', unique_key => 'daily')"
        )
        return job_id

    first = await enqueue()
    assert first == await enqueue()

    fence = await desk.fence(first)
    await desk.flush(claims=[fence])
    await desk.flush(Ended(fence, State.COMPLETED))
    assert first != await enqueue()


async def test_expired_jobs_fail_and_are_not_claimed(desk: Desk) -> None:
    (job_id,) = await desk.create()
    fence = await desk.fence(job_id)
    await desk.connection.execute(
        "update listingd.job_states set expires_at = now() - interval '1 s' where id = $1", job_id
    )

    assert [] == (await desk.flush(claims=[fence])).claimed
    assert [job_id] == await desk.queue.expire()
    row = await desk.row(job_id)
    assert ("failed", "expired") == (row["state"], json.loads(row["error"])["code"])


async def test_another_language_can_work_the_queue(desk: Desk) -> None:
    """get_next_jobs, mark_jobs_processing, mark_jobs_completed and mark_job_failed, fenced like ours."""
    c = desk.connection
    one = await c.fetchval("select listingd.enqueue_job('resize', '{\"w\": 1}', 'u')")
    two = await c.fetchval("select listingd.enqueue_job('resize')")
    await c.fetchval("select listingd.enqueue_job('other')")

    seen = await c.fetch("select * from listingd.get_next_jobs('{resize}', 10)")
    claimed = await c.fetch(
        "select * from listingd.mark_jobs_processing('perl', $1)", [r["fence"] for r in seen]
    )
    completed = await c.fetch(
        "select * from listingd.mark_jobs_completed($1::jsonb)",
        json.dumps([{"fence": claimed[0]["fence"], "result": {"ok": True}}]),
    )
    failed = await c.fetchval("select listingd.mark_job_failed($1, 'boom', 'It broke.')", claimed[1]["fence"])
    stale = await c.fetch(
        "select * from listingd.mark_jobs_completed($1::jsonb)", json.dumps([{"fence": claimed[1]["fence"]}])
    )

    assert [one, two] == [r["id"] for r in claimed]
    assert [one] == [r[0] for r in completed]
    assert "pending" == failed
    assert [] == stale
    assert [] == await c.fetch("select * from listingd.get_next_jobs('{resize}', 10)"), "its retry is not due"


async def test_enqueued_by_sql_in_an_own_transaction(desk: Desk) -> None:
    ids = await desk.connection.fetch(
        "select listingd.enqueue_jobs($1::jsonb)",
        json.dumps([
            {"kind": "ping", "input": {"echo": n}, "user_id": "u", "tags": ["t"], "unique_key": key}
            for n, key in enumerate(["a", "a", None])
        ]),
    )  # fmt: skip

    assert ids[0][0] == ids[1][0]
    assert 2 == await desk.connection.fetchval("select count(*) from listingd.job_states")


async def test_every_statement_is_valid(db: Database) -> None:
    async with db.acquire() as connection:
        for name, text in db.sql.items():
            try:
                await connection.prepare(text)
            except Exception as exc:  # named, so that the failure says which
                raise AssertionError(f"{name}: {exc}") from exc


async def test_claim_and_finish_touch_no_index(desk: Desk) -> None:
    """Both are HOT updates as long as the page has room: the shape that makes the queue fast."""
    ids = await desk.create(*(NewJob("ping", {}) for _ in range(100)))
    fences = [await desk.fence(i) for i in ids]
    await desk.flush(claims=fences)
    await desk.flush(*(Ended(f, State.COMPLETED, '{"echo": 1}') for f in fences))

    await desk.connection.execute("select pg_stat_force_next_flush()")
    row = await desk.connection.fetchrow(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables where relname = 'job_states'"
    )
    totals = await desk.connection.fetchrow(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'job_states'"
    )
    updates = row["n_tup_upd"] + totals["n_tup_upd"]
    assert updates >= 200
    assert (row["n_tup_hot_upd"] + totals["n_tup_hot_upd"]) / updates > 0.7
