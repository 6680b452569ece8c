-- Enqueues one job in the caller's transaction and returns its id. The daemon wakes at commit. A unique_key that an
-- active job of the user holds gives that job's id. webhook: {url, events?} that hears of this job alone.
-- The owner's rights: who may execute it needs no right on the tables (grant execute on function … to an_app).
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
    unique_key text default null,
    webhook jsonb default null
)
returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    new_id uuid := listingd.new_id();
    owner text := coalesce(user_id, '');
    own_webhook jsonb := case when webhook <> 'null' then webhook || jsonb_build_object('owner', owner) end;
    wants_webhook boolean;
    holder uuid;
begin
    if expires_at <= run_at then
        perform listingd.refuse_times(run_at, expires_at);
    end if;
    wants_webhook := own_webhook is not null or exists (
        select from listingd.webhook_endpoints as e where e.disabled_at is null and e.user_id in ('', owner)
    );
    if unique_key is null then
        insert into listingd.job_states (id, run_at, expires_at, priority, max_attempts, kind, user_id, wants_webhook)
        values (
            new_id, run_at, expires_at, coalesce(priority, 0), coalesce(max_attempts, 4), kind, owner, wants_webhook
        );
    else  -- apart, because a row that may meet another costs twice as much to insert
        loop
            insert into listingd.job_states as s (
                id, run_at, expires_at, priority, max_attempts, kind, user_id, unique_key, wants_webhook
            )
            values (
                new_id, run_at, expires_at, coalesce(priority, 0), coalesce(max_attempts, 4), kind, owner, unique_key,
                wants_webhook
            )
            on conflict do nothing;
            exit when found;
            select s.id into holder
            from listingd.job_states as s
            where s.user_id = owner and s.unique_key = enqueue_job.unique_key
            order by s.fence desc  -- an old snapshot may show one that has ended beside the one of this transaction
            limit 1;
            if found then
                return holder;
            end if;  -- it ended at this moment: the key is free
        end loop;
    end if;
    insert into listingd.jobs (
        id, user_id, kind, project_id, priority, max_attempts, run_at, expires_at, input, metadata, tags, webhook
    )
    values (
        new_id, owner, kind, project_id, coalesce(priority, 0), coalesce(max_attempts, 4), run_at, expires_at,
        coalesce(input, '{}'), coalesce(metadata, '{}'), coalesce(tags, '{}'),
        own_webhook
    );
    perform pg_notify('listingd_jobs', '');
    return new_id;
end
$$;
comment on function listingd.enqueue_job(
    text, jsonb, text, uuid, int, timestamptz, timestamptz, int, jsonb, text[], text, jsonb
) is 'Enqueues one job in the caller''s transaction and returns its id. Callable from a trigger and through PostgREST.';
revoke all on function listingd.enqueue_job(
    text, jsonb, text, uuid, int, timestamptz, timestamptz, int, jsonb, text[], text, jsonb
) from public;
