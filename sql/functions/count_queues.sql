-- How many jobs of each kind are pending and running, and how long ago the one that was ready first was made, without
-- reading the whole queue: for dashboards that look every second while millions wait.
-- Exact while at most 2 * window_rows jobs became ready since the oldest pending one did. Beyond, the oldest and the
-- youngest window_rows are counted and what lies between is estimated from samples (is_estimate). Jobs that are due
-- later, or again after a failure, are counted apart by run_at, up to window_rows of them on either side of now.
-- The age comes from the id, which begins with the time at which it was made: no look at listingd.jobs.
create or replace function listingd.count_queues(window_rows int default 1500, samples int default 800)
returns table (kind text, state text, jobs bigint, oldest_s float8, is_estimate boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    first_fence bigint;
    last_fence bigint;
    head_end bigint;
    tail_begin bigint;
    step float8;
begin
    select least(m.fence, (select min(w.low_fence) from listingd.workers as w where w.stopped_at is null and w.lease_until > now()))
    into first_fence
    from listingd.queue_mark as m;
    select f.last_value into last_fence from listingd.fences as f;
    -- Fences have holes, so that the windows are measured in rows.
    select max(h.fence) into head_end
    from (
        select s.fence from listingd.job_states as s where s.fence >= first_fence order by s.fence limit window_rows
    ) as h;
    select min(t.fence) into tail_begin
    from (
        select s.fence from listingd.job_states as s where s.fence > head_end order by s.fence desc limit window_rows
    ) as t;
    step := coalesce(greatest(1, (tail_begin - head_end - 1)::float8 / samples), 1);

    return query
    select
        c.kind, c.state, c.jobs,
        extract(epoch from now())::float8 - ('x' || left(replace(o.id::text, '-', ''), 12))::bit(48)::bigint / 1000.0,
        step > 1
    from (
        -- A running job that a sample met stands for itself alone: there are few of them.
        select
            x.kind, x.state, min(x.fence) as fence,
            round(sum(case when x.state = 'pending' then x.weight else 1 end))::bigint as jobs
        from (
            select s.fence, s.kind, s.state, 1::float8 as weight
            from listingd.job_states as s
            where s.fence between first_fence and head_end
            union all
            select s.fence, s.kind, s.state, 1
            from listingd.job_states as s
            where s.fence >= tail_begin
            union all
            select s.fence, s.kind, s.state, step
            from listingd.job_states as s
            where
                head_end + 1 < tail_begin
                and s.fence = any(array(
                    select head_end + 1 + floor((n + random()) * step)::bigint
                    from generate_series(0, least(samples, tail_begin - head_end - 1)::int - 1) as n
                ))
            union all
            (
                select s.fence, s.kind, s.state, 1
                from listingd.job_states as s
                where s.run_at > now() and s.fence < first_fence
                order by s.run_at
                limit window_rows
            )
            union all
            (
                select s.fence, s.kind, s.state, 1
                from listingd.job_states as s
                where s.run_at <= now() and s.fence < first_fence
                order by s.run_at desc
                limit window_rows
            )
        ) as x
        where x.state in ('pending', 'processing')
        group by x.kind, x.state
    ) as c
    join listingd.job_states as o on o.fence = c.fence;
end
$$;
comment on function listingd.count_queues(int, int) is
    'Pending and running jobs of each kind without reading the whole queue; an estimate when very many wait.';
revoke all on function listingd.count_queues(int, int) from public;
