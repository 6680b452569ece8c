-- Claims jobs for a worker in any language and starts or extends that worker's lease; returns what was claimed.
-- Call it with an empty array as a heartbeat, at least every quarter of the lease. Kinds with a limit are claimed under
-- read committed alone (else error 0A000).
create or replace function listingd.mark_jobs_processing(
    worker_name text, fences bigint[] default '{}', lease_s float8 default 20
)
returns table (id uuid, fence bigint, kind text, user_id text, attempt smallint, max_attempts smallint, input jsonb)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    own bigint;
    allowed bigint[];
begin
    perform pg_advisory_xact_lock(hashtextextended('listingd.worker.' || worker_name, 0));
    update listingd.workers as w
    set
        lease_until = now() + make_interval(secs => lease_s),
        seen_at = now(),
        low_fence = least(w.low_fence, (select min(f.fence) from unnest(fences) as f (fence)))
    where w.instance = 'sql:' || worker_name and w.stopped_at is null and w.lease_until > now()
    returning w.id into own;
    if own is null then
        insert into listingd.workers (instance, lease_until, low_fence)
        values (
            'sql:' || worker_name, now() + make_interval(secs => lease_s),
            coalesce((select min(f.fence) from unnest(fences) as f (fence)), 9223372036854775807)
        )
        returning workers.id into own;
    end if;
    -- Pauses, and limits over all daemons, hold for workers in every language.
    allowed := array(
        select s.fence
        from listingd.job_states as s
        where
            s.fence = any(fences)
            and not exists (select from listingd.queues as q where q.kind = s.kind and q.paused_at is not null)
            and not exists (select from listingd.user_shares as u where u.user_id = s.user_id and u.paused_at is not null)
    );
    allowed := array(select unnest(allowed) except select p.fence from listingd.reserve_places(own, allowed) as p);
    return query
    with claimed as (
        update listingd.job_states as s
        set
            state = 'processing', version = s.version + 1, attempt = s.attempt + 1, worker = own, started_at = now(),
            run_at = null, expires_at = null
        where s.fence = any(array(
            select c.fence
            from listingd.job_states as c
            where
                c.fence = any(allowed) and c.state = 'pending'
                and (c.run_at is null or c.run_at <= now())
                and (c.expires_at is null or c.expires_at > now())
            order by c.fence
            for update skip locked
        ))
        returning s.id, s.fence, s.kind, s.user_id, s.attempt, s.max_attempts
    )
    select c.id, c.fence, c.kind, c.user_id, c.attempt, c.max_attempts, j.input
    from claimed as c
    join listingd.jobs as j on j.user_id = c.user_id and j.id = c.id
    order by c.fence;
    delete from listingd.kind_places as p
    where
        p.worker = own and p.fence = any(allowed)
        and not exists (
            select from listingd.job_states as s where s.fence = p.fence and s.worker = own and s.state = 'processing'
        );
end
$$;
comment on function listingd.mark_jobs_processing(text, bigint[], float8) is
    'Claims jobs by the fences that get_next_jobs gave and extends the worker''s lease; returns what was claimed.';
revoke all on function listingd.mark_jobs_processing(text, bigint[], float8) from public;
