-- A time as the API writes it: RFC 3339, UTC, milliseconds.
create or replace function listingd.rfc3339(t timestamptz)
returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select to_char(t at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
$$;
comment on function listingd.rfc3339(timestamptz) is 'A time as the API writes it: RFC 3339, UTC, milliseconds.';
revoke all on function listingd.rfc3339(timestamptz) from public;
