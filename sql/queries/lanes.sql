-- name: take_turn
-- One row: granted, wait_s (null: until a call ends), code, why, is_probe, allowed, taken_at. $1 lane, $2 provider,
-- $3 worker, $4 calls in flight here, $5 most in flight over all, $6 calls a minute, $7 burst, $8 price in calls
select t.granted, t.wait_s, t.code, t.why, t.is_probe, t.allowed, t.taken_at
from listingd.take_turn($1, $2, $3, $4, $5, $6, $7, $8) as t

-- name: end_turn
-- One row: paused_s when this call closed the lane, opened_s when it opened it, allowed. $1 lane, $2 worker,
-- $3 calls in flight here, $4 taken_at, $5 ended, $6 was the probe, $7 price, $8 provider's delay in seconds,
-- $9 code, $10 why
select e.paused_s, e.opened_s, e.allowed
from listingd.end_turn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) as e

-- name: resume_lane
-- True when the lane was paused and now is open. $1 lane
update listingd.lanes
set paused_until = null, paused_at = null, pauses = 0, pause_code = null, pause_why = null, not_before = null
where name = $1 and (paused_until is not null or not_before is not null)
returning true as resumed

-- name: read_lanes
-- Every lane: name, provider, allowed, max_in_flight, in_flight, paused_s, pause_code, pause_why, is_probing, wait_s.
select
    l.name, l.provider, greatest(1, floor(l.allowed))::int as allowed, l.max_in_flight,
    coalesce(
        (
            select sum(i.in_flight)
            from listingd.lane_turns as i
            join listingd.workers as w on w.id = i.worker
            where i.lane = l.name and w.stopped_at is null and w.lease_until > now()
        ), 0
    )::int as in_flight,
    l.paused_until is not null as is_paused,
    greatest(extract(epoch from l.paused_until - now())::float8, 0) as paused_s,
    l.pause_code, l.pause_why,
    coalesce(l.probe_until > now(), false) as is_probing,
    greatest(extract(epoch from l.not_before - now())::float8, 0) as wait_s
from listingd.lanes as l
order by l.name

-- name: prune_lanes
-- Calls in flight of processes that are gone, and lanes that nothing used for 30 days.
with turns as (
    delete from listingd.lane_turns as i
    where not exists (select from listingd.workers as w where w.id = i.worker and w.stopped_at is null)
)
delete from listingd.lanes where started_at < now() - interval '30 days'
