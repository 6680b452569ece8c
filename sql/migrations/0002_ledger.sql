-- 0002 ledger (expand): paid steps, what was spent and may be spent, and the providers' lanes.
--
-- A step is one costly call with its result, found again by its identity: a hash of everything that decides
-- the answer. The partial unique index is what keeps a result from being paid twice: one open or done step
-- for each identity of a user, whatever races.
-- Locks are taken in this order everywhere: job_states, steps, spend by its key. No deadlock is possible.
set local lock_timeout = '5s';

create table listingd.steps (
    id uuid primary key,
    user_id text not null default '',
    identity text,
    job_id uuid not null,
    project_id uuid,
    kind text not null,
    name text not null,
    provider text not null,
    model text not null default '',
    state text not null default 'open',
    worker bigint not null,
    fence bigint not null,
    tries smallint not null default 1,
    estimated_usd numeric(14, 6) not null default 0,
    actual_usd numeric(14, 6),
    reserved_on date not null,
    units jsonb not null default '{}',
    content_sha256 text,
    content_type text,
    document jsonb,
    request_id text,
    code text,
    created_at timestamptz not null default now(),
    ended_at timestamptz,
    constraint steps_state_check check (state in ('open', 'done', 'failed', 'unknown')),
    constraint steps_money_check check (estimated_usd >= 0 and actual_usd >= 0)
) with (fillfactor = 80);
comment on table listingd.steps is
    'One costly call each, with its result. unknown: the call may have been billed and its answer is lost. identity null: the result is erased, the cost stays.';
create unique index steps_identity on listingd.steps (user_id, identity) where state in ('open', 'done');
create index steps_job on listingd.steps (job_id);
create index steps_created on listingd.steps (created_at);
create index steps_content on listingd.steps (content_sha256) where content_sha256 is not null;

create table listingd.spend (
    starts date not null,
    scope text not null,
    subject text not null,
    period text not null,
    reserved_usd numeric(16, 6) not null default 0,
    spent_usd numeric(16, 6) not null default 0,
    primary key (starts, scope, subject, period),
    constraint spend_scope_check check (scope in ('total', 'user', 'project')),
    constraint spend_period_check check (period in ('day', 'month'))
) with (fillfactor = 50);
comment on table listingd.spend is
    'Money of each UTC day and month: reserved by calls in flight, and spent. A call counts where it was reserved.';

create table listingd.budgets (
    scope text not null,
    subject text not null default '',
    period text not null,
    limit_usd numeric(14, 6),
    updated_at timestamptz not null default now(),
    primary key (scope, subject, period),
    constraint budgets_scope_check check (scope in ('total', 'user', 'project')),
    constraint budgets_period_check check (period in ('day', 'month')),
    constraint budgets_limit_check check (limit_usd >= 0)
);
comment on table listingd.budgets is
    'Limits that differ from the settings'' defaults, for one user, project or all (subject empty). limit_usd null: no limit.';

create table listingd.lanes (
    name text primary key,
    provider text not null,
    max_in_flight int not null,
    allowed real not null,
    tokens float8 not null,
    refilled_at timestamptz not null default now(),
    started_at timestamptz,
    warm_at timestamptz,
    lowered_at timestamptz,
    not_before timestamptz,
    paused_at timestamptz,
    paused_until timestamptz,
    pauses int not null default 0,
    pause_code text,
    pause_why text,
    probe_worker bigint,
    probe_until timestamptz
) with (fillfactor = 10);
comment on table listingd.lanes is
    'One provider with one key: how many calls may be in flight and per minute, over all daemons; paused or not.';

create table listingd.lane_turns (
    lane text not null,
    worker bigint not null,
    in_flight int not null,
    primary key (lane, worker)
) with (fillfactor = 10);
comment on table listingd.lane_turns is 'Calls in flight of each process; they count while its lease stands.';

create index uploads_sha256 on listingd.uploads (sha256);
