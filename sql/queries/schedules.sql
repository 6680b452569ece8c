-- name: list_schedules
-- All columns of the schedules by name, input as text. $1 name or null for all
select
    s.name, s.kind, s.input::text as input, s.user_id, s.project_id, s.priority, s.max_attempts, s.cron, s.time_zone,
    s.missed, s.overlap, s.is_enabled, s.next_at, s.last_at, s.last_job_id, s.created_at
from listingd.schedules as s
where $1::text is null or s.name = $1
order by s.name
limit 1000

-- name: set_schedule
-- Makes a schedule or changes it; one that goes on as it was keeps its next time. $1 name, $2 kind, $3 input (JSON
-- text), $4 user_id, $5 project_id, $6 priority, $7 max_attempts, $8 cron, $9 time zone, $10 missed, $11 overlap,
-- $12 enabled, $13 next time
with stored as (
    insert into listingd.schedules as s (
        name, kind, input, user_id, project_id, priority, max_attempts, cron, time_zone, missed, overlap, is_enabled, next_at
    )
    values ($1, $2, $3::jsonb, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
    on conflict (name) do update set
        kind = excluded.kind, input = excluded.input, user_id = excluded.user_id, project_id = excluded.project_id,
        priority = excluded.priority, max_attempts = excluded.max_attempts, cron = excluded.cron,
        time_zone = excluded.time_zone, missed = excluded.missed, overlap = excluded.overlap,
        is_enabled = excluded.is_enabled,
        next_at = case
            when s.is_enabled and s.cron = excluded.cron and s.time_zone = excluded.time_zone
                then coalesce(s.next_at, excluded.next_at)
            else excluded.next_at
        end
    returning s.name
)
select pg_notify('listingd_steer', '') from stored

-- name: drop_schedule
-- The name, when there was such a schedule. $1 name
delete from listingd.schedules where name = $1 returning name

-- name: read_due_schedules
-- The schedules whose time has come, with the database's time. $1 limit
select s.name, s.cron, s.time_zone, s.missed, s.next_at, now() as now
from listingd.schedules as s
where s.is_enabled and s.next_at <= now()
order by s.next_at
limit $1

-- name: read_next_fire
-- Seconds until the next schedule fires; null without one.
select extract(epoch from min(s.next_at) - clock_timestamp())::float8 as wait_s
from listingd.schedules as s
where s.is_enabled

-- name: fire_schedule
-- The ids of the jobs enqueued; none when another process was faster, or the schedule has changed or is locked.
-- $1 name, $2 the time it waited for, $3 cron, $4 time zone, $5 when it fires next, $6 times to enqueue a job for
select f.id from listingd.fire_schedule($1, $2, $3, $4, $5, $6) as f (id)
