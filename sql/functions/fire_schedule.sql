-- Enqueues a schedule's jobs for the times `fires` and sets when it fires next, once whoever asks: nothing happens
-- unless the schedule still waits for `expected` with this expression and zone. Returns the new jobs' ids.
create or replace function listingd.fire_schedule(
    schedule text, expected timestamptz, of_cron text, of_zone text, following timestamptz, fires timestamptz[]
)
returns setof uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    s listingd.schedules;
    due timestamptz[] := fires;
    ids uuid[] := '{}';
begin
    select n.* into s
    from listingd.schedules as n
    where
        n.name = schedule and n.is_enabled and n.next_at = expected and n.cron = of_cron and n.time_zone = of_zone
    for update skip locked;  -- a stranger's transaction must not hold up the other schedules
    if not found then
        return;
    end if;
    if s.overlap = 'skip' then
        due := due[cardinality(due):];
        if exists (
            select
            from listingd.job_states as j
            where j.id = s.last_job_id and j.state in ('pending', 'processing', 'waiting')
        ) then
            due := '{}';
        end if;
    end if;
    if cardinality(due) > 0 then
        ids := array(
            select e.id
            from listingd.enqueue_jobs((
                select jsonb_agg(
                    jsonb_build_object(
                        'kind', s.kind, 'input', s.input, 'user_id', s.user_id, 'project_id', s.project_id,
                        'priority', s.priority, 'max_attempts', s.max_attempts,
                        'metadata', jsonb_build_object('schedule', s.name, 'scheduled_at', listingd.rfc3339(d.at))
                    )
                    order by d.at
                )
                from unnest(due) as d (at)
            )) with ordinality as e (id, n)
            order by e.n
        );
    end if;
    update listingd.schedules as n
    set
        next_at = following,
        last_at = coalesce(due[cardinality(due)], n.last_at),
        last_job_id = coalesce(ids[cardinality(ids)], n.last_job_id)
    where n.name = schedule;
    return query select i.id from unnest(ids) as i (id);
end
$$;
comment on function listingd.fire_schedule(text, timestamptz, text, text, timestamptz, timestamptz[]) is
    'Enqueues a schedule''s jobs and sets when it fires next, once whoever asks; returns the jobs'' ids.';
revoke all on function listingd.fire_schedule(text, timestamptz, text, text, timestamptz, timestamptz[]) from public;
