"""Many jobs at once, for plans and counts: rows as the queue leaves them, stored by insert … select."""

from __future__ import annotations

import asyncpg

USERS = 500
"""Jobs are spread over user-0 … user-499."""

# Ids begin with their time of creation like UUIDv7, one job a second, the youngest now.
_JOBS = """
insert into listingd.jobs (id, user_id, kind, project_id, parent_id, slot, created_at, run_at, expires_at, input, tags)
select
    overlay(md5('job' || n)::uuid::text placing id_time from 1 for 13)::uuid,
    'user-' || n % 500, (array['image', 'pack', 'aplus', 'ping', 'webhook'])[1 + n % 5],
    case when n % 10 = 0 then md5('project' || n % 5000)::uuid end,
    null, null,
    born, case when n % 1000 = 1 then now() + interval '1 hour' end, case when n % 1000 = 2 then now() + interval '1 hour' end,
    jsonb_build_object('product', jsonb_build_object('title', 'A thing'), 'n', n),
    case when n % 100 = 0 then '{sale}'::text[] else '{}' end
from generate_series(1, $1::int) as n
cross join lateral (select now() - make_interval(secs => $1 - n) as born) as b
cross join lateral (
    select regexp_replace(lpad(to_hex((extract(epoch from born) * 1000)::bigint), 12, '0'), '(.{8})(.{4})', '\\1-\\2') as id_time
) as t
"""

_STATES = """
insert into listingd.job_states (
    id, run_at, expires_at, kind, user_id, state, version, attempt, started_at, finished_at, result
)
select
    j.id, case when j.n > $1::int - $2::int then j.run_at end, case when j.n > $1::int - $2::int then j.expires_at end,
    j.kind, j.user_id,
    case
        when j.n > $1::int - $2::int then 'pending' when j.n % 50 = 0 then 'failed' when j.n % 51 = 0 then 'cancelled' else 'completed'
    end,
    3, 1, j.created_at, case when j.n <= $1::int - $2::int then j.created_at + interval '20 s' end, '{"ok": true}'
from (select j.*, (j.input ->> 'n')::int as n from listingd.jobs as j) as j
order by j.n
"""

_BELONGINGS = (
    """
    insert into listingd.assets (id, job_id, user_id, project_id, role, content_type, size_bytes, sha256, version)
    select gen_random_uuid(), j.id, j.user_id, j.project_id, 'image', 'image/jpeg', 1000, md5(j.id::text), 2
    from listingd.jobs as j
    join listingd.job_states as s on s.id = j.id
    where s.state = 'completed' and j.kind = 'image'
    """,
    """
    insert into listingd.attempts (job_id, attempt, fence, code, error)
    select s.id, 1, s.fence, 'x', '{"code": "x"}' from listingd.job_states as s where s.state = 'failed'
    """,
    """
    insert into listingd.steps (
        id, user_id, identity, job_id, kind, name, provider, state, worker, fence, estimated_usd, actual_usd, reserved_on
    )
    select
        gen_random_uuid(), s.user_id, s.id::text, s.id, s.kind, 'paint', 'openai', 'done', 1, s.fence, 0.1, 0.1, current_date
    from listingd.job_states as s
    where s.state = 'completed' and s.kind = 'image'
    """,
    """
    insert into listingd.projects (id, user_id)
    select distinct on (j.project_id) j.project_id, j.user_id from listingd.jobs as j where j.project_id is not null
    """,
    # The mark stands where the daemon keeps it: at the oldest pending job.
    """
    update listingd.queue_mark set fence = coalesce(
        (select min(s.fence) from listingd.job_states as s where s.state = 'pending' and s.run_at is null),
        (select max(s.fence) from listingd.job_states as s)
    )
    """,
)


async def seed_jobs(connection: asyncpg.Connection, jobs: int, *, pending: int) -> None:
    """Store so many jobs, the youngest of them pending, with what belongs to them, and gather statistics."""
    timeout_s = 1800
    await connection.execute(_JOBS, jobs, timeout=timeout_s)
    await connection.execute(_STATES, jobs, pending, timeout=timeout_s)
    for statement in _BELONGINGS:
        await connection.execute(statement, timeout=timeout_s)
    await connection.execute("vacuum (analyze)", timeout=timeout_s)
