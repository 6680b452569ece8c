-- What the migrations have made so far, for readers. Written by `make schema`; never applied to a database.

create sequence listingd.fences as bigint;

create table listingd.aplus_contents (
    id uuid not null,
    job_id uuid not null,
    project_id uuid,
    user_id text default ''::text not null,
    locale text not null,
    document jsonb not null,
    created_at timestamp with time zone default now() not null,
    constraint aplus_contents_pkey PRIMARY KEY (id),
    constraint aplus_contents_job_id_key UNIQUE (job_id)
);
comment on table listingd.aplus_contents is 'A+ documents that jobs made, as Amazon takes them.';
CREATE INDEX aplus_contents_project ON listingd.aplus_contents USING btree (project_id, created_at) WHERE (project_id IS NOT NULL);
alter table listingd.aplus_contents enable row level security;
create policy listingd_daemon on listingd.aplus_contents to listingd_daemon using (true);
create policy listingd_reader on listingd.aplus_contents for select to listingd_reader using ((user_id IN ( SELECT current_setting('listingd.user_id'::text, true) AS current_setting)));

create table listingd.assets (
    id uuid not null,
    job_id uuid not null,
    user_id text default ''::text not null,
    project_id uuid,
    slot text,
    role text not null,
    content_type text not null,
    size_bytes bigint not null,
    width_px integer,
    height_px integer,
    sha256 text not null,
    file_name text,
    checks jsonb default '[]'::jsonb not null,
    generated boolean default false not null,
    provider text default ''::text not null,
    version integer not null,
    created_at timestamp with time zone default now() not null,
    derived text default ''::text not null,
    constraint assets_pkey PRIMARY KEY (id)
);
comment on table listingd.assets is 'Files that jobs made. version: the job''s version at which the file appeared, so that events can be resumed.';
comment on column listingd.assets.derived is 'How the picture was made, in words, for the job''s record.';
CREATE INDEX assets_job ON listingd.assets USING btree (job_id, version);
CREATE INDEX assets_project ON listingd.assets USING btree (project_id, created_at) WHERE (project_id IS NOT NULL);
CREATE INDEX assets_sha256 ON listingd.assets USING btree (sha256);
alter table listingd.assets enable row level security;
create policy listingd_daemon on listingd.assets to listingd_daemon using (true);
create policy listingd_reader on listingd.assets for select to listingd_reader using ((user_id IN ( SELECT current_setting('listingd.user_id'::text, true) AS current_setting)));

create table listingd.attempts (
    job_id uuid not null,
    attempt smallint not null,
    fence bigint not null,
    worker bigint,
    started_at timestamp with time zone,
    ended_at timestamp with time zone default now() not null,
    code text not null,
    error jsonb not null,
    constraint attempts_pkey PRIMARY KEY (job_id, fence)
);
comment on table listingd.attempts is 'How each attempt that did not complete ended.';
alter table listingd.attempts enable row level security;
create policy listingd_daemon on listingd.attempts to listingd_daemon using (true);
create policy listingd_reader on listingd.attempts for select to listingd_reader using ((EXISTS ( SELECT FROM listingd.job_states s WHERE (s.id = attempts.job_id))));

create table listingd.budgets (
    scope text not null,
    subject text default ''::text not null,
    period text not null,
    limit_usd numeric(14,6),
    updated_at timestamp with time zone default now() not null,
    constraint budgets_limit_check CHECK ((limit_usd >= (0)::numeric)),
    constraint budgets_period_check CHECK ((period = ANY (ARRAY['day'::text, 'month'::text]))),
    constraint budgets_scope_check CHECK ((scope = ANY (ARRAY['total'::text, 'user'::text, 'project'::text]))),
    constraint budgets_pkey PRIMARY KEY (scope, subject, period)
);
comment on table listingd.budgets is 'Limits that differ from the settings'' defaults, for one user, project or all (subject empty). limit_usd null: no limit.';
alter table listingd.budgets enable row level security;
create policy listingd_daemon on listingd.budgets to listingd_daemon using (true);

create table listingd.idempotency_keys (
    principal text not null,
    key text not null,
    fingerprint text not null,
    job_id uuid,
    response jsonb,
    created_at timestamp with time zone default now() not null,
    constraint idempotency_keys_pkey PRIMARY KEY (principal, key)
);
comment on table listingd.idempotency_keys is 'Idempotency-Key of a POST, written in the transaction of what it made; kept for 24 h.';
CREATE INDEX idempotency_keys_created ON listingd.idempotency_keys USING btree (created_at);
alter table listingd.idempotency_keys enable row level security;
create policy listingd_daemon on listingd.idempotency_keys to listingd_daemon using (true);

create table listingd.job_states (
    id uuid not null,
    fence bigint default nextval('listingd.fences'::regclass) not null,
    run_at timestamp with time zone,
    expires_at timestamp with time zone,
    parent_id uuid,
    priority smallint default 0 not null,
    max_attempts smallint default 4 not null,
    kind text not null,
    user_id text default ''::text not null,
    unique_key text,
    state text default 'pending'::text not null,
    version integer default 1 not null,
    attempt smallint default 0 not null,
    rescues smallint default 0 not null,
    open_children smallint default 0 not null,
    cancel_requested boolean default false not null,
    worker bigint,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    progress jsonb,
    result jsonb,
    error jsonb,
    wants_webhook boolean default false not null,
    began_at timestamp with time zone,
    constraint job_states_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'processing'::text, 'waiting'::text, 'completed'::text, 'failed'::text, 'cancelled'::text]))),
    constraint job_states_pkey PRIMARY KEY (id)
) with (fillfactor=30, autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=2000, autovacuum_vacuum_insert_scale_factor=0.1, autovacuum_analyze_scale_factor=0.1, autovacuum_vacuum_cost_delay=1);
comment on table listingd.job_states is 'Where each job stands. One row a job, updated in place (HOT).';
comment on column listingd.job_states.wants_webhook is 'Somebody may want to hear of this job: it names a webhook, or an endpoint exists for its user.';
CREATE INDEX job_states_expires_at ON listingd.job_states USING btree (expires_at) WHERE (expires_at IS NOT NULL);
CREATE UNIQUE INDEX job_states_fence ON listingd.job_states USING btree (fence);
CREATE INDEX job_states_run_at ON listingd.job_states USING btree (run_at) WHERE (run_at IS NOT NULL);
CREATE UNIQUE INDEX job_states_unique_key ON listingd.job_states USING btree (user_id, unique_key) WHERE (unique_key IS NOT NULL);
CREATE TRIGGER job_states_born_webhooks AFTER INSERT ON listingd.job_states FOR EACH ROW WHEN ((new.wants_webhook AND (new.state = 'processing'::text))) EXECUTE FUNCTION listingd.queue_webhooks();
CREATE TRIGGER job_states_webhooks AFTER UPDATE ON listingd.job_states FOR EACH ROW WHEN ((new.wants_webhook AND (new.state IS DISTINCT FROM old.state))) EXECUTE FUNCTION listingd.queue_webhooks();
alter table listingd.job_states enable row level security;
create policy listingd_daemon on listingd.job_states to listingd_daemon using (true);
create policy listingd_reader on listingd.job_states for select to listingd_reader using ((user_id IN ( SELECT current_setting('listingd.user_id'::text, true) AS current_setting)));

create table listingd.jobs (
    id uuid not null,
    user_id text default ''::text not null,
    kind text not null,
    project_id uuid,
    parent_id uuid,
    slot text,
    priority smallint default 0 not null,
    max_attempts smallint default 4 not null,
    created_at timestamp with time zone default now() not null,
    run_at timestamp with time zone,
    expires_at timestamp with time zone,
    input jsonb not null,
    metadata jsonb default '{}'::jsonb not null,
    tags text[] default '{}'::text[] not null,
    webhook jsonb,
    constraint jobs_expires_at_check CHECK (((expires_at >= '2000-01-01 00:00:00+00'::timestamp with time zone) AND (expires_at < '2201-01-01 00:00:00+00'::timestamp with time zone))) NOT VALID,
    constraint jobs_kind_check CHECK (((length(kind) <= 40) AND ((ascii(kind) >= ascii('a'::text)) AND (ascii(kind) <= ascii('z'::text))) AND (kind !~ '[^a-z0-9_]'::text))),
    constraint jobs_max_attempts_check CHECK (((max_attempts >= 1) AND (max_attempts <= 10))),
    constraint jobs_priority_check CHECK (((priority >= '-100'::integer) AND (priority <= 100))),
    constraint jobs_run_at_check CHECK (((run_at >= '2000-01-01 00:00:00+00'::timestamp with time zone) AND (run_at < '2201-01-01 00:00:00+00'::timestamp with time zone))) NOT VALID,
    constraint jobs_webhook_check CHECK (((COALESCE(jsonb_typeof(webhook), 'null'::text) = 'null'::text) OR COALESCE((jsonb_typeof((webhook -> 'url'::text)) = 'string'::text), false))) NOT VALID,
    constraint jobs_pkey PRIMARY KEY (user_id, id)
);
comment on table listingd.jobs is 'What was asked. Written once, never updated.';
CREATE INDEX jobs_parent ON listingd.jobs USING btree (parent_id) WHERE (parent_id IS NOT NULL);
CREATE INDEX jobs_project ON listingd.jobs USING btree (project_id, created_at) WHERE (project_id IS NOT NULL);
CREATE INDEX jobs_tags ON listingd.jobs USING gin (tags) WHERE (tags <> '{}'::text[]);
CREATE INDEX jobs_webhook ON listingd.jobs USING btree (((input ->> 'endpoint_id'::text)), id) WHERE (kind = 'webhook'::text);
CREATE INDEX jobs_webhook_user ON listingd.jobs USING btree (user_id, id) WHERE (kind = 'webhook'::text);
alter table listingd.jobs enable row level security;
create policy listingd_daemon on listingd.jobs to listingd_daemon using (true);
create policy listingd_reader on listingd.jobs for select to listingd_reader using ((user_id IN ( SELECT current_setting('listingd.user_id'::text, true) AS current_setting)));

create table listingd.kind_places (
    fence bigint not null,
    worker bigint not null,
    kind text not null,
    constraint kind_places_pkey PRIMARY KEY (fence, worker)
);
comment on table listingd.kind_places is 'One row for each running job of a kind with a limit, and for each that a worker is about to claim. It counts while the job of that fence is running, or is pending and the worker lives; no row needs to be removed for a place to be free.';
CREATE INDEX kind_places_kind ON listingd.kind_places USING btree (kind);
alter table listingd.kind_places enable row level security;
create policy listingd_daemon on listingd.kind_places to listingd_daemon using (true);

create table listingd.lane_turns (
    lane text not null,
    worker bigint not null,
    in_flight integer not null,
    constraint lane_turns_pkey PRIMARY KEY (lane, worker)
) with (fillfactor=10);
comment on table listingd.lane_turns is 'Calls in flight of each process; they count while its lease stands.';
alter table listingd.lane_turns enable row level security;
create policy listingd_daemon on listingd.lane_turns to listingd_daemon using (true);

create table listingd.lanes (
    name text not null,
    provider text not null,
    max_in_flight integer not null,
    allowed real not null,
    started_at timestamp with time zone,
    warm_at timestamp with time zone,
    lowered_at timestamp with time zone,
    not_before timestamp with time zone,
    paused_at timestamp with time zone,
    paused_until timestamp with time zone,
    pauses integer default 0 not null,
    pause_code text,
    pause_why text,
    probe_worker bigint,
    probe_until timestamp with time zone,
    used real[] default array_fill((0)::real, ARRAY[62]) not null,
    used_at bigint default 0 not null,
    constraint lanes_pkey PRIMARY KEY (name)
) with (fillfactor=10);
comment on table listingd.lanes is 'One provider with one key: how many calls may be in flight and per minute, over all daemons; paused or not.';
comment on column listingd.lanes.used is 'Calls granted in each of the last 62 seconds, at second % 62 + 1; used_at: the last second counted.';
alter table listingd.lanes enable row level security;
create policy listingd_daemon on listingd.lanes to listingd_daemon using (true);

create table listingd.projects (
    id uuid not null,
    user_id text default ''::text not null,
    name text,
    created_at timestamp with time zone default now() not null,
    constraint projects_pkey PRIMARY KEY (id)
);
comment on table listingd.projects is 'A product a seller works on; jobs, pictures and A+ contents gather under it.';
CREATE INDEX projects_user ON listingd.projects USING btree (user_id, created_at);
alter table listingd.projects enable row level security;
create policy listingd_daemon on listingd.projects to listingd_daemon using (true);
create policy listingd_reader on listingd.projects for select to listingd_reader using ((user_id IN ( SELECT current_setting('listingd.user_id'::text, true) AS current_setting)));

create table listingd.queue_mark (
    is_only boolean default true not null,
    fence bigint default 0 not null,
    constraint queue_mark_is_only_check CHECK (is_only),
    constraint queue_mark_pkey PRIMARY KEY (is_only)
) with (fillfactor=10);
comment on table listingd.queue_mark is 'No job below this fence is ready to run, save those with a run_at. Only rises; where a scan after a restart begins.';
alter table listingd.queue_mark enable row level security;
create policy listingd_daemon on listingd.queue_mark to listingd_daemon using (true);

create table listingd.queues (
    kind text not null,
    paused_at timestamp with time zone,
    paused_why text,
    concurrency integer,
    constraint queues_concurrency_check CHECK (((concurrency IS NULL) OR ((concurrency >= 0) AND (concurrency <= 10000)))),
    constraint queues_pkey PRIMARY KEY (kind)
);
comment on table listingd.queues is 'Per kind: paused or not, and how many may run at once in all daemons together.';
alter table listingd.queues enable row level security;
create policy listingd_daemon on listingd.queues to listingd_daemon using (true);

create table listingd.schedules (
    name text not null,
    kind text not null,
    input jsonb not null,
    user_id text default ''::text not null,
    project_id uuid,
    priority smallint default 0 not null,
    max_attempts smallint default 4 not null,
    cron text not null,
    time_zone text default 'UTC'::text not null,
    missed text default 'once'::text not null,
    overlap text default 'allow'::text not null,
    is_enabled boolean default true not null,
    next_at timestamp with time zone,
    last_at timestamp with time zone,
    last_job_id uuid,
    created_at timestamp with time zone default now() not null,
    constraint schedules_kind_check CHECK ((kind ~ '^[a-z][a-z0-9_]{0,39}$'::text)),
    constraint schedules_max_attempts_check CHECK (((max_attempts >= 1) AND (max_attempts <= 10))),
    constraint schedules_missed_check CHECK ((missed = ANY (ARRAY['skip'::text, 'once'::text, 'all'::text]))),
    constraint schedules_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'::text)),
    constraint schedules_overlap_check CHECK ((overlap = ANY (ARRAY['allow'::text, 'skip'::text]))),
    constraint schedules_priority_check CHECK (((priority >= '-100'::integer) AND (priority <= 100))),
    constraint schedules_pkey PRIMARY KEY (name)
) with (fillfactor=70);
comment on table listingd.schedules is 'Jobs that are enqueued by the clock. missed: what becomes of times at which no daemon ran; overlap: whether one is enqueued while the last is open; next_at null: never again.';
CREATE INDEX schedules_next ON listingd.schedules USING btree (next_at) WHERE is_enabled;
alter table listingd.schedules enable row level security;
create policy listingd_daemon on listingd.schedules to listingd_daemon using (true);

create table listingd.service_keys (
    id text not null,
    secret_sha256 bytea not null,
    name text default ''::text not null,
    scopes text[] default '{enqueue,read}'::text[] not null,
    created_at timestamp with time zone default now() not null,
    last_used_at timestamp with time zone,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone,
    constraint service_keys_scopes_check CHECK ((scopes <@ '{enqueue,read,admin}'::text[])),
    constraint service_keys_pkey PRIMARY KEY (id)
);
comment on table listingd.service_keys is 'Service keys ld_live_<id>_<secret>; only the hash of the secret is kept.';
alter table listingd.service_keys enable row level security;
create policy listingd_daemon on listingd.service_keys to listingd_daemon using (true);

create table listingd.signing_secrets (
    id integer not null,
    secret bytea not null,
    created_at timestamp with time zone default now() not null,
    constraint signing_secrets_secret_check CHECK ((octet_length(secret) >= 32)),
    constraint signing_secrets_pkey PRIMARY KEY (id)
);
comment on table listingd.signing_secrets is 'HMAC secrets of minted read tokens: the highest id signs, all verify. Delete a row to end its tokens.';
alter table listingd.signing_secrets enable row level security;
create policy listingd_daemon on listingd.signing_secrets to listingd_daemon using (true);

create table listingd.spend (
    starts date not null,
    scope text not null,
    subject text not null,
    period text not null,
    reserved_usd numeric(16,6) default 0 not null,
    spent_usd numeric(16,6) default 0 not null,
    told_limit_usd numeric(14,6),
    constraint spend_period_check CHECK ((period = ANY (ARRAY['day'::text, 'month'::text]))),
    constraint spend_scope_check CHECK ((scope = ANY (ARRAY['total'::text, 'user'::text, 'project'::text]))),
    constraint spend_pkey PRIMARY KEY (starts, scope, subject, period)
) with (fillfactor=50);
comment on table listingd.spend is 'Money of each UTC day and month: reserved by calls in flight, and spent. A call counts where it was reserved.';
comment on column listingd.spend.told_limit_usd is 'The limit of which budget.exhausted was told in this period: once, and once more when it was raised and reached again.';
alter table listingd.spend enable row level security;
create policy listingd_daemon on listingd.spend to listingd_daemon using (true);

create table listingd.steps (
    id uuid not null,
    user_id text default ''::text not null,
    identity text,
    job_id uuid not null,
    project_id uuid,
    kind text not null,
    name text not null,
    provider text not null,
    model text default ''::text not null,
    state text default 'open'::text not null,
    worker bigint not null,
    fence bigint not null,
    tries smallint default 1 not null,
    estimated_usd numeric(14,6) default 0 not null,
    actual_usd numeric(14,6),
    reserved_on date not null,
    units jsonb default '{}'::jsonb not null,
    content_sha256 text,
    content_type text,
    document jsonb,
    request_id text,
    code text,
    created_at timestamp with time zone default now() not null,
    ended_at timestamp with time zone,
    constraint steps_money_check CHECK (((estimated_usd >= (0)::numeric) AND (actual_usd >= (0)::numeric))),
    constraint steps_state_check CHECK ((state = ANY (ARRAY['open'::text, 'done'::text, 'failed'::text, 'unknown'::text]))),
    constraint steps_pkey PRIMARY KEY (id)
) with (fillfactor=80);
comment on table listingd.steps is 'One costly call each, with its result. unknown: the call may have been billed and its answer is lost. identity null: the result is erased, the cost stays.';
CREATE INDEX steps_content ON listingd.steps USING btree (content_sha256) WHERE (content_sha256 IS NOT NULL);
CREATE INDEX steps_created ON listingd.steps USING btree (created_at);
CREATE UNIQUE INDEX steps_identity ON listingd.steps USING btree (user_id, identity) WHERE (state = ANY (ARRAY['open'::text, 'done'::text]));
CREATE INDEX steps_job ON listingd.steps USING btree (job_id);
CREATE INDEX steps_open ON listingd.steps USING btree (created_at) WHERE (state = 'open'::text);
alter table listingd.steps enable row level security;
create policy listingd_daemon on listingd.steps to listingd_daemon using (true);
create policy listingd_reader on listingd.steps for select to listingd_reader using ((user_id IN ( SELECT current_setting('listingd.user_id'::text, true) AS current_setting)));

create table listingd.tombstones (
    id uuid not null,
    user_id text default ''::text not null,
    kind text not null,
    state text not null,
    jobs integer not null,
    created_at timestamp with time zone not null,
    finished_at timestamp with time zone,
    erased_at timestamp with time zone default now() not null,
    constraint tombstones_pkey PRIMARY KEY (id)
);
comment on table listingd.tombstones is 'Erased jobs: who, which kind, how it ended, how many jobs in all. What they cost stays in the ledger under the same id.';
CREATE INDEX tombstones_user ON listingd.tombstones USING btree (user_id, created_at);
alter table listingd.tombstones enable row level security;
create policy listingd_daemon on listingd.tombstones to listingd_daemon using (true);

create table listingd.uploads (
    id uuid not null,
    user_id text default ''::text not null,
    sha256 text not null,
    content_type text not null,
    size_bytes bigint not null,
    width_px integer not null,
    height_px integer not null,
    created_at timestamp with time zone default now() not null,
    constraint uploads_pkey PRIMARY KEY (id)
);
comment on table listingd.uploads is 'Photos that sellers sent; the bytes are in storage under their hash.';
CREATE INDEX uploads_sha256 ON listingd.uploads USING btree (sha256);
CREATE INDEX uploads_user ON listingd.uploads USING btree (user_id, created_at);
alter table listingd.uploads enable row level security;
create policy listingd_daemon on listingd.uploads to listingd_daemon using (true);

create table listingd.user_shares (
    user_id text not null,
    weight real default 1 not null,
    paused_at timestamp with time zone,
    paused_why text,
    constraint user_shares_weight_check CHECK (((weight > (0)::double precision) AND (weight <= (1000)::double precision))),
    constraint user_shares_pkey PRIMARY KEY (user_id)
);
comment on table listingd.user_shares is 'A user''s weight in the turns (default 1), and whether their jobs are held.';
alter table listingd.user_shares enable row level security;
create policy listingd_daemon on listingd.user_shares to listingd_daemon using (true);

create table listingd.webhook_endpoints (
    id uuid not null,
    user_id text default ''::text not null,
    url text not null,
    types text[] default '{}'::text[] not null,
    description text default ''::text not null,
    created_at timestamp with time zone default now() not null,
    disabled_at timestamp with time zone,
    disabled_why text,
    constraint webhook_endpoints_pkey PRIMARY KEY (id)
);
comment on table listingd.webhook_endpoints is 'Who wants to hear of jobs: a user of their own, the service (user_id empty) of everybody''s. types empty: all.';
CREATE INDEX webhook_endpoints_user ON listingd.webhook_endpoints USING btree (user_id, created_at);
alter table listingd.webhook_endpoints enable row level security;
create policy listingd_daemon on listingd.webhook_endpoints to listingd_daemon using (true);

create table listingd.webhook_secrets (
    id bigint generated always as identity not null,
    endpoint_id uuid,
    user_id text default ''::text not null,
    secret text not null,
    created_at timestamp with time zone default now() not null,
    expires_at timestamp with time zone,
    constraint webhook_secrets_secret_check CHECK ((secret ~~ 'whsec\_%'::text)),
    constraint webhook_secrets_endpoint_id_fkey FOREIGN KEY (endpoint_id) REFERENCES listingd.webhook_endpoints(id) ON DELETE CASCADE,
    constraint webhook_secrets_pkey PRIMARY KEY (id)
);
comment on table listingd.webhook_secrets is 'Signing secrets: the one without expires_at is current. endpoint_id null: signs the webhooks that a user''s jobs name.';
CREATE UNIQUE INDEX webhook_secrets_current ON listingd.webhook_secrets USING btree (user_id, COALESCE(endpoint_id, '00000000-0000-0000-0000-000000000000'::uuid)) WHERE (expires_at IS NULL);
CREATE INDEX webhook_secrets_endpoint ON listingd.webhook_secrets USING btree (endpoint_id);
alter table listingd.webhook_secrets enable row level security;
create policy listingd_daemon on listingd.webhook_secrets to listingd_daemon using (true);

create table listingd.workers (
    id bigint generated always as identity not null,
    instance text not null,
    lease_until timestamp with time zone not null,
    started_at timestamp with time zone default now() not null,
    seen_at timestamp with time zone default now() not null,
    stopped_at timestamp with time zone,
    low_fence bigint default '9223372036854775807'::bigint not null,
    kinds text[],
    concurrency integer default 0 not null,
    running integer default 0 not null,
    draining boolean default false not null,
    info jsonb default '{}'::jsonb not null,
    constraint workers_pkey PRIMARY KEY (id)
) with (fillfactor=20);
comment on table listingd.workers is 'One row a run of a process, with its lease. low_fence: no job in its hands has a lower fence.';
CREATE INDEX workers_alive ON listingd.workers USING btree (instance) WHERE (stopped_at IS NULL);
alter table listingd.workers enable row level security;
create policy listingd_daemon on listingd.workers to listingd_daemon using (true);

create view listingd.generated_images with (security_invoker=true) (id, project_id, user_id, job_id, slot, sha256, content_type, width_px, height_px, checks, generated, provider, created_at);
