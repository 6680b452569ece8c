-- 0001 queue (expand): the job queue and what belongs to a job.
--
-- Cold and hot apart: `jobs` holds what was asked and is never updated; `job_states` is the narrow row
-- that moves. No index mentions a column that a claim or a finish changes, so both are HOT updates
-- (docs/decisions/0001-queue-shape.md has the measurements). The order of work comes from `fence`:
-- a number drawn from one sequence each time a job becomes ready. It orders the queue (the scheduler walks
-- its index upwards from a mark), and it fences the attempt: a worker names the fence it claimed in every
-- write, and a job that was rescued, retried or requeued has drawn a higher one.
set local lock_timeout = '5s';

create schema if not exists listingd;

create sequence listingd.fences as bigint cache 1;

create table listingd.jobs (
    id uuid primary key,
    user_id text not null default '',
    kind text not null,
    project_id uuid,
    parent_id uuid,
    slot text,
    priority smallint not null default 0,
    max_attempts smallint not null default 4,
    created_at timestamptz not null default now(),
    run_at timestamptz,
    expires_at timestamptz,
    input jsonb not null,
    metadata jsonb not null default '{}',
    tags text[] not null default '{}',
    webhook jsonb,
    constraint jobs_priority_check check (priority between -100 and 100),
    constraint jobs_max_attempts_check check (max_attempts between 1 and 10),
    constraint jobs_kind_check check (kind ~ '^[a-z][a-z0-9_]{0,39}$')
);
comment on table listingd.jobs is 'What was asked. Written once, never updated.';
create index jobs_user_created on listingd.jobs (user_id, created_at, id);
create index jobs_parent on listingd.jobs (parent_id) where parent_id is not null;
create index jobs_project on listingd.jobs (project_id, created_at) where project_id is not null;
create index jobs_tags on listingd.jobs using gin (tags) where tags <> '{}';

create table listingd.job_states (
    -- what the scheduler reads and nothing changes while the job moves
    id uuid primary key,
    fence bigint not null default nextval('listingd.fences'),
    run_at timestamptz,
    expires_at timestamptz,
    parent_id uuid,
    priority smallint not null default 0,
    max_attempts smallint not null default 4,
    kind text not null,
    user_id text not null default '',
    unique_key text,
    -- what moves
    state text not null default 'pending',
    version int not null default 1,
    attempt smallint not null default 0,
    rescues smallint not null default 0,
    open_children smallint not null default 0,
    cancel_requested boolean not null default false,
    worker bigint,
    started_at timestamptz,
    finished_at timestamptz,
    progress jsonb,
    result jsonb,
    error jsonb,
    constraint job_states_state_check
        check (state in ('pending', 'processing', 'waiting', 'completed', 'failed', 'cancelled'))
) with (
    fillfactor = 30,  -- room for the claim's and the finish's new versions on the same page: all updates are HOT
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 1
);
comment on table listingd.job_states is 'Where each job stands. One row a job, updated in place (HOT).';
create unique index job_states_fence on listingd.job_states (fence);
create index job_states_run_at on listingd.job_states (run_at) where run_at is not null;
create index job_states_expires_at on listingd.job_states (expires_at) where expires_at is not null;
create unique index job_states_unique_key on listingd.job_states (user_id, unique_key)
    where unique_key is not null;

create table listingd.queue_mark (
    is_only boolean primary key default true check (is_only),
    fence bigint not null default 0
) with (fillfactor = 10);
comment on table listingd.queue_mark is
    'No job below this fence is ready to run, save those with a run_at. Only rises; where a scan after a restart begins.';
insert into listingd.queue_mark default values;

create table listingd.workers (
    id bigint generated always as identity primary key,
    instance text not null,
    lease_until timestamptz not null,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    stopped_at timestamptz,
    low_fence bigint not null default 9223372036854775807,
    kinds text[],
    concurrency int not null default 0,
    running int not null default 0,
    draining boolean not null default false,
    info jsonb not null default '{}'
) with (fillfactor = 20);
comment on table listingd.workers is
    'One row a run of a process, with its lease. low_fence: no job in its hands has a lower fence.';
create index workers_alive on listingd.workers (instance) where stopped_at is null;

create table listingd.attempts (
    job_id uuid not null,
    attempt smallint not null,
    fence bigint not null,
    worker bigint,
    started_at timestamptz,
    ended_at timestamptz not null default now(),
    code text not null,
    error jsonb not null,
    primary key (job_id, fence)
);
comment on table listingd.attempts is 'How each attempt that did not complete ended.';

create table listingd.idempotency_keys (
    principal text not null,
    key text not null,
    fingerprint text not null,
    job_id uuid,
    response jsonb,
    created_at timestamptz not null default now(),
    primary key (principal, key)
);
comment on table listingd.idempotency_keys is
    'Idempotency-Key of a POST, written in the transaction of what it made; kept for 24 h.';
create index idempotency_keys_created on listingd.idempotency_keys (created_at);

create table listingd.projects (
    id uuid primary key,
    user_id text not null default '',
    name text,
    created_at timestamptz not null default now()
);
create index projects_user on listingd.projects (user_id, created_at);
comment on table listingd.projects is 'A product a seller works on; jobs, pictures and A+ contents gather under it.';

create table listingd.uploads (
    id uuid primary key,
    user_id text not null default '',
    sha256 text not null,
    content_type text not null,
    size_bytes bigint not null,
    width_px int not null,
    height_px int not null,
    created_at timestamptz not null default now()
);
create index uploads_user on listingd.uploads (user_id, created_at);
comment on table listingd.uploads is 'Photos that sellers sent; the bytes are in storage under their hash.';

create table listingd.assets (
    id uuid primary key,
    job_id uuid not null,
    user_id text not null default '',
    project_id uuid,
    slot text,
    role text not null,
    content_type text not null,
    size_bytes bigint not null,
    width_px int,
    height_px int,
    sha256 text not null,
    file_name text,
    checks jsonb not null default '[]',
    generated boolean not null default false,
    provider text not null default '',
    version int not null,
    created_at timestamptz not null default now()
);
create index assets_job on listingd.assets (job_id, version);
create index assets_project on listingd.assets (project_id, created_at) where project_id is not null;
create index assets_sha256 on listingd.assets (sha256);
comment on table listingd.assets is
    'Files that jobs made. version: the job''s version at which the file appeared, so that events can be resumed.';

create view listingd.generated_images with (security_invoker = true) as
select
    a.id,
    a.project_id,
    a.user_id,
    a.job_id,
    a.slot,
    a.sha256,
    a.content_type,
    a.width_px,
    a.height_px,
    a.checks,
    a.generated,
    a.provider,
    a.created_at
from listingd.assets as a
where a.role = 'image';
comment on view listingd.generated_images is 'The listing images of all projects, one row a picture.';

create table listingd.aplus_contents (
    id uuid primary key,
    job_id uuid not null unique,
    project_id uuid,
    user_id text not null default '',
    locale text not null,
    document jsonb not null,
    created_at timestamptz not null default now()
);
create index aplus_contents_project on listingd.aplus_contents (project_id, created_at)
    where project_id is not null;
comment on table listingd.aplus_contents is 'A+ documents that jobs made, as Amazon takes them.';

create table listingd.service_keys (
    id text primary key,
    secret_sha256 bytea not null,
    name text not null default '',
    scopes text[] not null default '{enqueue,read}',
    created_at timestamptz not null default now(),
    last_used_at timestamptz,
    expires_at timestamptz,
    revoked_at timestamptz,
    constraint service_keys_scopes_check check (scopes <@ '{enqueue,read,admin}'::text[])
);
comment on table listingd.service_keys is 'Service keys ld_live_<id>_<secret>; only the hash of the secret is kept.';

create table listingd.queues (
    kind text primary key,
    paused_at timestamptz,
    paused_why text,
    concurrency int,
    constraint queues_concurrency_check check (concurrency is null or concurrency between 0 and 10000)
);
comment on table listingd.queues is 'Per kind: paused or not, and how many may run at once in all daemons together.';

create table listingd.user_shares (
    user_id text primary key,
    weight real not null default 1,
    paused_at timestamptz,
    paused_why text,
    constraint user_shares_weight_check check (weight > 0 and weight <= 1000)
);
comment on table listingd.user_shares is 'A user''s weight in the turns (default 1), and whether their jobs are held.';
