-- name: reserve_places
-- Those of the fences that may not be claimed: their kind is full over all daemons, or another is about to (is_taken).
-- $1 worker, $2 fences about to be claimed, $3 fences whose end is written in the same statement as the claim
select r.fence, r.is_taken from listingd.reserve_places($1, $2, $3) as r

-- name: drop_places
-- Gives back places of claims that came back empty. $1 worker, $2 fences
delete from listingd.kind_places as p
where
    p.worker = $1 and p.fence = any($2::bigint[])
    and not exists (
        select from listingd.job_states as s where s.fence = p.fence and s.worker = $1 and s.state = 'processing'
    )

-- name: hold_places
-- Places for jobs that run without one. $1 worker, $2 fences
insert into listingd.kind_places (fence, kind, worker)
select s.fence, s.kind, s.worker
from listingd.job_states as s
where s.fence = any($2::bigint[]) and s.worker = $1 and s.state = 'processing'
on conflict do nothing

-- name: hold_running_places
-- The same for all workers, when a kind gets its limit. $1 kind
insert into listingd.kind_places (fence, kind, worker)
select s.fence, s.kind, s.worker
from listingd.job_states as s
where
    s.fence >= least(
        (select m.fence from listingd.queue_mark as m),
        (select min(w.low_fence) from listingd.workers as w where w.stopped_at is null and w.lease_until > now())
    )
    and s.kind = $1 and s.state = 'processing'
on conflict do nothing

-- name: notify_room
-- Tell the other processes that a place has become free.
select pg_notify('listingd_room', '')

-- name: list_user_shares
-- user_id, weight, paused, paused_why of the users whose share was set. $1 user_id or null for all
select u.user_id, u.weight, u.paused_at is not null as paused, u.paused_why
from listingd.user_shares as u
where $1::text is null or u.user_id = $1
order by u.user_id
limit 1000

-- name: set_user_share
-- user_id, weight, paused, paused_why after the change. $1 user_id, $2 weight or null to keep, $3 paused or null to keep,
-- $4 why
insert into listingd.user_shares as u (user_id, weight, paused_at, paused_why)
values ($1, coalesce($2::real, 1), case when $3 then now() end, case when $3 then $4 end)
on conflict (user_id) do update set
    weight = coalesce($2::real, u.weight),
    paused_at = case when $3 then coalesce(u.paused_at, now()) when not $3 then null else u.paused_at end,
    paused_why = case when $3 then $4 when not $3 then null else u.paused_why end
returning
    u.user_id, u.weight, u.paused_at is not null as paused, u.paused_why, pg_notify('listingd_steer', '') as notified

-- name: pause_lane
-- True when there is such a lane: it is closed for so many seconds, then one probing call may open it.
-- $1 lane, $2 seconds, $3 why
update listingd.lanes
set
    paused_at = coalesce(paused_at, now()),
    paused_until = now() + make_interval(secs => $2),
    pause_code = 'paused_by_operator',
    pause_why = $3,
    probe_worker = null,
    probe_until = null
where name = $1
returning true as paused

-- name: recall_parked
-- Jobs that a lane sent away are ready now. $1 lane
with recalled as (
    update listingd.job_states as s
    set run_at = null, fence = nextval('listingd.fences'), version = s.version + 1
    where
        s.id in (
            select p.id
            from listingd.job_states as p
            where
                p.run_at > now() and p.run_at < now() + interval '15 minutes'
                and p.state = 'pending'
                and (
                    p.error ->> 'lane' = $1
                    or p.error ->> 'provider' = (select l.provider from listingd.lanes as l where l.name = $1)
                )
            order by p.id
            for update skip locked
        )
    returning s.id
)
select pg_notify('listingd_jobs', ''), pg_notify('listingd_steer', ''), (select count(*) from recalled) as recalled
