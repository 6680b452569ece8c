-- Completes jobs by their fences: [{fence, result?}]. Returns the ids completed; a fence that is no longer held
-- (rescued, cancelled, retried) completes nothing.
create or replace function listingd.mark_jobs_completed(done jsonb)
returns setof uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    ids uuid[];
    parents uuid[];
begin
    with moved as (
        update listingd.job_states as s
        set
            state = 'completed', version = s.version + 1, worker = null, finished_at = now(), progress = null,
            result = d.result, error = null, unique_key = null, cancel_requested = false
        from jsonb_to_recordset(done) as d (fence bigint, result jsonb)
        where s.fence = d.fence and s.state = 'processing'
        returning s.id, s.parent_id
    )
    select array_agg(m.id), array_agg(m.parent_id) filter (where m.parent_id is not null)
    into ids, parents
    from moved as m;
    update listingd.workers as w  -- a claim's own lease (mark_job_processing) ends with it
    set stopped_at = now(), lease_until = now()
    from jsonb_to_recordset(done) as d (fence bigint)
    where w.instance = 'sql:job ' || d.fence and w.stopped_at is null;
    if parents is not null then
        perform listingd.settle_children(parents);
        perform pg_notify('listingd_jobs', '');
    end if;
    return query select unnest(ids);
end
$$;
comment on function listingd.mark_jobs_completed(jsonb) is
    'Completes jobs by their fences, with results; returns the ids completed.';
revoke all on function listingd.mark_jobs_completed(jsonb) from public;
