-- Takes the jobs of dead processes back: those whose lease ran out, and earlier runs of the caller's own
-- instance (proven dead by the lock on its state dir). A rescue gives the attempt back and is counted apart;
-- a job rescued as often as allowed fails with worker_crashed. One statement for all dead workers.
create or replace function listingd.rescue_jobs(allowed_rescues int, dead_instance text, own_worker bigint)
returns table (id uuid, fence bigint, kind text, user_id text, priority smallint, state text, worker bigint)
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    with dead as (
        select d.id, d.low_fence
        from listingd.workers as d
        where
            d.id <> own_worker
            and (
                d.stopped_at is null and (d.lease_until < now() or (d.instance = dead_instance and d.id < own_worker))
                -- A statement that began before the death may commit after it, as late as locks and the disk let it.
                -- Equal: it stopped by itself, with empty hands.
                or d.stopped_at > now() - interval '15 s' and d.lease_until <> d.stopped_at
            )
        order by d.id
        for update skip locked
    ),
    theirs as materialized (
        select s.fence, s.worker, s.parent_id, s.cancel_requested or s.rescues + 1 >= allowed_rescues as ends
        from dead as d
        cross join lateral (  -- fenced off: guessing many dead, the planner would read the whole table once for all
            select *
            from listingd.job_states as j
            where j.fence >= d.low_fence and j.worker = d.id and j.state = 'processing'
            offset 0
        ) as s
    ),
    free_parents as materialized (
        select p.id
        from listingd.job_states as p
        where p.id = any(array(select t.parent_id from theirs as t where t.ends))
        for update skip locked
    ),
    -- What a stranger's transaction has locked, or the parent that would be told, waits for the next round: one row
    -- must not hold back all the others.
    held as (
        select
            s.id,
            s.fence as held_fence,
            s.worker as dead_worker,
            case
                when s.cancel_requested then 'cancelled'
                when s.rescues + 1 >= allowed_rescues then 'failed'
                else 'pending'
            end as next_state
        from listingd.job_states as s
        where
            s.fence = any(array(select t.fence from theirs as t))
            and s.state = 'processing'
            and (
                not s.cancel_requested and s.rescues + 1 < allowed_rescues
                or not exists (
                    select
                    from listingd.job_states as p
                    where p.id = s.parent_id and p.id <> all(array(select f.id from free_parents as f))
                )
            )
        order by s.id
        for update skip locked
    ),
    -- Dead, but looked at again as long as a job is in its hands.
    stopped as (
        update listingd.workers as w
        set stopped_at = now(), running = 0
        where
            w.id in (select d.id from dead as d)
            and w.stopped_at is null
            and not exists (
                select from theirs as t where t.worker = w.id and t.fence not in (select h.held_fence from held as h)
            )
    ),
    taken as (
        update listingd.job_states as s
        set
            state = h.next_state,
            rescues = s.rescues + 1,
            attempt = case when h.next_state = 'pending' then s.attempt - 1 else s.attempt end,
            version = s.version + 1,
            worker = null,
            fence = nextval('listingd.fences'),
            unique_key = case when h.next_state = 'pending' then s.unique_key end,
            finished_at = case when h.next_state <> 'pending' then now() end,
            error = case h.next_state
                when 'cancelled' then
                    jsonb_build_object('code', 'cancelled', 'message', 'The job was cancelled.')
                when 'failed' then
                    jsonb_build_object(
                        'code', 'worker_crashed',
                        'message', format('The worker process died %s times while it ran this job.', s.rescues + 1),
                        'hint', 'Read the daemon''s log around started_at; retry the job once the cause is found.'
                    )
            end
        from held as h
        where s.id = h.id
        returning
            s.id, s.fence, s.kind, s.user_id, s.priority, s.state, s.parent_id, s.attempt, s.started_at,
            s.rescues, h.dead_worker, h.held_fence
    ),
    recorded as (
        insert into listingd.attempts (job_id, attempt, fence, worker, started_at, code, error)
        select
            t.id, greatest(t.attempt, 0), t.held_fence, t.dead_worker, t.started_at, 'worker_crashed',
            jsonb_build_object(
                'code', 'worker_crashed', 'message', 'The worker process died while it ran this attempt.',
                'rescues', t.rescues
            )
        from taken as t
    ),
    released as (
        select r.*
        from (
            select array_agg(t.parent_id) as parents
            from taken as t
            where t.parent_id is not null and t.state <> 'pending'
        ) as p
        cross join lateral listingd.settle_children(p.parents) as r
        where p.parents is not null
    )
    select t.id, t.fence, t.kind, t.user_id, t.priority, t.state, t.dead_worker from taken as t
    union all
    select r.id, r.fence, r.kind, r.user_id, r.priority, 'released', null from released as r
$$;
comment on function listingd.rescue_jobs(int, text, bigint) is
    'Takes the jobs of dead processes back; returns them and the parents released.';
revoke all on function listingd.rescue_jobs(int, text, bigint) from public;
