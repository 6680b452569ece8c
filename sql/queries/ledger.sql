-- name: begin_step
-- One row: outcome (open, done, busy, budget, exhausted, lost), step, blocked (JSON text).
-- $1 new id, $2 fence, $3 worker, $4 identity, $5 name, $6 provider, $7 estimate in USD, $8 default limits numeric[6]
select b.outcome, b.step, b.blocked::text as blocked
from listingd.begin_step($1, $2, $3, $4, $5, $6, $7, $8) as b

-- name: find_step
-- The done step of a user for an identity. $1 user, $2 identity
select
    s.id, s.content_sha256, s.content_type, s.document::text as document, s.model, s.request_id,
    s.actual_usd, s.units::text as units
from listingd.steps as s
where s.user_id = $1 and s.identity = $2 and s.state = 'done'

-- name: settle_step
-- True while the attempt is still ours. $1 step, $2 fence, $3 worker, $4 cost in USD, $5 units (JSON text),
-- $6 sha256, $7 content type, $8 document (JSON text), $9 model, $10 request id
select listingd.settle_step($1, $2, $3, $4, $5::jsonb, $6, $7, $8::jsonb, $9, $10) as held

-- name: fail_step
-- False when the step was not open. $1 step, $2 failed or unknown, $3 code, $4 USD that it is known to have cost
select listingd.fail_step($1, $2, $3, $4) as ended

-- name: close_abandoned_steps
-- Ends the open steps whose attempt is over, however it ended: unknown when they may have cost money. As a rule the
-- job's next attempt does so; a job that never runs again leaves it to this. id, job_id, name, provider, cost_usd
-- (text; 0 unless it counts as spent). $1 begun more than so many seconds ago, $2 limit
select
    s.id, s.job_id, s.name, s.provider, s.estimated_usd::text as cost_usd,
    listingd.fail_step(s.id, case when s.estimated_usd > 0 then 'unknown' else 'failed' end, 'interrupted') as ended
from (
    select o.id, o.job_id, o.name, o.provider, o.estimated_usd
    from listingd.steps as o
    where
        o.state = 'open'
        and o.created_at < now() - make_interval(secs => $1)
        and not exists (
            select
            from listingd.job_states as j
            join listingd.workers as w on w.id = j.worker
            where
                j.fence = o.fence and j.worker = o.worker and j.state = 'processing'
                and w.stopped_at is null and w.lease_until > now()
        )
    order by o.created_at
    limit $2
    for update of o skip locked
) as s

-- name: drop_result
-- A done step whose file is gone from storage: it can be called again, its cost stays. $1 step
update listingd.steps
set identity = null, content_sha256 = null, content_type = null, document = null
where id = $1 and state = 'done'

-- name: find_full_budget
-- The budget with no room for so much more, if any. $1 user, $2 project, $3 USD, $4 default limits numeric[6]
select b.scope, b.subject, b.period, b.limit_usd, b.used_usd, b.ends_in_s
from listingd.find_full_budget($1, $2, (now() at time zone 'utc')::date, $3, $4) as b

-- name: has_budgets
-- Whether a budget is set that limits anything.
select exists (select from listingd.budgets as b where b.limit_usd is not null) as has_budgets

-- name: set_budget
-- $1 scope, $2 subject, $3 period, $4 limit in USD (null: no limit)
insert into listingd.budgets (scope, subject, period, limit_usd)
values ($1, $2, $3, $4)
on conflict (scope, subject, period) do update set limit_usd = excluded.limit_usd, updated_at = now()

-- name: drop_budget
-- Back to the settings' default. $1 scope, $2 subject, $3 period
delete from listingd.budgets where scope = $1 and subject = $2 and period = $3

-- name: read_budgets
-- Every set budget and every counter of the present day and month: scope, subject, period, is_set, limit_usd,
-- reserved_usd, spent_usd. $1 scope or null, $2 subject or null, $3 limit
with present as (
    select k.starts, k.period
    from listingd.spend_keys('', null, (now() at time zone 'utc')::date) as k
    where k.scope = 'total'
),
counted as (
    select s.scope, s.subject, s.period, s.reserved_usd, s.spent_usd
    from present as p
    join listingd.spend as s on s.starts = p.starts and s.period = p.period
)
select
    coalesce(b.scope, c.scope) as scope,
    coalesce(b.subject, c.subject) as subject,
    coalesce(b.period, c.period) as period,
    b.scope is not null as is_set,
    b.limit_usd,
    coalesce(c.reserved_usd, 0) as reserved_usd,
    coalesce(c.spent_usd, 0) as spent_usd
from listingd.budgets as b
full join counted as c on c.scope = b.scope and c.subject = b.subject and c.period = b.period
where
    ($1::text is null or coalesce(b.scope, c.scope) = $1)
    and ($2::text is null or coalesce(b.subject, c.subject) = $2)
order by 1 desc, 2, 3
limit $3
