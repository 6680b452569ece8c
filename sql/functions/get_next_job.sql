-- The old chain's name for a look at one job that could run now: get_next_jobs with a limit of one. No row when there
-- is none. Nothing is locked: claim it with mark_job_processing.
create or replace function listingd.get_next_job(kinds text[] default '{image,pack,aplus}')
returns table (
    id uuid, fence bigint, kind text, user_id text, project_id uuid, priority smallint, attempt smallint,
    max_attempts smallint, input jsonb
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select n.id, n.fence, n.kind, n.user_id, n.project_id, n.priority, n.attempt, n.max_attempts, n.input
    from listingd.get_next_jobs(kinds, 1) as n
$$;
comment on function listingd.get_next_job(text[]) is
    'For a migration from the old chain: one job that could run now; claim it with mark_job_processing.';
revoke all on function listingd.get_next_job(text[]) from public;
