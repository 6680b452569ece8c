-- Makes a failed or cancelled job pending again with fresh attempts. What is finished stays finished: a parent
-- runs again only those of its children that failed or were cancelled. retried = false: not in such a state.
create or replace function listingd.retry_job(job uuid, for_user text default null)
returns table (id uuid, state text, retried boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    target record;
    still_open int;
    is_any_ready boolean;
    has_children boolean;
begin
    select s.id, s.state, s.parent_id into target
    from listingd.job_states as s
    where s.id = job and (for_user is null or s.user_id = for_user);
    if not found then
        return;
    end if;

    perform 1
    from listingd.job_states as s
    where s.id in (select j.id from listingd.jobs as j where j.parent_id = target.id)
    order by s.id
    for update;
    has_children := found;
    select s.id, s.state, s.parent_id into target
    from listingd.job_states as s
    where s.id = job
    for update;
    if target.state not in ('failed', 'cancelled') then
        return query select target.id, target.state, false;
        return;
    end if;

    update listingd.job_states as s
    set
        state = 'pending', fence = nextval('listingd.fences'), version = s.version + 1, attempt = 0, rescues = 0,
        cancel_requested = false, run_at = null, expires_at = null, started_at = null, finished_at = null, error = null,
        progress = null
    where
        s.id in (select j.id from listingd.jobs as j where j.parent_id = target.id)
        and s.state in ('failed', 'cancelled');
    is_any_ready := found;
    -- Children that run already (retried by themselves, or still stopping after a cancel) are waited for too.
    select count(*) into still_open
    from listingd.job_states as s
    where
        s.id in (select j.id from listingd.jobs as j where j.parent_id = target.id)
        and s.state in ('pending', 'processing', 'waiting');

    update listingd.job_states as s
    set
        state = case when still_open > 0 then 'waiting' else 'pending' end,
        open_children = still_open,
        fence = nextval('listingd.fences'), version = s.version + 1, attempt = 0, rescues = 0,
        cancel_requested = false, run_at = null, expires_at = null, started_at = null, finished_at = null, error = null,
        result = null,
        -- What its children did before is no part of the new run.
        began_at = case when still_open > 0 then now() when has_children then 'infinity' end
    where s.id = target.id;
    update listingd.job_states as s
    set open_children = s.open_children + 1, version = s.version + 1
    where s.id = target.parent_id and s.state = 'waiting';
    if is_any_ready or still_open = 0 then  -- else it waits for children that run already
        perform pg_notify('listingd_jobs', '');
    end if;
    return query select s.id, s.state, true from listingd.job_states as s where s.id = target.id;
end
$$;
comment on function listingd.retry_job(uuid, text) is
    'A failed or cancelled job becomes pending again; finished steps and children are kept.';
revoke all on function listingd.retry_job(uuid, text) from public;
