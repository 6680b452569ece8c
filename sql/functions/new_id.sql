-- One of new_ids.
create or replace function listingd.new_id()
returns uuid
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select listingd.new_ids(1)
$$;
comment on function listingd.new_id() is 'A UUIDv7: ids made later sort later (to the millisecond).';
revoke all on function listingd.new_id() from public;
