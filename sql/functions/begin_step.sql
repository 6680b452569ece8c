-- Writes the intent of one costly call and reserves its estimate, or says why not. outcome:
--   open       call now; step is ours
--   last       the same, but one call of this job was lost already: what is lost now is not tried again
--   done       an earlier call's result: do not call
--   busy       another live attempt is calling, or its result is being booked: wait
--   budget     a budget has no room; blocked says which, and in is_news whether this was told for the first time
--   exhausted  two calls of this job were lost: give up
--   lost       the attempt is no longer ours
-- A call is lost when it cost money and left no result: its outcome is unknown, or its answer was unusable.
-- An open step whose owner is dead, or has let go of it, is closed first: unknown when it may have cost money.
create or replace function listingd.begin_step(
    new_id uuid, by_fence bigint, by_worker bigint, for_identity text, step_name text, by_provider text,
    estimate_usd numeric, defaults numeric[]
)
returns table (outcome text, step uuid, blocked jsonb)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    job record;
    other record;
    losses int;
    today date := (now() at time zone 'utc')::date;
begin
    estimate_usd := ceil(estimate_usd * 1000000) / 1000000;  -- as the books hold it, and never less
    select s.id, s.user_id, s.kind, j.project_id into job
    from listingd.job_states as s
    join listingd.jobs as j on j.user_id = s.user_id and j.id = s.id
    where s.fence = by_fence and s.worker = by_worker and s.state = 'processing'
    for share of s;
    if not found then
        return query select 'lost', null::uuid, null::jsonb;
        return;
    end if;

    loop
        insert into listingd.steps (
            id, user_id, identity, job_id, project_id, kind, name, provider, worker, fence, estimated_usd, reserved_on
        )
        values (
            new_id, job.user_id, for_identity, job.id, job.project_id, job.kind, step_name, by_provider, by_worker,
            by_fence, estimate_usd, today
        )
        on conflict (user_id, identity) where state in ('open', 'done') do nothing;
        exit when found;

        select s.id, s.job_id, s.state, s.fence, s.worker, s.estimated_usd, s.tries into other
        from listingd.steps as s
        where s.user_id = job.user_id and s.identity = for_identity and s.state in ('open', 'done')
        for update;
        continue when not found;
        if other.state = 'done' then
            return query select 'done', other.id, null::jsonb;
            return;
        end if;
        if other.id = new_id then  -- asked again because the first answer was lost on the way
            return query select case when other.tries > 1 then 'last' else 'open' end, new_id, null::jsonb;
            return;
        end if;
        -- Its attempt runs, or has ended while the answer was on its way to the books: its process goes on booking for
        -- a minute (BOOKING_S in daemon/steps.py). Of an attempt that was handed back nothing says when it ended: before
        -- the next one began. Within one process the caller itself waits for the other.
        if other.fence <> by_fence and exists (
            select
            from listingd.workers as w
            join listingd.job_states as s on s.id = other.job_id
            left join listingd.attempts as a on a.job_id = other.job_id and a.fence = other.fence
            where
                w.id = other.worker and w.stopped_at is null and w.lease_until > now()
                and (
                    s.fence = other.fence and s.worker = other.worker and s.state = 'processing'
                    or other.worker <> by_worker and now() - interval '60 s' < coalesce(
                        a.ended_at, s.finished_at, case when s.state = 'processing' then s.started_at else now() end
                    )
                )
        ) then
            return query select 'busy', other.id, null::jsonb;
            return;
        end if;
        perform listingd.fail_step(
            other.id, case when other.estimated_usd > 0 then 'unknown' else 'failed' end, 'interrupted'
        );
    end loop;

    -- An explicit retry after the job gave up for this reason is a new chance: count only what came later.
    select count(*) into losses
    from listingd.steps as s
    where
        s.job_id = job.id and s.identity = for_identity
        and (s.state = 'unknown' or s.state = 'failed' and s.actual_usd > 0)
        and s.ended_at > coalesce(
            (
                select max(a.ended_at) from listingd.attempts as a
                where a.job_id = job.id and a.code in ('outcome_unknown', 'answers_unusable')
            ),
            '-infinity'
        );
    if losses >= 2 then
        delete from listingd.steps as s where s.id = new_id;
        return query select 'exhausted', null::uuid, null::jsonb;
        return;
    end if;
    if losses > 0 then
        update listingd.steps as s set tries = losses + 1 where s.id = new_id;
    end if;

    if estimate_usd > 0 then
        perform listingd.move_spend(job.user_id, job.project_id, today, 0, 0);  -- locks the counters
        select to_jsonb(b) into blocked
        from listingd.find_full_budget(job.user_id, job.project_id, today, estimate_usd, defaults) as b;
        if found then
            delete from listingd.steps as s where s.id = new_id;
            return query select
                'budget', null::uuid, blocked || jsonb_build_object('is_news', listingd.tell_budget(blocked, today));
            return;
        end if;
        perform listingd.move_spend(job.user_id, job.project_id, today, estimate_usd, 0);
    end if;
    return query select case when losses > 0 then 'last' else 'open' end, new_id, null::jsonb;
end
$$;
comment on function listingd.begin_step(uuid, bigint, bigint, text, text, text, numeric, numeric[]) is
    'Writes the intent of one costly call and reserves its estimate, or says why not.';
revoke all on function listingd.begin_step(uuid, bigint, bigint, text, text, text, numeric, numeric[]) from public;
