-- UUIDv7s (RFC 9562) of one moment, each the one before plus one (section 6.2, method 2): they sort as they were asked
-- for, and lie side by side in every index. The random part is drawn once, below the half of its last 48 bits: servers
-- built without OpenSSL open /dev/urandom for each draw, which cost more than all the rest of a job's row.
create or replace function listingd.new_ids(wanted int)
returns setof uuid
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select (f.high || lpad(to_hex(f.low + n), 12, '0'))::uuid
    from (
        select left(d.id, 24) as high, ('x' || right(d.id, 12))::bit(48)::bigint >> 1 as low
        from (select listingd.new_id()::text as id offset 0) as d
        offset 0
    ) as f
    cross join generate_series(0, wanted - 1) as n
$$;
comment on function listingd.new_ids(int) is 'UUIDv7s of one moment, in the order in which they sort.';
revoke all on function listingd.new_ids(int) from public;
