-- name: lock_migrations
-- One row, once no other migration runs; the lock ends with the transaction.
select set_config('lock_timeout', '30s', true), pg_catalog.pg_advisory_xact_lock(7453010587);

-- name: set_migration_timeouts
-- One row; a migration that waits for a busy table gives way quickly and is tried again, and calls no function but
-- Postgres' and ours.
-- $1 lock_timeout (text with units)
select
    set_config('lock_timeout', $1, true),
    set_config('statement_timeout', '0', true),
    set_config('check_function_bodies', 'off', true),
    set_config('search_path', 'pg_catalog, pg_temp', true);

-- name: schema_migrations_exist
-- True once the first migration of all has begun.
select pg_catalog.to_regclass('listingd.schema_migrations') is not null;

-- name: create_schema
-- Nothing.
create schema if not exists listingd;

-- name: create_schema_migrations
-- Nothing. Row 0 stands for all files of sql/functions together.
create table if not exists listingd.schema_migrations (
    number int primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default now()
);

-- name: list_migrations
-- One row a migration that was applied, by number; number 0 is the functions.
select m.number, m.name, m.checksum, m.applied_at
from listingd.schema_migrations as m
order by m.number;

-- name: record_migration
-- Nothing. $1 number, $2 name, $3 checksum
insert into listingd.schema_migrations (number, name, checksum)
values ($1, $2, $3)
on conflict (number) do update set checksum = excluded.checksum, applied_at = now();
