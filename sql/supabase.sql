-- Supabase: what browsers and edge functions may do in a database with listingd in it. docs/supabase.md explains it.
-- Run it after `listingd migrate` as the role that migrated (postgres), and again after each upgrade; twice changes
-- nothing. Needs Supabase's roles (anon, authenticated, service_role) and auth.uid().
--
--   authenticated   reads own jobs, states, pictures, A+ documents and projects; enqueues, cancels, retries as itself
--   anon            nothing
--   service_role    everything, and the old chain's names
set lock_timeout = '5s';
set client_min_messages = warning;

do $$
begin
    if to_regrole('authenticated') is null or to_regprocedure('auth.uid()') is null then
        raise exception 'This database has no Supabase roles or no auth.uid().'
            using hint = 'Only Supabase needs this script.';
    end if;
    if to_regclass('listingd.jobs') is null then
        raise exception 'listingd is not installed in this database.' using hint = 'Run `listingd migrate` first.';
    end if;
end
$$;

-- The board: one row a user's job with its state, for Realtime. job_states itself would tell every browser of every
-- percent of progress, and Postgres would write all of it to the replication slot. Here a row changes when the state
-- does. The replica identity is the primary key (the default): it suffices for Realtime's check of row level security,
-- and `full` would write each old row to the WAL as well. A deleted row therefore shows its id alone.
create table if not exists listingd.job_board (
    id uuid primary key,
    user_id text not null,
    kind text not null,
    project_id uuid,
    parent_id uuid,
    state text not null,
    changed_at timestamptz not null default now()
) with (fillfactor = 50);
comment on table listingd.job_board is 'For Supabase Realtime: the state of each user''s job, and nothing that changes more often.';

create or replace function listingd.post_job_state()
returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'DELETE' then
        delete from listingd.job_board as b where b.id = old.id;
    elsif tg_op = 'UPDATE' then
        update listingd.job_board as b set state = new.state, changed_at = now() where b.id = new.id;
    else
        insert into listingd.job_board (id, user_id, kind, project_id, parent_id, state)
        select new.id, new.user_id, new.kind, new.project_id, new.parent_id, s.state
        from listingd.job_states as s
        where s.id = new.id
        on conflict (id) do nothing;
    end if;
    return null;
end
$$;
comment on function listingd.post_job_state() is 'Keeps listingd.job_board; installed by sql/supabase.sql alone.';
revoke all on function listingd.post_job_state() from public, anon, authenticated;

create or replace trigger jobs_board_insert after insert on listingd.jobs
for each row when (new.user_id <> '' and new.kind <> 'webhook') execute function listingd.post_job_state();
create or replace trigger jobs_board_delete after delete on listingd.jobs
for each row when (old.user_id <> '' and old.kind <> 'webhook') execute function listingd.post_job_state();
create or replace trigger job_states_board_update after update on listingd.job_states
for each row when (new.state is distinct from old.state and new.user_id <> '' and new.kind <> 'webhook')
execute function listingd.post_job_state();

insert into listingd.job_board (id, user_id, kind, project_id, parent_id, state, changed_at)
select j.id, j.user_id, j.kind, j.project_id, j.parent_id, s.state, coalesce(s.finished_at, s.started_at, j.created_at)
from listingd.job_states as s
join listingd.jobs as j on j.user_id = s.user_id and j.id = s.id
where j.user_id <> '' and j.kind <> 'webhook'
on conflict (id) do nothing;

select listingd.grant_roles();

-- Row level security: policies say whose rows, grants say which tables. Supabase grants much by default.
revoke all on all tables in schema listingd from anon, authenticated;
revoke all on all functions in schema listingd from anon, authenticated;
grant usage on schema listingd to authenticated, service_role;
grant select on
    listingd.jobs, listingd.job_states, listingd.job_board, listingd.projects, listingd.assets,
    listingd.generated_images, listingd.aplus_contents
to authenticated;
grant select, insert, update, delete on all tables in schema listingd to service_role;
grant usage, select on all sequences in schema listingd to service_role;
grant execute on all functions in schema listingd to service_role;

do $$
declare
    named text;
begin
    foreach named in array '{jobs,job_states,job_board,projects,assets,aplus_contents}'::text[] loop
        execute format('drop policy if exists listingd_own on listingd.%I', named);
        execute format(
            'create policy listingd_own on listingd.%I for select to authenticated using (user_id = (select auth.uid()::text))',
            named
        );
    end loop;
end
$$;

-- The old chain's table, as a view with its column names. security_invoker: the reader's own rights and policies count.
create or replace view public.listing_jobs with (security_invoker = true) as
select
    j.id,
    j.user_id,
    j.project_id,
    j.kind as job_type,
    case when s.state = 'waiting' then 'processing' else s.state end as status,
    case
        when s.state = 'completed' then 100
        when (s.progress ->> 'total')::numeric > 0
            then least(99, floor(100 * (s.progress ->> 'done')::numeric / (s.progress ->> 'total')::numeric))::int
        else 0
    end as progress,
    j.input as payload,
    s.result,
    s.error ->> 'message' as error_message,
    s.error ->> 'code' as error_code,
    s.attempt as attempts,
    j.max_attempts,
    j.priority,
    j.parent_id,
    j.slot,
    j.metadata,
    j.created_at,
    s.started_at,
    s.finished_at as completed_at,
    coalesce(s.finished_at, s.started_at, j.created_at) as updated_at
from listingd.jobs as j
join listingd.job_states as s on s.user_id = j.user_id and s.id = j.id
where j.kind <> 'webhook';
comment on view public.listing_jobs is 'Jobs under the names of the old table; read only.';

create or replace view public.listing_images with (security_invoker = true) as
select i.id, i.project_id, i.user_id, i.job_id, i.slot, i.content_type, i.width_px, i.height_px, i.checks, i.created_at
from listingd.generated_images as i;
comment on view public.listing_images is 'The pictures that jobs made; the file is at /v1/assets/<id> of the daemon.';

create or replace view public.listing_aplus_contents with (security_invoker = true) as
select c.id, c.job_id, c.project_id, c.user_id, c.locale, c.document, c.created_at
from listingd.aplus_contents as c;
comment on view public.listing_aplus_contents is 'The A+ documents that jobs made.';

revoke all on public.listing_jobs, public.listing_images, public.listing_aplus_contents
from public, anon, authenticated, service_role;
grant select on public.listing_jobs, public.listing_images, public.listing_aplus_contents to authenticated, service_role;

-- What a signed-in user may do: as themselves, in bounds.
create or replace function public.enqueue_listing_job(
    kind text,
    input jsonb,
    project_id uuid default null,
    priority int default 0,
    run_at timestamptz default null,
    expires_at timestamptz default null,
    metadata jsonb default '{}',
    tags text[] default '{}',
    unique_key text default null
)
returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    me text := auth.uid()::text;
begin
    if me is null then
        raise exception 'Only a signed-in user may enqueue.' using errcode = 'insufficient_privilege';
    end if;
    if kind is null or kind not in ('image', 'pack', 'aplus') then
        raise exception 'There is no such kind of job.' using errcode = 'invalid_parameter_value', hint = 'image, pack or aplus';
    end if;
    if
        coalesce(octet_length(input::text), 0) > 1048576 or coalesce(octet_length(metadata::text), 0) > 16384
        or coalesce(cardinality(tags), 0) > 20
    then
        raise exception 'The job is too large.'
            using errcode = 'program_limit_exceeded', hint = 'input 1 MiB, metadata 16 KiB, 20 tags';
    end if;
    if exists (select from listingd.projects as p where p.id = enqueue_listing_job.project_id and p.user_id <> me) then
        raise exception 'There is no such project.' using errcode = 'invalid_parameter_value';  -- its budget is another's
    end if;
    if (
        select count(*)
        from (select b.state from listingd.jobs as j join listingd.job_board as b on b.id = j.id
              where j.user_id = me order by j.id desc limit 2000) as n
        where n.state in ('pending', 'processing', 'waiting')
    ) >= 1000 then
        raise exception 'You have 1000 jobs on their way.' using errcode = 'program_limit_exceeded', hint = 'Wait for some to end.';
    end if;
    return listingd.enqueue_job(
        kind => kind, input => input, user_id => me, project_id => project_id, priority => priority, run_at => run_at,
        expires_at => expires_at, metadata => metadata, tags => tags, unique_key => unique_key
    );
end
$$;
comment on function public.enqueue_listing_job(text, jsonb, uuid, int, timestamptz, timestamptz, jsonb, text[], text) is
    'Enqueues a job of the signed-in user and returns its id.';

create or replace function public.cancel_listing_job(job_id uuid)
returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    select c.state from listingd.cancel_job(job_id, coalesce(auth.uid()::text, '-')) as c
$$;
comment on function public.cancel_listing_job(uuid) is
    'Cancels a job of the signed-in user; its state after it. Null for an unknown or foreign id.';

create or replace function public.retry_listing_job(job_id uuid)
returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    select r.state from listingd.retry_job(job_id, coalesce(auth.uid()::text, '-')) as r
$$;
comment on function public.retry_listing_job(uuid) is
    'Makes a failed or cancelled job of the signed-in user pending again; its state after it. Null for a foreign id.';

-- The old chain's calls, for the edge functions that still work the queue during the move. Fenced (docs/supabase.md).
create or replace function public.get_next_job()
returns table (id uuid, fence bigint, job_type text, user_id text, project_id uuid, attempts smallint, payload jsonb)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select n.id, n.fence, n.kind, n.user_id, n.project_id, n.attempt, n.input from listingd.get_next_job() as n
$$;
comment on function public.get_next_job() is 'A job that could run now; claim it with mark_job_processing.';

create or replace function public.mark_job_processing(job_id uuid, own_fence bigint default null)
returns table (id uuid, fence bigint, job_type text, user_id text, attempts smallint, payload jsonb)
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select p.id, p.fence, p.kind, p.user_id, p.attempt, p.input
    from listingd.mark_job_processing(job_id, own_fence) as p
$$;
comment on function public.mark_job_processing(uuid, bigint) is
    'Claims one job for 180 s; no row when another was faster. Name its fence in what follows.';

create or replace function public.mark_job_completed(own_fence bigint, result jsonb default null)
returns uuid
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select listingd.mark_job_completed(own_fence, result)
$$;
comment on function public.mark_job_completed(bigint, jsonb) is
    'Completes a job by its fence. Null: it is no longer yours, nothing was written.';

create or replace function public.mark_job_failed(own_fence bigint, error_message text, retry boolean default true)
returns text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select listingd.mark_job_failed(own_fence, 'worker_failed', error_message, retry)
$$;
comment on function public.mark_job_failed(bigint, text, boolean) is
    'Ends an attempt by its fence; the state after it. Null: it is no longer yours, nothing was written.';

do $$
declare
    made record;
begin
    for made in
        select p.oid::regprocedure as signature, p.proname in (
            'enqueue_listing_job', 'cancel_listing_job', 'retry_listing_job'
        ) as is_for_users
        from pg_proc as p
        where p.pronamespace = 'public'::regnamespace and p.proname in (
            'enqueue_listing_job', 'cancel_listing_job', 'retry_listing_job',
            'get_next_job', 'mark_job_processing', 'mark_job_completed', 'mark_job_failed'
        )
    loop
        -- Supabase lets everybody execute what is new in public: take it back, then give it to whom it is for.
        execute format('revoke all on function %s from public, anon, authenticated, service_role', made.signature);
        execute format(
            'grant execute on function %s to %s', made.signature,
            case when made.is_for_users then 'authenticated' else 'service_role' end
        );
    end loop;

    if not exists (select from pg_publication as p where p.pubname = 'supabase_realtime') then
        create publication supabase_realtime;
    end if;
    if not exists (
        select from pg_publication_tables as t
        where t.pubname = 'supabase_realtime' and t.schemaname = 'listingd' and t.tablename = 'job_board'
    ) then
        alter publication supabase_realtime add table listingd.job_board;
    end if;
end
$$;

reset client_min_messages;
reset lock_timeout;
