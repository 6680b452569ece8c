-- 0004 tombstones (expand): what stays of a job that its owner erased. No input, no result, no picture.
set local lock_timeout = '5s';

create table listingd.tombstones (
    id uuid primary key,
    user_id text not null default '',
    kind text not null,
    state text not null,
    jobs int not null,
    created_at timestamptz not null,
    finished_at timestamptz,
    erased_at timestamptz not null default now()
);
create index tombstones_user on listingd.tombstones (user_id, created_at);
comment on table listingd.tombstones is
    'Erased jobs: who, which kind, how it ended, how many jobs in all. What they cost stays in the ledger under the same id.';
