-- A UUIDv7 (RFC 9562): ids made later sort later, so that indexes grow at one end.
create or replace function listingd.new_id()
returns uuid
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select encode(
        set_bit(
            set_bit(
                overlay(
                    uuid_send(gen_random_uuid())
                    placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                    from 1 for 6
                ),
                52, 1
            ),
            53, 1
        ),
        'hex'
    )::uuid
$$;
comment on function listingd.new_id() is 'A UUIDv7: ids made later sort later (to the millisecond).';
revoke all on function listingd.new_id() from public;
