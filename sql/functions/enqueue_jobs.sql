-- Enqueues many jobs in the caller's transaction: [{kind, input, user_id?, project_id?, priority?, run_at?,
-- expires_at?, max_attempts?, metadata?, tags?, unique_key?, webhook?}]. Returns their ids in order. The daemon wakes at
-- commit. A unique_key that an active job of the user holds gives that job's id.
-- The owner's rights: who may execute it needs no right on the tables (grant execute on function … to an_app).
create or replace function listingd.enqueue_jobs(jobs jsonb)
returns setof uuid
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    with asked as materialized (
        select
            a.id, a.n, nextval('listingd.fences') as fence, a.kind, coalesce(a.input, '{}') as input,
            coalesce(a.user_id, '') as user_id, a.project_id, coalesce(a.priority, 0::smallint) as priority,
            a.run_at,
            case when a.expires_at <= a.run_at then listingd.refuse_times(a.run_at, a.expires_at) else a.expires_at end
                as expires_at,
            coalesce(a.max_attempts, 4::smallint) as max_attempts,
            coalesce(a.metadata, '{}') as metadata, coalesce(a.tags, '{}') as tags, a.unique_key,
            nullif(a.webhook, 'null') as webhook
        from rows from (
            jsonb_to_recordset(jobs) as (
                kind text, input jsonb, user_id text, project_id uuid, priority smallint, run_at timestamptz,
                expires_at timestamptz, max_attempts smallint, metadata jsonb, tags text[], unique_key text,
                webhook jsonb
            ),
            listingd.new_ids(jsonb_array_length(jobs))
        ) with ordinality as a (
            kind, input, user_id, project_id, priority, run_at, expires_at, max_attempts, metadata, tags, unique_key,
            webhook, id, n
        )
    ),
    hearers as (
        select listingd.find_webhook_users(array(select distinct b.user_id from asked as b)) as users
    ),
    states as (
        select
            a.id, a.fence, a.run_at, a.expires_at, a.priority, a.max_attempts, a.kind, a.user_id, a.unique_key,
            a.webhook is not null or array['', a.user_id] && (select h.users from hearers as h) as wants_webhook
        from asked as a
    ),
    free as (
        insert into listingd.job_states (
            id, fence, run_at, expires_at, priority, max_attempts, kind, user_id, wants_webhook
        )
        select
            s.id, s.fence, s.run_at, s.expires_at, s.priority, s.max_attempts, s.kind, s.user_id, s.wants_webhook
        from states as s
        where s.unique_key is null
    ),
    -- Apart, because a row that may meet another costs twice as much to insert.
    keyed as (
        insert into listingd.job_states (
            id, fence, run_at, expires_at, priority, max_attempts, kind, user_id, unique_key, wants_webhook
        )
        select
            s.id, s.fence, s.run_at, s.expires_at, s.priority, s.max_attempts, s.kind, s.user_id, s.unique_key,
            s.wants_webhook
        from states as s
        where s.unique_key is not null
        on conflict (user_id, unique_key) where unique_key is not null do nothing
        returning id, user_id, unique_key
    ),
    stored as (
        insert into listingd.jobs (
            id, user_id, kind, project_id, priority, max_attempts, run_at, expires_at, input, metadata, tags,
            webhook
        )
        select
            a.id, a.user_id, a.kind, a.project_id, a.priority, a.max_attempts, a.run_at, a.expires_at,
            a.input, a.metadata, a.tags,
            case when a.webhook is not null then a.webhook || jsonb_build_object('owner', a.user_id) end
        from asked as a
        where a.unique_key is null or a.id in (select k.id from keyed as k)
    ),
    told as (
        select pg_notify('listingd_jobs', '')
    )
    select
        case
            when a.unique_key is null then a.id
            else coalesce(
                k.id,  -- before the holder: an old snapshot shows one that has ended
                (
                    select h.id
                    from listingd.job_states as h
                    where h.user_id = a.user_id and h.unique_key = a.unique_key
                    order by h.fence desc
                    limit 1
                ),
                -- One whose commit the insert waited for: only a statement of its own sees it.
                listingd.enqueue_job(
                    a.kind, a.input, a.user_id, a.project_id, a.priority, a.run_at, a.expires_at, a.max_attempts,
                    a.metadata, a.tags, a.unique_key, a.webhook
                )
            )
        end
    from asked as a
    left join keyed as k on k.user_id = a.user_id and k.unique_key = a.unique_key
    cross join told
    order by a.n
$$;
comment on function listingd.enqueue_jobs(jsonb) is
    'Enqueues many jobs in the caller''s transaction; returns their ids in order.';
revoke all on function listingd.enqueue_jobs(jsonb) from public;
