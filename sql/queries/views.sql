-- name: read_jobs
-- The jobs as the API shows them, in the order asked; no row for an unknown id, somebody else's, or a webhook's
-- delivery, which is shown in the log of deliveries alone.
-- A parent's version counts its children's changes too, and it starts with the first of them: its own row says when it
-- was taken up again, after they had ended. $1 ids, $2 user_id or null for any,
-- $3 position: whether to count the pending jobs before each pending one (null beyond the nearest 1000 rows),
-- $4 what links begin with
-- `any(c.family)`, and not an expression: behind row level security only plain columns may look into an index.
select
    j.id, j.kind, s.state, j.user_id, j.project_id, j.parent_id, j.slot, j.priority, s.attempt, j.max_attempts,
    j.created_at, s.run_at, least(s.started_at, c.started_at) as started_at, s.finished_at,
    case when s.state = 'pending' then s.expires_at else j.expires_at end as expires_at, s.cancel_requested,
    s.version + coalesce(c.changes, 0) as version,
    s.progress::text as progress, j.input::text as input, s.result::text as result, s.error::text as error,
    j.metadata::text as metadata, array_to_json(j.tags)::text as tags,
    c.ids as item_ids, coalesce(c.ended, 0) as items_ended, c.items::text as items,
    a.assets::text as assets, t.attempts::text as attempts,
    case
        when $3 and s.state = 'pending' and (s.run_at is null or s.run_at <= now()) then listingd.count_ahead(s.fence)
    end as position,
    p.estimated_usd, p.actual_usd, p.unknown_calls
from unnest($1::uuid[]) with ordinality as w (id, n)
join listingd.job_states as s on s.id = w.id and s.kind <> 'webhook' and ($2::text is null or s.user_id = $2)
join listingd.jobs as j on j.user_id = s.user_id and j.id = s.id
cross join lateral (
    select
        array_agg(k.id order by k.id) as ids,
        array_append(array_agg(k.id), j.id) as family,
        sum(ks.version - 1) as changes,
        min(ks.started_at) filter (where ks.started_at >= s.began_at or s.began_at is null) as started_at,
        count(*) filter (where ks.state in ('completed', 'failed', 'cancelled')) as ended,
        json_agg(
            json_build_object(
                'id', k.id, 'slot', k.slot, 'state', ks.state, 'progress', ks.progress, 'error', ks.error,
                'asset', (
                    select json_build_object('id', x.id, 'url', $4::text || '/v1/assets/' || x.id)
                    from listingd.assets as x
                    where x.job_id = k.id and x.role = 'image'
                    order by x.version desc
                    limit 1
                )
            )
            order by k.id
        ) as items
    from listingd.jobs as k
    join listingd.job_states as ks on ks.id = k.id
    where k.parent_id = j.id
) as c
left join lateral (
    select
        json_agg(
            json_build_object(
                'id', x.id, 'job_id', x.job_id, 'slot', x.slot, 'role', x.role, 'content_type', x.content_type,
                'width_px', x.width_px, 'height_px', x.height_px, 'bytes', x.size_bytes, 'sha256', x.sha256,
                'file_name', x.file_name, 'checks', x.checks, 'generated', x.generated, 'provider', x.provider,
                'version', x.version
            )
            order by x.created_at, x.version, x.id
        ) as assets
    from listingd.assets as x
    where x.job_id = any(c.family)
) as a on true
left join lateral (
    select
        json_agg(
            json_build_object(
                'number', y.attempt, 'started_at', listingd.rfc3339(y.started_at),
                'ended_at', listingd.rfc3339(y.ended_at), 'code', y.code, 'message', y.error -> 'message',
                'provider', y.error -> 'provider', 'provider_request_id', y.error -> 'provider_request_id',
                'paid', coalesce(y.error -> 'paid', '"no"')
            )
            order by y.fence
        ) as attempts
    from listingd.attempts as y
    where y.job_id = j.id
) as t on true
left join lateral (
    select
        coalesce(sum(z.estimated_usd) filter (where z.state <> 'failed'), 0)::text as estimated_usd,
        coalesce(sum(z.actual_usd), 0)::text as actual_usd,
        count(*) filter (where z.state = 'unknown') as unknown_calls
    from listingd.steps as z
    where z.job_id = any(c.family)
) as p on true
order by w.n

-- name: read_versions
-- id, version and user_id of those of the jobs that exist. $1 ids
select
    s.id,
    s.user_id,
    s.version + coalesce(
        (
            select sum(c.version - 1)
            from listingd.jobs as k
            join listingd.job_states as c on c.id = k.id
            where k.parent_id = s.id
        ),
        0
    ) as version
from listingd.job_states as s
where s.id = any($1::uuid[])

-- name: list_user_jobs
-- The ids of a user's jobs, newest first: created_at, id. Ids begin with their time of creation, so that their order is
-- the order of creation (to the clocks' difference) and needs no further index. $1 user_id, $2 limit, $3 states or null,
-- $4 kind or null, $5 tag or null, $6 created after or null, $7 created before or null, $8 cursor's id or null
select j.created_at, j.id
from listingd.jobs as j
join listingd.job_states as s on s.id = j.id
where
    j.user_id = $1
    and j.kind <> 'webhook'
    and j.id < coalesce($8, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
    and ($3::text[] is null or s.state = any($3))
    and ($4::text is null or j.kind = $4)
    and ($5::text is null or j.tags @> array[$5::text])
    and ($6::timestamptz is null or j.created_at > $6)
    and ($7::timestamptz is null or j.created_at < $7)
order by j.id desc
limit $2

-- name: list_all_jobs
-- The same over all users, for a service. $1 unused (null)
-- `offset 0`: the planner takes the two columns of the key for two filters, expects next to nothing and reads everything.
select j.created_at, s.id
from listingd.job_states as s
cross join lateral (
    select k.kind, k.tags, k.created_at from listingd.jobs as k where k.user_id = s.user_id and k.id = s.id offset 0
) as j
where
    $1::text is null
    and s.kind <> 'webhook'
    and s.id < coalesce($8, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
    and ($3::text[] is null or s.state = any($3))
    and ($4::text is null or j.kind = $4)
    and ($5::text is null or j.tags @> array[$5::text])
    and ($6::timestamptz is null or j.created_at > $6)
    and ($7::timestamptz is null or j.created_at < $7)
order by s.id desc
limit $2

-- name: list_project_jobs
-- The same within a project. $1 user_id or null for any, $2 … $8 as above, $9 cursor's created_at or null, $10 project
select j.created_at, j.id
from listingd.jobs as j
join listingd.job_states as s on s.id = j.id
where
    j.project_id = $10
    and ($1::text is null or j.user_id = $1)
    and (j.created_at, j.id) < (
        coalesce($9, 'infinity'::timestamptz), coalesce($8, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
    )
    and ($3::text[] is null or s.state = any($3))
    and ($4::text is null or j.kind = $4)
    and ($5::text is null or j.tags @> array[$5::text])
    and ($6::timestamptz is null or j.created_at > $6)
    and ($7::timestamptz is null or j.created_at < $7)
order by j.created_at desc, j.id desc
limit $2

-- name: list_child_jobs
-- The same among the children of a job. $1 user_id or null for any, $2 … $9 as above, $10 parent, $11 project or null
select j.created_at, j.id
from listingd.jobs as j
join listingd.job_states as s on s.id = j.id
where
    j.parent_id = $10
    and ($11::uuid is null or j.project_id = $11)
    and ($1::text is null or j.user_id = $1)
    and (j.created_at, j.id) < (
        coalesce($9, 'infinity'::timestamptz), coalesce($8, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
    )
    and ($3::text[] is null or s.state = any($3))
    and ($4::text is null or j.kind = $4)
    and ($5::text is null or j.tags @> array[$5::text])
    and ($6::timestamptz is null or j.created_at > $6)
    and ($7::timestamptz is null or j.created_at < $7)
order by j.created_at desc, j.id desc
limit $2

-- name: read_asset
-- One file of a job; no row for an unknown id or somebody else's. $1 id, $2 user_id or null for any
select
    a.id, a.job_id, j.parent_id, a.project_id, a.user_id, a.slot, a.role, a.content_type, a.size_bytes, a.width_px,
    a.height_px, a.sha256, a.file_name, a.created_at, j.kind, j.input -> 'product' ->> 'sku' as sku
from listingd.assets as a
join listingd.jobs as j on j.user_id = a.user_id and j.id = a.job_id
where a.id = $1 and ($2::text is null or a.user_id = $2)

-- name: read_job_assets
-- The finished files of a job and its children, the newest of each slot. $1 job, $2 user_id or null for any
select distinct on (a.job_id, a.role, a.slot)
    a.id, a.job_id, j.parent_id, a.project_id, a.user_id, a.slot, a.role, a.content_type, a.size_bytes, a.width_px,
    a.height_px, a.sha256, a.file_name, a.created_at, j.kind, j.input -> 'product' ->> 'sku' as sku
from (
    select s.id from listingd.job_states as s where s.id = $1
    union all
    select k.id from listingd.jobs as k where k.parent_id = $1
) as f
join listingd.assets as a on a.job_id = f.id
join listingd.jobs as j on j.user_id = a.user_id and j.id = a.job_id
where ($2::text is null or j.user_id = $2) and a.role <> 'partial'
order by a.job_id, a.role, a.slot, a.version desc

-- name: read_job_document
-- The A+ document of a job, JSON text. $1 job, $2 user_id or null for any
select c.document::text as document
from listingd.aplus_contents as c
where c.job_id = $1 and ($2::text is null or c.user_id = $2)

-- name: find_owner
-- user_id, project_id and parent_id of a job; no row for an unknown id or somebody else's. $1 id, $2 user_id or null
select j.user_id, j.project_id, j.parent_id
from listingd.job_states as s
join listingd.jobs as j on j.user_id = s.user_id and j.id = s.id
where s.id = $1 and s.kind <> 'webhook' and ($2::text is null or s.user_id = $2)

-- name: read_project
-- A project with its counts; no row for an unknown id or somebody else's. $1 id, $2 user_id or null for any
select
    p.id, p.user_id, p.name, p.created_at,
    (
        select json_object_agg(c.state, c.n)
        from (
            select s.state, count(*) as n
            from listingd.jobs as j
            join listingd.job_states as s on s.id = j.id
            where j.project_id = p.id and j.user_id = p.user_id
            group by s.state
        ) as c
    )::text as jobs,
    (
        select json_agg(
            json_build_object(
                'id', i.id, 'job_id', i.job_id, 'slot', i.slot, 'content_type', i.content_type,
                'width_px', i.width_px, 'height_px', i.height_px, 'sha256', i.sha256, 'checks', i.checks,
                'generated', i.generated, 'provider', i.provider, 'created_at', listingd.rfc3339(i.created_at)
            )
            order by i.created_at desc
        )
        from (
            select g.*
            from listingd.generated_images as g
            where g.project_id = p.id and g.user_id = p.user_id
            order by g.created_at desc
            limit 100
        ) as i
    )::text as images,
    (
        select json_agg(
            json_build_object(
                'id', d.id, 'job_id', d.job_id, 'locale', d.locale, 'document', d.document,
                'created_at', listingd.rfc3339(d.created_at)
            )
            order by d.created_at desc
        )
        from (
            select c.*
            from listingd.aplus_contents as c
            where c.project_id = p.id and c.user_id = p.user_id
            order by c.created_at desc
            limit 20
        ) as d
    )::text as aplus_contents
from listingd.projects as p
where p.id = $1 and ($2::text is null or p.user_id = $2)

-- name: find_foreign_projects
-- Those of these projects that are another user's: id. $1 projects, $2 user
select p.id from listingd.projects as p where p.id = any($1::uuid[]) and p.user_id <> $2

-- name: read_created_at
-- id and created_at of those of the jobs that still exist. $1 ids
select j.id, j.created_at
from listingd.job_states as s
join listingd.jobs as j on j.user_id = s.user_id and j.id = s.id
where s.id = any($1::uuid[])

-- name: count_open_jobs
-- How many unfinished jobs a user has, at most the limit, among the newest twice as many. $1 user_id, $2 limit
select count(*) as open_jobs
from (
    select
    from (
        select j.id
        from listingd.jobs as j
        where j.user_id = $1
        order by j.id desc
        limit 2 * $2::bigint
    ) as n
    join listingd.job_states as s on s.id = n.id
    where s.state in ('pending', 'processing', 'waiting') and s.kind <> 'webhook'
    limit $2
) as o

-- name: create_upload
-- $1 id, $2 user_id, $3 sha256, $4 content_type, $5 size_bytes, $6 width_px, $7 height_px
insert into listingd.uploads (id, user_id, sha256, content_type, size_bytes, width_px, height_px)
values ($1, $2, $3, $4, $5, $6, $7)

-- name: erase_job
-- state, parent_id and whether it was erased; no row for an unknown id or somebody else's. $1 id, $2 user_id or null
select e.id, e.state, e.parent_id, e.erased
from listingd.job_states as s
cross join lateral listingd.erase_job(s.id, $2) as e
where s.id = $1 and s.kind <> 'webhook'

-- name: list_open_user_jobs
-- For a stream's snapshot: of a user's newest 1000 jobs without parent, those that are open, or were created or ended
-- after a time; and one last row without id: is_partial says whether there may be older jobs, which nobody looked at.
-- $1 user_id, $2 project or null, $3 tag or null, $4 kind or null, $5 since or null, $6 limit
with newest as (
    select j.id, j.created_at
    from listingd.jobs as j
    where
        j.user_id = $1
        and j.parent_id is null
        and j.kind <> 'webhook'
        and ($2::uuid is null or j.project_id = $2)
        and ($3::text is null or j.tags @> array[$3::text])
        and ($4::text is null or j.kind = $4)
    order by j.id desc
    limit 1000
)
(
    select n.id, null::boolean as is_partial
    from newest as n
    join listingd.job_states as s on s.id = n.id
    where
        s.state in ('pending', 'processing', 'waiting')
        or s.finished_at > $5::timestamptz or n.created_at > $5::timestamptz
    order by n.id desc
    limit $6
)
union all
select null, count(*) = 1000
from newest

-- name: list_open_jobs
-- The same over all users, for a service. $1 unused (null)
with newest as (
    select s.id, s.state, s.finished_at, j.created_at
    from listingd.job_states as s
    cross join lateral (
        select k.kind, k.tags, k.project_id, k.created_at
        from listingd.jobs as k
        where k.user_id = s.user_id and k.id = s.id
        offset 0
    ) as j
    where
        $1::text is null
        and s.parent_id is null
        and s.kind <> 'webhook'
        and ($2::uuid is null or j.project_id = $2)
        and ($3::text is null or j.tags @> array[$3::text])
        and ($4::text is null or j.kind = $4)
    order by s.id desc
    limit 1000
)
(
    select n.id, null::boolean as is_partial
    from newest as n
    where
        n.state in ('pending', 'processing', 'waiting')
        or n.finished_at > $5::timestamptz or n.created_at > $5::timestamptz
    order by n.id desc
    limit $6
)
union all
select null, count(*) = 1000
from newest

-- name: list_new_user_jobs
-- Of a user's newest 1000 jobs without parent, those that were created or ended after a time. $1 … $6 as above, since not
-- null, $7 an id below those that are looked at
select n.id
from (
    select j.id, j.created_at
    from listingd.jobs as j
    where
        j.user_id = $1
        and j.id > $7::uuid
        and j.parent_id is null
        and j.kind <> 'webhook'
        and ($2::uuid is null or j.project_id = $2)
        and ($3::text is null or j.tags @> array[$3::text])
        and ($4::text is null or j.kind = $4)
    order by j.id desc
    limit 1000
) as n
join listingd.job_states as s on s.id = n.id
where s.finished_at > $5::timestamptz or n.created_at > $5::timestamptz
order by n.id desc
limit $6

-- name: list_new_jobs
-- The same over all users. $1 unused (null)
select n.id
from (
    select s.id, s.finished_at, j.created_at
    from listingd.job_states as s
    cross join lateral (
        select k.kind, k.tags, k.project_id, k.created_at
        from listingd.jobs as k
        where k.user_id = s.user_id and k.id = s.id
        offset 0
    ) as j
    where
        $1::text is null
        and s.id > $7::uuid
        and s.parent_id is null
        and s.kind <> 'webhook'
        and ($2::uuid is null or j.project_id = $2)
        and ($3::text is null or j.tags @> array[$3::text])
        and ($4::text is null or j.kind = $4)
    order by s.id desc
    limit 1000
) as n
where n.finished_at > $5::timestamptz or n.created_at > $5::timestamptz
order by n.id desc
limit $6

-- name: take_idempotency_key
-- fingerprint, response and whether the key is now the caller's. One that was taken a minute ago and never answered
-- was left by a process that died. No row when another took it while this statement ran.
-- $1 principal, $2 key, $3 fingerprint
with taken as (
    insert into listingd.idempotency_keys as i (principal, key, fingerprint)
    values ($1, $2, $3)
    on conflict (principal, key) do update
    set created_at = now()
    where
        i.response is null and i.job_id is null and i.fingerprint = $3 and i.created_at < now() - interval '1 minute'
    returning i.fingerprint
)
select t.fingerprint, null as response, true as taken
from taken as t
union all
select i.fingerprint, i.response::text, false
from listingd.idempotency_keys as i
where i.principal = $1 and i.key = $2 and not exists (select from taken)

-- name: keep_idempotent_answer
-- $1 principal, $2 key, $3 answer (JSON text)
update listingd.idempotency_keys set response = $3::jsonb where principal = $1 and key = $2

-- name: drop_idempotency_key
-- $1 principal, $2 key
delete from listingd.idempotency_keys where principal = $1 and key = $2 and response is null and job_id is null

-- name: ping
-- 1 when the database answers.
select 1 as pong
