-- 0005 steering (expand): limits of a kind over all daemons, and schedules.
set local lock_timeout = '5s';

create table listingd.kind_places (
    fence bigint not null,
    worker bigint not null,
    kind text not null,
    primary key (fence, worker)
);
create index kind_places_kind on listingd.kind_places (kind);
comment on table listingd.kind_places is
    'One row for each running job of a kind with a limit, and for each that a worker is about to claim. It counts while the job of that fence is running, or is pending and the worker lives; no row needs to be removed for a place to be free.';

create table listingd.schedules (
    name text primary key,
    kind text not null,
    input jsonb not null,
    user_id text not null default '',
    project_id uuid,
    priority smallint not null default 0,
    max_attempts smallint not null default 4,
    cron text not null,
    time_zone text not null default 'UTC',
    missed text not null default 'once',
    overlap text not null default 'allow',
    is_enabled boolean not null default true,
    next_at timestamptz,
    last_at timestamptz,
    last_job_id uuid,
    created_at timestamptz not null default now(),
    constraint schedules_name_check check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    constraint schedules_kind_check check (kind ~ '^[a-z][a-z0-9_]{0,39}$'),
    constraint schedules_priority_check check (priority between -100 and 100),
    constraint schedules_max_attempts_check check (max_attempts between 1 and 10),
    constraint schedules_missed_check check (missed in ('skip', 'once', 'all')),
    constraint schedules_overlap_check check (overlap in ('allow', 'skip'))
) with (fillfactor = 70);
comment on table listingd.schedules is
    'Jobs that are enqueued by the clock. missed: what becomes of times at which no daemon ran; overlap: whether one is enqueued while the last is open; next_at null: never again.';
create index schedules_next on listingd.schedules (next_at) where is_enabled;
