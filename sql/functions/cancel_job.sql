-- Cancels a job and its children: pending and waiting ones at once, running ones by asking their worker.
-- No row for an id that is unknown or belongs to another user. Idempotent. Children are locked before parents.
create or replace function listingd.cancel_job(job uuid, for_user text default null)
returns table (id uuid, state text, cancel_requested boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    target uuid;
    stopping uuid[];
    parents uuid[];
begin
    select s.id into target
    from listingd.job_states as s
    where s.id = job and (for_user is null or s.user_id = for_user);
    if not found then
        return;
    end if;

    perform 1
    from listingd.job_states as s
    where s.parent_id is not null and s.id in (select j.id from listingd.jobs as j where j.parent_id = target)
    order by s.id
    for update;
    perform 1 from listingd.job_states as s where s.id = target for update;

    with family as (
        select target as id
        union all
        select j.id from listingd.jobs as j where j.parent_id = target
    ),
    ended as (
        update listingd.job_states as s
        set
            state = 'cancelled',
            version = s.version + 1,
            finished_at = now(),
            unique_key = null,
            run_at = null,
            expires_at = null,
            open_children = 0,
            error = jsonb_build_object('code', 'cancelled', 'message', 'The job was cancelled.')
        from family as f
        where s.id = f.id and s.state in ('pending', 'waiting')
        returning s.id, s.parent_id
    ),
    asked as (
        update listingd.job_states as s
        set cancel_requested = true, version = s.version + 1
        from family as f
        where s.id = f.id and s.state = 'processing' and not s.cancel_requested
        returning s.id
    )
    select
        (select array_agg(a.id) from asked as a),
        (select array_agg(e.parent_id) from ended as e where e.parent_id is not null and e.id = target)
    into stopping, parents;

    if parents is not null then
        perform listingd.settle_children(parents);
        perform pg_notify('listingd_jobs', '');
    end if;
    if stopping is not null then
        perform pg_notify('listingd_cancel', '');
    end if;
    return query
    select s.id, s.state, s.cancel_requested from listingd.job_states as s where s.id = target;
end
$$;
comment on function listingd.cancel_job(uuid, text) is
    'Cancels a job and its children; running ones are asked to stop. No row for an unknown or foreign id.';
revoke all on function listingd.cancel_job(uuid, text) from public;
