-- The old chain's name for the end of one job, by the fence that mark_job_processing gave. Its id, or null when the
-- fence is no longer held (the lease ran out, it was cancelled): then nothing was written.
create or replace function listingd.mark_job_completed(own_fence bigint, result jsonb default null)
returns uuid
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select c.id
    from listingd.mark_jobs_completed(jsonb_build_array(jsonb_build_object('fence', own_fence, 'result', result))) as c (id)
$$;
comment on function listingd.mark_job_completed(bigint, jsonb) is
    'For a migration from the old chain: completes one job by its fence. Null: no longer held.';
revoke all on function listingd.mark_job_completed(bigint, jsonb) from public;
