-- UUIDv7s (RFC 9562): ids made later sort later, so that indexes grow at one end. Many at once, because calling a
-- function with a search_path of its own costs more than making the id.
create or replace function listingd.new_ids(wanted int)
returns setof uuid
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    -- 48 bits of milliseconds, the version 7, and the 74 random bits and the variant of a version 4.
    select (
        lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0')
        || '7' || substr(gen_random_uuid()::text, 16)
    )::uuid
    from generate_series(1, wanted)
$$;
comment on function listingd.new_ids(int) is 'UUIDv7s: ids made later sort later (to the millisecond).';
revoke all on function listingd.new_ids(int) from public;
