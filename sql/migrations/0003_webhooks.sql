-- 0003 webhooks (expand): endpoints with their secrets, and what signs read tokens.
--
-- There is no outbox table and no delivery table: a delivery is a job of kind `webhook`, stored by the
-- transaction that changes the state it tells of, and its attempts are the attempts of that job.
-- Only a job whose row says wants_webhook pays for it: the triggers' WHEN is one comparison in the update itself.
-- Backend CPU of flushes of 250 rows (PostgreSQL 18, 2 cores, 2026-11-23): no difference to no trigger that could be
-- measured, where a statement trigger with transition tables cost 3 to 7 %.
set local lock_timeout = '5s';

create table listingd.signing_secrets (
    id int primary key,
    secret bytea not null,
    created_at timestamptz not null default now(),
    constraint signing_secrets_secret_check check (octet_length(secret) >= 32)
);
comment on table listingd.signing_secrets is
    'HMAC secrets of minted read tokens: the highest id signs, all verify. Delete a row to end its tokens.';

create table listingd.webhook_endpoints (
    id uuid primary key,
    user_id text not null default '',
    url text not null,
    types text[] not null default '{}',
    description text not null default '',
    created_at timestamptz not null default now(),
    disabled_at timestamptz,
    disabled_why text
);
create index webhook_endpoints_user on listingd.webhook_endpoints (user_id, created_at);
comment on table listingd.webhook_endpoints is
    'Who wants to hear of jobs: a user of their own, the service (user_id empty) of everybody''s. types empty: all.';

create table listingd.webhook_secrets (
    id bigint generated always as identity primary key,
    endpoint_id uuid references listingd.webhook_endpoints (id) on delete cascade,
    user_id text not null default '',
    secret text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    constraint webhook_secrets_secret_check check (secret like 'whsec\_%')
);
create unique index webhook_secrets_current on listingd.webhook_secrets (user_id, coalesce(endpoint_id, '00000000-0000-0000-0000-000000000000'))
    where expires_at is null;
create index webhook_secrets_endpoint on listingd.webhook_secrets (endpoint_id);
comment on table listingd.webhook_secrets is
    'Signing secrets: the one without expires_at is current. endpoint_id null: signs the webhooks that a user''s jobs name.';

alter table listingd.job_states add column wants_webhook boolean not null default false;
comment on column listingd.job_states.wants_webhook is
    'Somebody may want to hear of this job: it names a webhook, or an endpoint exists for its user.';

create index jobs_webhook on listingd.jobs ((input ->> 'endpoint_id'), id) where kind = 'webhook';
create index jobs_webhook_user on listingd.jobs (user_id, id) where kind = 'webhook';

-- The function is replaced by sql/functions/queue_webhooks.sql, which is applied after all migrations.
create function listingd.queue_webhooks()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$ begin return null; end $$;

create trigger job_states_webhooks
after update on listingd.job_states
for each row
when (new.wants_webhook and new.state is distinct from old.state)
execute function listingd.queue_webhooks();

create trigger job_states_born_webhooks
after insert on listingd.job_states
for each row
when (new.wants_webhook and new.state = 'processing')
execute function listingd.queue_webhooks();
