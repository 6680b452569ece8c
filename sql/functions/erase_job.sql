-- Erases a finished job with its children: input, result, attempts, assets, documents. A tombstone stays, and the
-- ledger keeps what it cost. No row for an id that is unknown or belongs to another user. erased = false while any
-- of them is active, or for a child (its parent is erased as a whole). Children are locked before parents.
create or replace function listingd.erase_job(job uuid, for_user text default null)
returns table (id uuid, state text, parent_id uuid, erased boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    target record;
    family uuid[];
    open_jobs int;
begin
    select s.id, s.user_id, s.state, s.parent_id into target
    from listingd.job_states as s
    where s.id = job and (for_user is null or s.user_id = for_user);
    if not found then
        return;
    end if;
    if target.parent_id is not null then
        return query select target.id, target.state, target.parent_id, false;
        return;
    end if;

    perform 1
    from listingd.job_states as s
    where s.id in (select j.id from listingd.jobs as j where j.parent_id = target.id)
    order by s.id
    for update;
    perform 1 from listingd.job_states as s where s.id = target.id for update;
    if not found then
        return;
    end if;
    family := array(
        select target.id
        union all
        select j.id from listingd.jobs as j where j.parent_id = target.id
    );
    select count(*) into open_jobs
    from listingd.job_states as s
    where s.id = any(family) and s.state in ('pending', 'processing', 'waiting');
    if open_jobs > 0 then
        return query select s.id, s.state, s.parent_id, false from listingd.job_states as s where s.id = target.id;
        return;
    end if;

    insert into listingd.tombstones (id, user_id, kind, state, jobs, created_at, finished_at)
    select j.id, j.user_id, j.kind, s.state, cardinality(family), j.created_at, s.finished_at
    from listingd.jobs as j
    join listingd.job_states as s on s.user_id = j.user_id and s.id = j.id
    where j.user_id = target.user_id and j.id = target.id
    on conflict do nothing;
    perform listingd.forget_steps(family);
    delete from listingd.attempts as a where a.job_id = any(family);
    delete from listingd.aplus_contents as c where c.job_id = any(family);
    delete from listingd.assets as a where a.job_id = any(family);
    delete from listingd.jobs as j where j.user_id = target.user_id and j.id = any(family);
    delete from listingd.job_states as s where s.id = any(family);
    return query select target.id, target.state, target.parent_id, true;
end
$$;
comment on function listingd.erase_job(uuid, text) is
    'Erases a finished job with its children and leaves a tombstone. No row for an unknown or foreign id.';
revoke all on function listingd.erase_job(uuid, text) from public;
