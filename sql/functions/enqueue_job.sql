-- Enqueues one job in the caller's transaction and returns its id. The daemon wakes at commit.
create or replace function listingd.enqueue_job(
    kind text,
    input jsonb default '{}',
    user_id text default '',
    project_id uuid default null,
    priority int default 0,
    run_at timestamptz default null,
    expires_at timestamptz default null,
    max_attempts int default 4,
    metadata jsonb default '{}',
    tags text[] default '{}',
    unique_key text default null
)
returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    new_id uuid := listingd.new_id();
    holder uuid;
begin
    insert into listingd.job_states as s (id, run_at, expires_at, priority, max_attempts, kind, user_id, unique_key)
    values (new_id, run_at, expires_at, priority, max_attempts, kind, coalesce(user_id, ''), unique_key)
    on conflict do nothing;
    if not found then
        select s.id into holder
        from listingd.job_states as s
        where s.user_id = coalesce(enqueue_job.user_id, '') and s.unique_key = enqueue_job.unique_key;
        return holder;
    end if;
    insert into listingd.jobs (
        id, user_id, kind, project_id, priority, max_attempts, run_at, expires_at, input, metadata, tags
    )
    values (
        new_id, coalesce(user_id, ''), kind, project_id, priority, max_attempts, run_at, expires_at, input, metadata, tags
    );
    perform pg_notify('listingd_jobs', '');
    return new_id;
end
$$;
comment on function listingd.enqueue_job(
    text, jsonb, text, uuid, int, timestamptz, timestamptz, int, jsonb, text[], text
) is 'Enqueues one job in the caller''s transaction and returns its id. Callable from a trigger and through PostgREST.';
revoke all on function listingd.enqueue_job(
    text, jsonb, text, uuid, int, timestamptz, timestamptz, int, jsonb, text[], text
) from public;
