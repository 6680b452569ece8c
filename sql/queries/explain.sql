-- name: explain_job
-- Where a job stands and what may hold it back; no row for an unknown id or somebody else's. $1 id, $2 user_id or null
select
    s.id, s.fence, s.kind, s.state, s.user_id, j.project_id, j.parent_id, s.attempt, s.max_attempts, s.cancel_requested,
    extract(epoch from s.run_at - now())::float8 as due_in_s,
    extract(epoch from s.expires_at - now())::float8 as expires_in_s,
    extract(epoch from now() - s.started_at)::float8 as running_s,
    s.finished_at,
    s.error ->> 'code' as error_code,
    s.error ->> 'message' as error_message,
    s.error ->> 'lane' as lane,
    w.instance,
    c.open as open_children, c.total as children, c.kind as child_kind,
    v.live, v.able, v.slots,
    q.paused_at is not null as kind_paused, q.paused_why as kind_paused_why, q.concurrency,
    u.paused_at is not null as user_paused, u.paused_why as user_paused_why,
    l.pause_why as lane_paused_why,
    greatest(extract(epoch from l.paused_until - now()), extract(epoch from l.not_before - now()), 0)::float8 as lane_closed_s
from listingd.jobs as j
join listingd.job_states as s on s.user_id = j.user_id and s.id = j.id
left join listingd.workers as w on w.id = s.worker
left join lateral (
    select
        count(*) filter (where k.state in ('pending', 'processing', 'waiting')) as open,
        count(*) as total,
        min(k.kind) as kind
    from listingd.jobs as kj
    join listingd.job_states as k on k.id = kj.id
    where kj.parent_id = j.id
) as c on true
cross join lateral (
    select
        count(*) as live,
        count(*) filter (where x.kinds is null or s.kind = any(x.kinds)) as able,
        coalesce(sum(x.concurrency) filter (where s.kind = any(x.kinds) and not x.draining), 0) as slots
    from listingd.workers as x
    where x.stopped_at is null and x.lease_until > now()
) as v
left join listingd.queues as q on q.kind = s.kind
left join listingd.user_shares as u on u.user_id = s.user_id
left join listingd.lanes as l on l.name = s.error ->> 'lane'
where j.id = $1 and ($2::text is null or j.user_id = $2)
