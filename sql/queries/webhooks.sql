-- name: create_webhook_endpoint
-- id, user_id, url, types, description, created_at, disabled_at, disabled_why of the new endpoint; no row when its
-- owner has as many as allowed. Jobs on their way begin to speak to it too, the 50,000 youngest of them.
-- $1 id, $2 user_id, $3 url, $4 types, $5 description, $6 secret, $7 endpoints allowed
with made as (
    insert into listingd.webhook_endpoints (id, user_id, url, types, description)
    select $1, $2, $3, $4, $5
    where (select count(*) from listingd.webhook_endpoints as e where e.user_id = $2) < $7
    returning *
),
signed as (
    insert into listingd.webhook_secrets (endpoint_id, user_id, secret)
    select m.id, m.user_id, $6
    from made as m
)
select m.id, m.user_id, m.url, m.types, m.description, m.created_at, m.disabled_at, m.disabled_why
from made as m

-- name: mark_webhook_jobs
-- Lets the active jobs of a user ('' = everybody's) speak to endpoints: the 50,000 youngest, never waiting for one
-- that is just being moved. $1 user_id
update listingd.job_states as s
set wants_webhook = true
where s.id in (
    select a.id
    from (
        select y.id, y.state, y.user_id, y.wants_webhook, y.kind
        from listingd.job_states as y
        order by y.fence desc
        limit 50000
    ) as y
    join listingd.job_states as a on a.id = y.id
    where
        y.state in ('pending', 'processing', 'waiting') and not y.wants_webhook and y.kind <> 'webhook'
        and ($1 = '' or y.user_id = $1)
    order by a.id
    for update of a skip locked
)

-- name: list_webhook_endpoints
-- The endpoints of a user, newest first. $1 user_id, $2 id or null for all
select e.id, e.user_id, e.url, e.types, e.description, e.created_at, e.disabled_at, e.disabled_why
from listingd.webhook_endpoints as e
where e.user_id = $1 and ($2::uuid is null or e.id = $2)
order by e.created_at desc, e.id

-- name: update_webhook_endpoint
-- The endpoint after the change; no row for an unknown or foreign id; null keeps what is.
-- $1 id, $2 user_id, $3 url, $4 types, $5 description, $6 enabled
update listingd.webhook_endpoints as e
set
    url = coalesce($3, e.url),
    types = coalesce($4, e.types),
    description = coalesce($5, e.description),
    disabled_at = case when $6 then null when not $6 then coalesce(e.disabled_at, now()) else e.disabled_at end,
    disabled_why = case when $6 then null when not $6 then coalesce(e.disabled_why, 'by its owner') else e.disabled_why end
where e.id = $1 and e.user_id = $2
returning e.id, e.user_id, e.url, e.types, e.description, e.created_at, e.disabled_at, e.disabled_why

-- name: disable_webhook_endpoint
-- $1 id, $2 why
update listingd.webhook_endpoints as e
set disabled_at = now(), disabled_why = $2
where e.id = $1 and e.disabled_at is null

-- name: delete_webhook_endpoint
-- The id; no row for an unknown or foreign one. Its secrets go too. $1 id, $2 user_id
delete from listingd.webhook_endpoints as e
where e.id = $1 and e.user_id = $2
returning e.id

-- name: rotate_webhook_secret
-- True; no row for an unknown or foreign endpoint. The old secret signs along for the overlap.
-- $1 endpoint or null for the secret of the user's jobs, $2 user_id, $3 new secret, $4 overlap in seconds
with owned as (
    select $1::uuid as endpoint_id
    where $1::uuid is null or exists (select from listingd.webhook_endpoints as e where e.id = $1 and e.user_id = $2)
),
old as (
    update listingd.webhook_secrets as s
    set expires_at = now() + make_interval(secs => $4)
    from owned as o
    where s.endpoint_id is not distinct from o.endpoint_id and s.user_id = $2 and s.expires_at is null
    returning s.id
),
ended as (
    select count(*) as n from old
)
insert into listingd.webhook_secrets (endpoint_id, user_id, secret)
select o.endpoint_id, $2, $3
from owned as o
cross join ended as e
where e.n >= 0
returning true as rotated

-- name: ensure_job_webhook_secret
-- Stores the secret for the webhooks that a user's jobs name, unless there is one. $1 user_id, $2 secret
insert into listingd.webhook_secrets (user_id, secret)
values ($1, $2)
on conflict do nothing

-- name: read_webhook_secret
-- The current secret; no row for an unknown or foreign endpoint. $1 endpoint or null, $2 user_id
select s.secret
from listingd.webhook_secrets as s
where s.endpoint_id is not distinct from $1::uuid and s.user_id = $2 and s.expires_at is null

-- name: find_webhook_target
-- url and secrets (newest first) of an enabled endpoint, or of the webhooks that a user's jobs name (url null).
-- $1 endpoint or null, $2 user_id
select e.url, array_agg(s.secret order by s.id desc) as secrets
from listingd.webhook_secrets as s
left join listingd.webhook_endpoints as e on e.id = s.endpoint_id
where
    s.endpoint_id is not distinct from $1::uuid and s.user_id = $2
    and (s.expires_at is null or s.expires_at > now())
    and ($1::uuid is null or e.disabled_at is null)
group by e.url

-- name: queue_webhook_test
-- The delivery's id; no row for an unknown, foreign or disabled endpoint. $1 delivery id, $2 endpoint, $3 user_id
with asked as (
    insert into listingd.jobs (id, user_id, kind, max_attempts, input)
    select
        $1, e.user_id, 'webhook', 1,
        jsonb_build_object(
            'endpoint_id', e.id, 'message_id', 'msg_' || $1::uuid, 'type', 'webhook.test',
            'body', json_build_object('type', 'webhook.test', 'timestamp', listingd.rfc3339(now()), 'data', '{}'::json)::text
        )
    from listingd.webhook_endpoints as e
    where e.id = $2 and e.user_id = $3 and e.disabled_at is null
    returning id, user_id
)
insert into listingd.job_states (id, max_attempts, kind, user_id)
select a.id, 1, 'webhook', a.user_id
from asked as a
returning id, pg_notify('listingd_jobs', '') as notified

-- name: redeliver_webhook
-- The new delivery's id: the same message once more. No row for an unknown or foreign delivery.
-- $1 new delivery id, $2 delivery, $3 user_id
with asked as (
    insert into listingd.jobs (id, user_id, kind, max_attempts, input)
    select $1, j.user_id, 'webhook', 10, j.input
    from listingd.jobs as j
    where j.id = $2 and j.user_id = $3 and j.kind = 'webhook'
    returning id, user_id
)
insert into listingd.job_states (id, max_attempts, kind, user_id)
select a.id, 10, 'webhook', a.user_id
from asked as a
returning id, pg_notify('listingd_jobs', '') as notified

-- name: list_webhook_deliveries
-- The log of deliveries of a user, newest first. $1 user_id, $2 endpoint or null, $3 delivery or null,
-- $4 state or null, $5 older than this id or null, $6 limit
select
    j.id, j.input ->> 'endpoint_id' as endpoint_id, j.input ->> 'url' as url, j.input ->> 'message_id' as message_id,
    j.input ->> 'type' as type, (j.input ->> 'body')::json #>> '{data,job,id}' as job_id,
    s.state, j.created_at, s.finished_at,
    case when s.state = 'pending' then coalesce(s.run_at, j.created_at) end as next_attempt_at,
    s.result::text as result_text,
    (
        select json_agg(
            json_build_object(
                'at', listingd.rfc3339(a.ended_at), 'code', a.code, 'message', a.error ->> 'message',
                'status', a.error #> '{measured,status}', 'duration_s', a.error #> '{measured,duration_s}'
            )
            order by a.fence
        )::text
        from listingd.attempts as a
        where a.job_id = j.id
    ) as attempts_text
from listingd.jobs as j
join listingd.job_states as s on s.id = j.id
where
    j.kind = 'webhook' and j.user_id = $1
    and ($2::uuid is null or j.input ->> 'endpoint_id' = $2::uuid::text)
    and ($3::uuid is null or j.id = $3)
    and ($4::text is null or s.state = $4)
    and ($5::uuid is null or j.id < $5)
order by j.id desc
limit $6
