-- The old chain's name for a claim. No row: another worker was faster, or it is not due. fence is what every later
-- write of this attempt must name (mark_job_completed, mark_job_failed): once the lease has run out the job is taken
-- back, draws a higher fence, and the late worker writes nothing. The old calls by the job's id alone could not tell
-- a late worker from its successor, so there are none.
-- lease_s: how long the worker has; each claim has a lease of its own, so that a dead one is noticed by itself. It ends
-- with the claim: for each that runs out, rescue walks over all jobs that became ready since.
create or replace function listingd.mark_job_processing(
    job_id uuid, own_fence bigint default null, lease_s float8 default 180
)
returns table (id uuid, fence bigint, kind text, user_id text, attempt smallint, max_attempts smallint, input jsonb)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    asked bigint;
begin
    select s.fence into asked
    from listingd.job_states as s
    where s.id = job_id and s.state = 'pending' and (own_fence is null or s.fence = own_fence);
    if asked is not null then
        return query
        select c.id, c.fence, c.kind, c.user_id, c.attempt, c.max_attempts, c.input
        from listingd.mark_jobs_processing('job ' || asked, array[asked], lease_s) as c;
    end if;
end
$$;
comment on function listingd.mark_job_processing(uuid, bigint, float8) is
    'For a migration from the old chain: claims one job; the fence in the row must be named by every later write.';
revoke all on function listingd.mark_job_processing(uuid, bigint, float8) from public;
