-- A running parent spawns its children and waits. Children that exist already (by slot) are not made again;
-- when all have ended the parent is ready at once. The attempt is given back: waiting is no attempt.
-- First row: ok says whether the attempt still was ours. Further rows: what is ready now.
create or replace function listingd.fan_out(own_fence bigint, own_worker bigint, children jsonb)
returns table (ok boolean, fence bigint, kind text, user_id text, priority smallint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    parent record;
    still_open int;
begin
    select s.id, s.user_id, s.priority, s.max_attempts, s.expires_at, s.wants_webhook, j.project_id
    into parent
    from listingd.job_states as s
    join listingd.jobs as j on j.user_id = s.user_id and j.id = s.id
    where s.fence = own_fence and s.worker = own_worker and s.state = 'processing' and not s.cancel_requested
    for update of s;
    if not found then
        return query select false, null::bigint, null::text, null::text, null::smallint;
        return;
    end if;
    return query select true, null::bigint, null::text, null::text, null::smallint;

    return query
    with asked as (
        select c.*
        from jsonb_to_recordset(children) as c (id uuid, kind text, slot text, input jsonb)
        where not exists (
            select from listingd.jobs as j where j.parent_id = parent.id and j.slot = c.slot
        )
    ),
    stored as (
        insert into listingd.jobs (id, user_id, kind, project_id, parent_id, slot, priority, max_attempts, input)
        select a.id, parent.user_id, a.kind, parent.project_id, parent.id, a.slot, parent.priority, parent.max_attempts, a.input
        from asked as a
    )
    insert into listingd.job_states as s (id, parent_id, priority, max_attempts, kind, user_id, wants_webhook)
    select a.id, parent.id, parent.priority, parent.max_attempts, a.kind, parent.user_id, parent.wants_webhook
    from asked as a
    returning true, s.fence, s.kind, s.user_id, s.priority;

    select count(*)
    into still_open
    from listingd.jobs as j
    join listingd.job_states as s on s.id = j.id
    where j.parent_id = parent.id and s.state in ('pending', 'processing', 'waiting');

    return query
    update listingd.job_states as s
    set
        state = case when still_open = 0 then 'pending' else 'waiting' end,
        open_children = still_open,
        attempt = s.attempt - 1,
        worker = null,
        version = s.version + 1,
        fence = case when still_open = 0 then nextval('listingd.fences') else s.fence end
    where s.id = parent.id
    returning s.state = 'pending', s.fence, s.kind, s.user_id, s.priority;
end
$$;
comment on function listingd.fan_out(bigint, bigint, jsonb) is
    'A running parent spawns its children and waits until all of them have ended.';
revoke all on function listingd.fan_out(bigint, bigint, jsonb) from public;
