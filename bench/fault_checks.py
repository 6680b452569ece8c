"""The journal of every change of a job, kept by a trigger, and what must never stand in it.

a final state is left by a retry only            P2, double ends
a result is its holder's                         P5: the pid in it is that of the worker that held the claim
every job that was made is there and has ended   P1
attempts <= max_attempts, rescues as allowed     P7
a parent is released once for each time it waits
a fence only grows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import asyncpg

FINAL = ("completed", "failed", "cancelled")

WATCH = """
create table public.changes (
    n bigint generated always as identity, at timestamptz not null default clock_timestamp(), id uuid not null,
    old_state text not null, new_state text not null, old_fence bigint, new_fence bigint, old_worker bigint,
    attempt int, same_end boolean, pid int
);
create function public.note_change() returns trigger language plpgsql security definer as $$
begin
    insert into public.changes (
        id, old_state, new_state, old_fence, new_fence, old_worker, attempt, same_end, pid
    ) values (
        new.id, old.state, new.state, old.fence, new.fence, old.worker, new.attempt,
        (old.result, old.error, old.finished_at) is not distinct from (new.result, new.error, new.finished_at),
        case when jsonb_typeof(new.result) = 'object' then (new.result ->> 'pid')::int end
    );
    return null;
end $$;
create trigger note_change after update on listingd.job_states for each row
    when (
        old.state is distinct from new.state or old.fence is distinct from new.fence
        or old.state in ('completed', 'failed', 'cancelled')
    )
    execute function public.note_change();
"""


async def watch_changes(dsn: str) -> None:
    """Begin the journal; before any job is made."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(WATCH)
    finally:
        await connection.close()


async def check(
    dsn: str, made: set[UUID], calls: Iterable[tuple[str, int, int]], *, max_rescues: int
) -> dict[str, Any]:
    """Figures and "violations": one line for each thing that must not be."""
    connection = await asyncpg.connect(dsn)
    try:
        jobs = await connection.fetch("select * from listingd.job_states")
        changes = await connection.fetch("select * from public.changes order by n")
        workers = await connection.fetch("select id, (info ->> 'pid')::int as pid from listingd.workers")
    finally:
        await connection.close()
    pids = {row["id"]: row["pid"] for row in workers}
    violations: list[str] = []

    there = {row["id"] for row in jobs}
    violations += [f"lost: {job}" for job in made - there]
    for row in jobs:
        if row["state"] not in FINAL:
            violations.append(f"not ended: {row['id']} is {row['state']}")
        if row["attempt"] > row["max_attempts"] or row["rescues"] > max_rescues + 1:
            violations.append(f"too often: {row['id']} attempt {row['attempt']} rescues {row['rescues']}")
        if row["state"] == "waiting" and row["open_children"] == 0:
            violations.append(f"waits for nobody: {row['id']}")

    waits: Counter[UUID] = Counter()
    releases: Counter[UUID] = Counter()
    ends = retries = rescues = 0
    for c in changes:
        old, new = c["old_state"], c["new_state"]
        is_retry = old in {"failed", "cancelled"} and new in {"pending", "waiting"} and c["attempt"] == 0
        retries += is_retry
        ends += old not in FINAL and new in FINAL
        rescues += old == "processing" and new == "pending"
        if c["new_fence"] < c["old_fence"]:
            violations.append(f"fence fell: {c['id']}")
        if old in FINAL and not is_retry and not (old == new and c["same_end"]):
            violations.append(f"double end: {c['id']} {old} -> {new}")
        if old == "processing" and new == "completed" and c["pid"] != pids.get(c["old_worker"]):
            violations.append(f"stale write: {c['id']} by {c['pid']}, held by {pids.get(c['old_worker'])}")
        if new == "waiting" and old != "waiting":
            waits[c["id"]] += 1
        if old == "waiting" and new == "pending":
            releases[c["id"]] += 1
    violations += [f"released too often: {job}" for job in releases if releases[job] > waits[job]]

    asked = list(calls)
    return {
        "jobs": len(jobs), "states": dict(Counter(row["state"] for row in jobs)), "ends": ends,
        "ended_again_after_retry": retries, "claims_given_back": rescues, "runs_of_daemons": len(workers),
        "rescued_jobs": sum(row["rescues"] > 0 for row in jobs),
        "families_released": sum(releases.values()), "calls": len(asked),
        "calls_repeated": len(asked) - len({(job, attempt) for job, attempt, _ in asked}),
        "violations": violations,
    }  # fmt: skip
