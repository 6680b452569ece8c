-- The counters that a call of this user and project touches on a day: at most six.
create or replace function listingd.spend_keys(for_user text, for_project uuid, on_day date)
returns table (starts date, scope text, subject text, period text, ends date)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select p.starts, c.scope, c.subject, p.period, p.ends
    from (values ('total', ''), ('user', for_user), ('project', for_project::text)) as c (scope, subject)
    cross join (
        values
            ('day', on_day, on_day + 1),
            ('month', date_trunc('month', on_day::timestamp)::date, (date_trunc('month', on_day::timestamp) + interval '1 month')::date)
    ) as p (period, starts, ends)
    where c.subject is not null
$$;
comment on function listingd.spend_keys(text, uuid, date) is
    'The counters of listingd.spend that one call touches.';
revoke all on function listingd.spend_keys(text, uuid, date) from public;
