-- name: create_jobs
-- One row a job that was stored: id, fence, created_at, is_soon (it waits, and is due within $4 seconds), is_born (it
-- is claimed). A job whose idempotency key is taken is not stored. None is born to a worker whose lease is over when
-- the statement arrives, however late: rescue has been there.
-- $1 the jobs: JSON array of {id, kind, user_id, priority, max_attempts, input, born (claimed at birth), project_id?,
-- metadata?, tags?, run_at?, expires_at?, webhook?, principal?, key?, fingerprint? (of its idempotency key), response?
-- (ids of a keyed batch), keyed_by? (the job that carries the key of this one's batch)},
-- $2 worker, $3 notify other processes of what is_soon, $4 seconds. One text, since a client pays for every element of an array: 19 columns of
-- them cost it more than the statement costs the server.
with asked as (
    select *
    from rows from (
        jsonb_to_recordset($1::jsonb) as (
            id uuid, kind text, user_id text, priority smallint, max_attempts smallint, input jsonb, born boolean,
            project_id uuid, metadata jsonb, tags text[], run_at timestamptz, expires_at timestamptz, webhook jsonb,
            principal text, key text, fingerprint text, response jsonb, keyed_by uuid
        )
    ) with ordinality as a (
        id, kind, user_id, priority, max_attempts, input, born, project_id, metadata, tags, run_at, expires_at,
        webhook, principal, key, fingerprint, response, keyed_by, n
    )
),
keyed as (
    insert into listingd.idempotency_keys (principal, key, fingerprint, job_id, response)
    select a.principal, a.key, a.fingerprint, a.id, a.response
    from asked as a
    where a.key is not null
    order by a.principal, a.key  -- two daemons that store the same ones must not wait for each other
    on conflict do nothing
    returning job_id
),
fresh as (
    select
        a.*,
        a.born and exists (
            select from listingd.workers as w where w.id = $2 and w.stopped_at is null and w.lease_until > now()
        ) as is_born
    from asked as a
    where a.keyed_by is null or a.keyed_by in (select k.job_id from keyed as k)
),
states as (
    insert into listingd.job_states (
        id, run_at, expires_at, priority, max_attempts, kind, user_id, state, attempt, worker, started_at,
        wants_webhook
    )
    select
        f.id, f.run_at, case when not f.is_born then f.expires_at end, f.priority, f.max_attempts, f.kind, f.user_id,
        case when f.is_born then 'processing' else 'pending' end,
        case when f.is_born then 1 else 0 end,
        case when f.is_born then $2::bigint end,
        case when f.is_born then now() end,
        f.webhook is not null or array['', f.user_id] && array(
            select e.user_id
            from listingd.webhook_endpoints as e
            where e.disabled_at is null and (e.user_id = '' or e.user_id = any(array(select distinct a.user_id from asked as a)))
        )
    from fresh as f
    order by f.n
    returning
        id, fence, state = 'processing' as is_born,
        state = 'pending' and coalesce(run_at <= now() + make_interval(secs => $4), true) as is_soon
),
stored as (
    insert into listingd.jobs (
        id, user_id, kind, project_id, priority, max_attempts, run_at, expires_at, input, metadata, tags, webhook
    )
    select
        f.id, f.user_id, f.kind, f.project_id, f.priority, f.max_attempts, f.run_at, f.expires_at,
        f.input, coalesce(f.metadata, '{}'), coalesce(f.tags, '{}'), f.webhook
    from fresh as f
),
projects as (
    insert into listingd.projects (id, user_id)
    select distinct f.project_id, f.user_id
    from fresh as f
    where f.project_id is not null
    order by f.project_id
    on conflict do nothing
)
select
    s.id, s.fence, now() as created_at, s.is_soon, s.is_born,
    case when $3 and s.is_soon then pg_notify('listingd_jobs', '') end as notified
from states as s

-- name: read_idempotency_keys
-- principal, key, fingerprint, job_id, response of the keys that exist. $1 principals, $2 keys
select i.principal, i.key, i.fingerprint, i.job_id, i.response
from unnest($1::text[], $2::text[]) as a (principal, key)
join listingd.idempotency_keys as i using (principal, key)

-- name: flush
-- Finish and claim in one statement. Rows: the claimed jobs; and one last row with id null whose input_text is
-- JSON {"lost": [fence], "cancelled": [fence], "ready": [[fence, kind, user_id, priority, wait_s]]} (requeued jobs and
-- released parents).
-- $1 fences of ended attempts, $2 new states, $3 results (JSON text), $4 errors (JSON text),
-- $5 delays in seconds (only for pending), $6 attempts to give back (0 or 1), $7 worker, $8 fences to claim
-- $2, $4, $5 and $6 may be empty: then all are completed.
with ended as (
    select
        e.fence, coalesce(e.state, 'completed') as state, e.result, e.error,
        coalesce(e.delay_s, 0) as delay_s, coalesce(e.give_back, 0::int2) as give_back
    from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::float8[], $6::int2[])
        as e (fence, state, result, error, delay_s, give_back)
),
moved as (
    update listingd.job_states as s
    set
        -- A cancel that was asked for comes true, also when the attempt ended as one to be repeated.
        state = case when s.cancel_requested and e.state = 'pending' then 'cancelled' else e.state end,
        version = s.version + 1,
        attempt = s.attempt - e.give_back,
        worker = null,
        finished_at = case when e.state <> 'pending' or s.cancel_requested then now() end,
        result = e.result::jsonb,
        error = case
            when s.cancel_requested and e.state = 'pending'
                then jsonb_build_object('code', 'cancelled', 'message', 'The job was cancelled.')
            else e.error::jsonb
        end,
        progress = case when e.state = 'pending' then s.progress end,
        unique_key = case when e.state = 'pending' and not s.cancel_requested then s.unique_key end,
        run_at = case when e.state = 'pending' and e.delay_s > 0 and not s.cancel_requested
            then now() + make_interval(secs => e.delay_s) else s.run_at end,
        fence = case when e.state = 'pending' and not s.cancel_requested then nextval('listingd.fences') else s.fence end
    from ended as e
    where s.fence = e.fence and s.state = 'processing' and s.worker = $7
    returning
        s.id, s.parent_id, e.fence as ended_fence, s.fence, s.state, s.kind, s.user_id, s.priority,
        s.attempt + e.give_back as attempt, s.started_at, e.error, e.delay_s, e.give_back
),
recorded as (
    insert into listingd.attempts (job_id, attempt, fence, worker, started_at, code, error)
    select m.id, m.attempt, m.ended_fence, $7, m.started_at, coalesce(m.error::jsonb ->> 'code', 'unknown'), m.error::jsonb
    from moved as m
    where m.error is not null and m.give_back = 0
    on conflict do nothing  -- a log: nothing that stands in it may hold back a batch of ends
),
released as (
    select r.*
    from (
        select array_agg(m.parent_id) as parents
        from moved as m
        where m.parent_id is not null and m.state <> 'pending'
    ) as p
    cross join lateral listingd.settle_children(p.parents) as r
    where p.parents is not null
),
claimed as (
    update listingd.job_states as s
    set
        state = 'processing',
        version = s.version + 1,
        attempt = s.attempt + 1,
        worker = $7,
        started_at = now(),
        -- Their indexes hold only what still waits: a finished job must not be read again at every look.
        run_at = null,
        expires_at = null
    where
        s.fence = any(array(
            select c.fence
            from listingd.job_states as c
            where
                c.fence = any($8::bigint[])
                and c.state = 'pending'
                and (c.run_at is null or c.run_at <= now())
                and (c.expires_at is null or c.expires_at > now())
                and exists (select from listingd.workers as w where w.id = $7 and w.lease_until > now())
            order by c.fence
            for update skip locked
        ))
    returning s.id, s.fence, s.kind, s.user_id, s.attempt, s.max_attempts, s.parent_id
)
select
    c.id, c.fence, c.kind, c.user_id, c.attempt, c.max_attempts, j.input::text as input_text,
    j.project_id, c.parent_id, j.slot
from claimed as c
join listingd.jobs as j on j.user_id = c.user_id and j.id = c.id
union all
select
    null, null, null, null, null, null,
    json_build_object(
        'lost', (select coalesce(json_agg(e.fence), '[]') from ended as e where e.fence not in (select m.ended_fence from moved as m)),
        'cancelled', (select coalesce(json_agg(m.ended_fence), '[]') from moved as m where m.state = 'cancelled'),
        'ready', (
            select coalesce(json_agg(json_build_array(x.fence, x.kind, x.user_id, x.priority, x.wait_s)), '[]')
            from (
                select m.fence, m.kind, m.user_id, m.priority, m.delay_s as wait_s from moved as m where m.state = 'pending'
                union all
                select r.fence, r.kind, r.user_id, r.priority, 0 from released as r
            ) as x
        )
    )::text,
    null, null, null

-- name: find_locked
-- Of these attempts, those whose row or whose parent's row another transaction has locked. $1 fences
with own as (
    select s.fence, s.parent_id
    from listingd.job_states as s
    where s.fence = any($1::bigint[])
),
free as (
    select s.fence from listingd.job_states as s where s.fence in (select o.fence from own as o) for update skip locked
),
free_parents as (
    select s.id from listingd.job_states as s where s.id in (select o.parent_id from own as o) for update skip locked
)
select o.fence
from own as o
where
    o.fence not in (select f.fence from free as f)
    or (o.parent_id is not null and o.parent_id not in (select p.id from free_parents as p))

-- name: fan_out
-- The ids of the children now open; none when the attempt is no longer ours (the row says so by ok = false).
-- $1 fence, $2 worker, $3 children (JSON array of {id, kind, slot, input})
select ok, fence, kind, user_id, priority
from listingd.fan_out($1, $2, $3::jsonb)

-- name: read_ready
-- Rows above a fence or in the holes, whatever their state (the scheduler must see each fence once to know that it
-- is no hole), in groups of what is alike: fences, kind, user_id, priority, wait_s (null without run_at; by the clock,
-- as the reader counts from the answer and not from the statement's beginning), age_s,
-- pending. The last row holds the fences that are not pending, and the horizon of the very snapshot that saw all this:
-- oldest = the lowest transaction still running, following = the first not begun.
-- $1 fence to start after, $2 holes bigint[], $3 limit
with seen as (
    (
        select s.fence, s.state, s.kind, s.user_id, s.priority, s.run_at
        from listingd.job_states as s
        where s.fence > $1
        order by s.fence
        limit $3
    )
    union all
    select s.fence, s.state, s.kind, s.user_id, s.priority, s.run_at
    from listingd.job_states as s
    where s.fence = any($2::bigint[])
)
select
    array_agg(s.fence order by s.fence) as fences, s.kind, s.user_id, s.priority,
    extract(epoch from s.run_at - clock_timestamp())::float8 as wait_s, 0::float8 as age_s, true as pending,
    null::bigint as oldest, null::bigint as following
from seen as s
where s.state = 'pending'
group by s.kind, s.user_id, s.priority, s.run_at
union all
select
    coalesce(array_agg(s.fence order by s.fence), '{}'), '', '', 0, null, 0, false,
    pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint
from seen as s
where s.state <> 'pending'

-- name: claim_fresh
-- The rows above a fence, and those claimed at once that may start: all of them, unless there are more rows than $2.
-- fence, kind, user_id, priority, wait_s (null without run_at), pending; of a claimed one id, attempt, max_attempts,
-- input_text, project_id, parent_id, slot too. One row more than $2 says that there are more.
-- $1 fence to start after, $2 limit, $3 kinds, $4 users who must wait, $5 worker
with fresh as materialized (
    select s.fence, s.kind, s.user_id, s.priority, s.run_at, s.state
    from listingd.job_states as s
    where s.fence > $1
    order by s.fence
    limit $2 + 1
),
claimed as (
    update listingd.job_states as s
    set
        state = 'processing',
        version = s.version + 1,
        attempt = s.attempt + 1,
        worker = $5,
        started_at = now(),
        run_at = null,
        expires_at = null
    where
        s.fence = any(array(
            select c.fence
            from listingd.job_states as c
            where
                c.fence = any(array(
                    select f.fence
                    from fresh as f
                    where f.state = 'pending' and f.kind = any($3::text[]) and f.user_id <> all($4::text[])
                ))
                and c.state = 'pending'
                and (c.run_at is null or c.run_at <= now())
                and (c.expires_at is null or c.expires_at > now())
                and (select count(*) from fresh) <= $2
                and exists (select from listingd.workers as w where w.id = $5 and w.lease_until > now())
            order by c.fence
            for update skip locked
        ))
    returning s.fence, s.id, s.user_id, s.attempt, s.max_attempts, s.parent_id
)
select
    f.fence, f.kind, f.user_id, f.priority, extract(epoch from f.run_at - clock_timestamp())::float8 as wait_s,
    f.state = 'pending' as pending, c.id, c.attempt, c.max_attempts, j.input::text as input_text, j.project_id,
    c.parent_id, j.slot
from fresh as f
left join claimed as c on c.fence = f.fence
left join listingd.jobs as j on j.user_id = c.user_id and j.id = c.id
order by f.fence

-- name: read_backlog
-- Pending rows without run_at in a stretch of fences, for a start; groups as read_ready's. Their age is that of their
-- ids (UUIDv7: the first five bytes count 256 ms).
-- $1 first fence, $2 last fence, $3 kinds, $4 oldest transaction whose rows are wanted or null for all, $5 limit
select
    array_agg(s.fence order by s.fence) as fences, s.kind, s.user_id, s.priority, null::float8 as wait_s,
    (extract(epoch from now()) - ('x' || encode(s.born, 'hex'))::bit(40)::bigint * 0.256)::float8 as age_s,
    true as pending
from (
    select s.fence, s.kind, s.user_id, s.priority, substring(uuid_send(s.id) for 5) as born
    from listingd.job_states as s
    where
        s.fence between $1 and $2 and s.state = 'pending' and s.kind = any($3::text[]) and s.run_at is null
        and ($4::bigint is null or age(s.xmin) <= age(($4 & 4294967295)::text::xid))
    order by s.fence
    limit $5
) as s
group by s.kind, s.user_id, s.priority, s.born

-- name: read_user_pending
-- A user's pending rows from a fence on that are due, or about to be, when they were spilled (their timers are gone
-- then); groups as read_backlog's.
-- $1 user_id, $2 first fence, $3 limit
select
    array_agg(s.fence order by s.fence) as fences, s.kind, s.user_id, s.priority, null::float8 as wait_s,
    (extract(epoch from now()) - ('x' || encode(s.born, 'hex'))::bit(40)::bigint * 0.256)::float8 as age_s,
    true as pending
from (
    select s.fence, s.kind, s.user_id, s.priority, substring(uuid_send(s.id) for 5) as born
    from listingd.job_states as s
    where s.fence >= $2 and s.state = 'pending' and s.user_id = $1 and (s.run_at is null or s.run_at < now() + interval '1 s')
    order by s.fence
    limit $3
) as s
group by s.kind, s.user_id, s.priority, s.born

-- name: read_due
-- Pending rows whose run_at lies in (now + $1, now + $2] seconds, soonest first; $1 null = from the beginning.
-- Each is a group of one, as read_ready's, with its run_at. $3 and $4: run_at and fence after which to read on, or
-- nulls. $5 limit
select
    array[s.fence] as fences, s.kind, s.user_id, s.priority,
    extract(epoch from s.run_at - clock_timestamp())::float8 as wait_s,
    extract(epoch from now() - s.run_at)::float8 as age_s,
    true as pending, s.run_at
from listingd.job_states as s
where
    s.run_at >= coalesce($3, now() + make_interval(secs => $1), '-infinity')
    and s.run_at <= now() + make_interval(secs => $2)
    and ($3::timestamptz is null or (s.run_at, s.fence) > ($3, $4::bigint))
    and s.state = 'pending'
order by s.run_at, s.fence
limit $5

-- name: find_foreign
-- The first pending row from fence $1 to below $2 that has no run_at and is of none of the kinds $3.
select s.fence
from listingd.job_states as s
where s.fence >= $1 and s.fence < $2 and s.state = 'pending' and s.run_at is null and s.kind <> all($3::text[])
order by s.fence
limit 1

-- name: read_mark
-- The fence below which nothing is ready, the last fence drawn, and the oldest transaction that is still running.
-- (A sequence that was never asked says 1 too.)
select
    m.fence, (select f.last_value - (not f.is_called)::int from listingd.fences as f) as last_fence,
    pg_snapshot_xmin(pg_current_snapshot())::text::bigint as oldest
from listingd.queue_mark as m

-- name: raise_mark
-- $1 fence
update listingd.queue_mark set fence = $1 where fence < $1

-- name: notify_jobs
-- Tell the other processes that something is ready.
select pg_notify('listingd_jobs', '')

-- name: report_progress
-- One row a job whose progress was written: fence, version. $1 fences, $2 progress (JSON text), $3 worker
update listingd.job_states as s
set progress = p.progress::jsonb, version = s.version + 1
from unnest($1::bigint[], $2::text[]) as p (fence, progress)
where
    s.fence = p.fence
    and s.fence = any(array(  -- a report that meets a lock is dropped: the next one says more
        select c.fence
        from listingd.job_states as c
        where c.fence = any($1::bigint[]) and c.state = 'processing' and c.worker = $3
        for update skip locked
    ))
returning s.fence, s.version

-- name: save_asset
-- The version at which the asset appeared; no row when the attempt is no longer ours.
-- $1 fence, $2 worker, $3 id, $4 slot, $5 role, $6 content_type, $7 size_bytes, $8 width_px, $9 height_px,
-- $10 sha256, $11 file_name, $12 checks (JSON text), $13 generated, $14 provider, $15 derived
with held as (
    update listingd.job_states as s
    set version = s.version + 1
    where s.fence = $1 and s.worker = $2 and s.state = 'processing'
    returning s.id, s.user_id, s.version
)
insert into listingd.assets (
    id, job_id, user_id, project_id, slot, role, content_type, size_bytes, width_px, height_px,
    sha256, file_name, checks, generated, provider, derived, version
)
select
    $3, h.id, j.user_id, j.project_id, $4, $5, $6, $7, $8, $9, $10, $11, $12::jsonb, $13, $14, $15,
    h.version
from held as h
join listingd.jobs as j on j.user_id = h.user_id and j.id = h.id
returning version

-- name: save_aplus_content
-- The job's id; no row when the attempt is no longer ours. $1 fence, $2 worker, $3 id, $4 locale, $5 document
insert into listingd.aplus_contents (id, job_id, project_id, user_id, locale, document)
select $3, s.id, j.project_id, j.user_id, $4, $5::jsonb
from listingd.job_states as s
join listingd.jobs as j on j.user_id = s.user_id and j.id = s.id
where s.fence = $1 and s.worker = $2 and s.state = 'processing'
on conflict (job_id) do update set document = excluded.document, locale = excluded.locale
returning job_id

-- name: find_asset
-- The newest asset of a job for a role and slot. $1 job, $2 role, $3 slot or null
select
    a.id, a.slot, a.role, a.content_type, a.width_px, a.height_px, a.size_bytes, a.sha256, a.generated,
    a.checks::text as checks, a.provider, a.derived
from listingd.assets as a
where a.job_id = $1 and a.role = $2 and a.slot is not distinct from $3
order by a.version desc
limit 1

-- name: read_children
-- The children of a parent, as it sees them when it runs again. $1 parent
select s.id, j.slot, s.state, s.result::text as result_text, s.error::text as error_text
from listingd.jobs as j
join listingd.job_states as s on s.id = j.id
where j.parent_id = $1
order by j.created_at, j.id

-- name: start_worker
-- The new worker's id, and the fence from which rescue would look for its jobs.
-- $1 instance, $2 lease in seconds, $3 kinds, $4 concurrency, $5 info (JSON text)
insert into listingd.workers (instance, lease_until, kinds, concurrency, info, low_fence)
select $1, now() + make_interval(secs => $2), $3, $4, $5::jsonb, m.fence
from listingd.queue_mark as m
returning id, low_fence

-- name: find_rivals
-- Live workers of the same instance name: id, info, seconds left of their lease. $1 instance
select w.id, w.info::text as info_text, extract(epoch from w.lease_until - now())::float8 as left_s
from listingd.workers as w
where w.instance = $1 and w.stopped_at is null and w.lease_until > now()

-- name: extend_lease
-- True while the lease stands; no row when another process has declared this one dead.
-- $1 worker, $2 lease in seconds, $3 running, $4 draining
update listingd.workers
set
    lease_until = now() + make_interval(secs => $2),
    seen_at = now(),
    running = $3,
    draining = $4
where id = $1 and stopped_at is null
returning true as held

-- name: lower_fence_mark
-- Before a claim below it: no job in the worker's hands has a lower fence than this. $1 worker, $2 fence
update listingd.workers set low_fence = $2 where id = $1

-- name: raise_fence_mark
-- Not when it was set to something else meanwhile. $1 worker, $2 fence, $3 what it was
update listingd.workers set low_fence = $2 where id = $1 and low_fence = $3

-- name: stop_worker
-- Gives the lease back. A job that is still in this worker's hands is left to the next rescue. $1 worker
update listingd.workers as w
set
    lease_until = now(),
    running = 0,
    stopped_at = case
        when not exists (
            select from listingd.job_states as s
            where s.fence >= w.low_fence and s.worker = w.id and s.state = 'processing'
        ) then now()
    end
where w.id = $1 and w.stopped_at is null

-- name: rescue_jobs
-- One row a job taken from a dead worker: id, fence, kind, user_id, priority, state.
-- $1 rescues allowed, $2 instance whose earlier runs are dead by proof (or null), $3 own worker id
select r.id, r.fence, r.kind, r.user_id, r.priority, r.state, r.worker
from listingd.rescue_jobs($1, $2, $3) as r

-- name: read_live_workers
-- id, instance, kinds, concurrency, running, draining, started_at, seen_at, info of the processes with a lease
select w.id, w.instance, w.kinds, w.concurrency, w.running, w.draining, w.started_at, w.seen_at, w.info::text as info_text
from listingd.workers as w
where w.stopped_at is null and w.lease_until > now()
order by w.id

-- name: expire_jobs
-- Fails pending jobs whose time is over; one row each: id. $1 limit
select e.id from listingd.expire_jobs($1) as e (id)

-- name: cancel_job
-- The state after the cancel and whether a stop is under way; no row for an unknown or foreign id, nor for a
-- webhook's delivery: its endpoint is disabled instead.
-- $1 id, $2 user_id or null for any
select c.id, c.state, c.cancel_requested
from listingd.job_states as s
cross join lateral listingd.cancel_job(s.id, $2) as c
where s.id = $1 and s.kind <> 'webhook'

-- name: retry_job
-- The state after the retry; no row for an unknown or foreign id; state unchanged when it cannot be retried.
-- $1 id, $2 user_id or null for any
select r.id, r.state, r.retried
from listingd.job_states as s
cross join lateral listingd.retry_job(s.id, $2) as r
where s.id = $1 and s.kind <> 'webhook'

-- name: read_cancels
-- Of these fences, the ones whose job is to stop or is no longer this worker's. $1 fences, $2 worker
select a.fence
from unnest($1::bigint[]) as a (fence)
left join listingd.job_states as s
    on s.fence = a.fence and s.state = 'processing' and s.worker = $2 and not s.cancel_requested
where s.id is null

-- name: read_queues
-- kind, paused, paused_why, concurrency of every kind that has a row.
select q.kind, q.paused_at is not null as paused, q.paused_why, q.concurrency from listingd.queues as q

-- name: read_user_shares
-- user_id, weight, paused of every user who has a row.
select u.user_id, u.weight, u.paused_at is not null as paused from listingd.user_shares as u

-- name: prune_jobs
-- The number of jobs erased with all that belongs to them, and the hashes of files they held.
-- $1 states, $2 finished more than so many seconds ago, $3 limit, $4 start after this id (or null)
select p.jobs, p.last_id, p.sha256s from listingd.prune_jobs($1, $2, $3, $4) as p

-- name: prune_idempotency_keys
-- A row for each that went. $1 age in seconds, $2 limit
delete from listingd.idempotency_keys as i
where (i.principal, i.key) in (
    select k.principal, k.key
    from listingd.idempotency_keys as k
    where k.created_at < now() - make_interval(secs => $1)
    limit $2
)
returning true as pruned

-- name: prune_workers
-- Runs that ended more than a day ago.
delete from listingd.workers where stopped_at < now() - interval '1 day'

-- name: notify_probe
-- The listener's round trip. $1 channel
select pg_notify($1, '')

-- name: read_own_claims
-- The jobs this worker holds for longer than so many seconds. $1 worker, $2 first fence, $3 seconds
select s.id, s.fence, s.kind, s.user_id, s.attempt, s.max_attempts
from listingd.job_states as s
where
    s.fence >= $2 and s.worker = $1 and s.state = 'processing'
    and s.started_at < now() - make_interval(secs => $3)

-- name: set_flusher
-- Plans of the flusher's and the feeder's sessions: always by index, planned once. The planner guesses that a worker
-- holds one job and would scan the table for it; and planning the flush anew costs 0.9 ms each time.
select
    set_config('enable_seqscan', 'off', false),
    set_config('enable_hashjoin', 'off', false),
    set_config('enable_mergejoin', 'off', false),
    set_config('enable_memoize', 'off', false),
    set_config('plan_cache_mode', 'force_generic_plan', false),
    set_config('lock_timeout', '500ms', false)

-- name: set_feeder
-- A claim at sight does not wait for the disk. Whatever the attempt then makes lasting (an end, a step, an asset) comes
-- later in the log and takes the claim with it; one that a crash of the server forgets leaves the job pending.
select set_config('synchronous_commit', 'off', false)

-- name: make_lasting
-- Brings all that was committed before to the disk: a record of its own whose commit waits, and with it the log before.
-- Else a claim at sight would stay forgettable until the server's next round, 0.6 s at most.
select set_config('synchronous_commit', 'on', true), pg_logical_emit_message(true, 'listingd', '')
