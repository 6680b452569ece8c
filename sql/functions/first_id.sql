-- The lowest UUIDv7 of a moment: ids that begin with their time are older than it exactly when they are lower.
create or replace function listingd.first_id(moment timestamptz)
returns uuid
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select (
        lpad(to_hex(greatest(floor(extract(epoch from moment) * 1000), 0)::bigint), 12, '0') || repeat('0', 20)
    )::uuid
$$;
comment on function listingd.first_id(timestamptz) is 'The lowest id (UUIDv7) of a moment.';
revoke all on function listingd.first_id(timestamptz) from public;
