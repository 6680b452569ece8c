-- name: read_usage
-- Jobs created in a span, grouped as asked: day, kind, provider, user_id (null where not grouped by), jobs, completed,
-- failed, cancelled, calls, unknown_calls, estimated_usd, actual_usd, p50_s, p95_s (run time of completed jobs).
-- Grouped by provider a job counts once at each provider it called. Ids begin with their time of creation: the
-- key of job_states finds the span. A pack's run begins with its first item (began_at).
-- $1 first id, $2 id after the last, $3 user_id or null for all, $4 by day, $5 by kind, $6 by provider, $7 by user, $8 limit
select
    case when $4 then (j.created_at at time zone 'utc')::date end as day,
    case when $5 then j.kind end as kind,
    c.provider,
    case when $7 then j.user_id end as user_id,
    count(*) as jobs,
    count(*) filter (where s.state = 'completed') as completed,
    count(*) filter (where s.state = 'failed') as failed,
    count(*) filter (where s.state = 'cancelled') as cancelled,
    coalesce(sum(c.calls), 0)::bigint as calls,
    coalesce(sum(c.unknown_calls), 0)::bigint as unknown_calls,
    coalesce(sum(c.estimated_usd), 0) as estimated_usd,
    coalesce(sum(c.actual_usd), 0) as actual_usd,
    percentile_cont(0.5) within group (order by extract(epoch from s.finished_at - least(s.started_at, s.began_at))::float8)
        filter (where s.state = 'completed') as p50_s,
    percentile_cont(0.95) within group (order by extract(epoch from s.finished_at - least(s.started_at, s.began_at))::float8)
        filter (where s.state = 'completed') as p95_s
from listingd.jobs as j
join listingd.job_states as s on s.user_id = j.user_id and s.id = j.id
left join lateral (
    select
        case when $6 then p.provider end as provider,
        count(*) as calls,
        count(*) filter (where p.state = 'unknown') as unknown_calls,
        sum(p.estimated_usd) filter (where p.state <> 'failed') as estimated_usd,
        sum(p.actual_usd) as actual_usd
    from listingd.steps as p
    where p.job_id = j.id
    group by 1
) as c on true
where s.id >= $1 and s.id < $2 and j.kind <> 'webhook' and ($3::text is null or j.user_id = $3)
group by 1, 2, 3, 4
order by 1, 2, 3, 4
limit $8

-- name: read_run_times
-- p50_s and p95_s of the last 200 completed jobs of a kind among the last 5,000 jobs (null when there are none), and
-- jobs ahead (pending and running, at most 1,000 counted). $1 kind
select
    percentile_cont(0.5) within group (order by r.run_s) as p50_s,
    percentile_cont(0.95) within group (order by r.run_s) as p95_s,
    (
        select count(*)
        from (
            select q.state
            from listingd.job_states as q
            where q.fence >= (select m.fence from listingd.queue_mark as m)
            order by q.fence desc
            limit 1000
        ) as near
        where near.state in ('pending', 'processing')
    ) as ahead
from (
    select
        extract(epoch from s.finished_at - least(s.started_at, s.began_at))::float8 as run_s
    from (
        select l.id, l.kind, l.state, l.started_at, l.began_at, l.finished_at
        from listingd.job_states as l
        order by l.id desc
        limit 5000
    ) as s
    where s.kind = $1 and s.state = 'completed'
    order by s.id desc
    limit 200
) as r

-- name: read_queue_loads
-- kind, state, jobs, oldest_s, is_estimate of what is pending, running or due later; waiting parents are not counted.
select q.kind, q.state, q.jobs, q.oldest_s, q.is_estimate
from listingd.count_queues() as q

-- name: set_queue
-- kind, paused, paused_why, concurrency after the change. $1 kind, $2 paused or null to keep, $3 why,
-- $4 whether to set the concurrency, $5 concurrency or null for no limit
insert into listingd.queues as q (kind, paused_at, paused_why, concurrency)
values ($1, case when $2 then now() end, case when $2 then $3 end, case when $4 then $5::int end)
on conflict (kind) do update set
    paused_at = case when $2 then coalesce(q.paused_at, now()) when not $2 then null else q.paused_at end,
    paused_why = case when $2 then $3 when not $2 then null else q.paused_why end,
    concurrency = case when $4 then $5::int else q.concurrency end
returning
    q.kind, q.paused_at is not null as paused, q.paused_why, q.concurrency,
    pg_notify('listingd_steer', '') as notified
