-- What could run next, for a worker in any language: a look without a lock. Claim with mark_jobs_processing.
create or replace function listingd.get_next_jobs(kinds text[], max_jobs int default 1)
returns table (
    id uuid, fence bigint, kind text, user_id text, project_id uuid, priority smallint, attempt smallint,
    max_attempts smallint, input jsonb
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with held as (
        select array(select q.kind from listingd.queues as q where q.paused_at is not null) as kinds,
            array(select u.user_id from listingd.user_shares as u where u.paused_at is not null) as users
    )
    select s.id, s.fence, s.kind, s.user_id, j.project_id, s.priority, s.attempt, s.max_attempts, j.input
    from (
        (
            select n.id
            from listingd.job_states as n
            where
                n.fence >= (select m.fence from listingd.queue_mark as m)
                and n.state = 'pending' and n.run_at is null
                and (n.expires_at is null or n.expires_at > now())
                and n.kind = any(kinds)
                and n.kind <> all((select h.kinds from held as h)::text[])
                and n.user_id <> all((select h.users from held as h)::text[])
            order by n.fence
            limit max_jobs
        )
        union all
        (
            select d.id
            from listingd.job_states as d
            where
                d.run_at <= now() and d.state = 'pending'
                and (d.expires_at is null or d.expires_at > now())
                and d.kind = any(kinds)
                and d.kind <> all((select h.kinds from held as h)::text[])
                and d.user_id <> all((select h.users from held as h)::text[])
            order by d.run_at
            limit max_jobs
        )
    ) as c
    join listingd.job_states as s on s.id = c.id
    join listingd.jobs as j on j.user_id = s.user_id and j.id = s.id
    order by s.priority desc, s.fence
    limit max_jobs
$$;
comment on function listingd.get_next_jobs(text[], int) is
    'Jobs that could run next: a look without a lock. Claim them with mark_jobs_processing.';
revoke all on function listingd.get_next_jobs(text[], int) from public;
