-- The ids that the inputs of open jobs and of schedules name, with their users: what retention must leave. Anything of
-- 32 hexadecimal digits counts: an input is kept as it was sent, and may write an id in capitals or without hyphens.
-- Reads each open job once, however many files are old.
create or replace function listingd.find_named_ids()
returns table (user_id text, id uuid)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select distinct n.user_id, m.digits[1]::uuid
    from (
        select j.user_id, j.input
        from listingd.job_states as s
        join listingd.jobs as j on j.user_id = s.user_id and j.id = s.id
        where s.state in ('pending', 'processing', 'waiting')
        union all
        select c.user_id, c.input
        from listingd.schedules as c
    ) as n
    cross join lateral regexp_matches(replace(n.input::text, '-', ''), '[0-9a-fA-F]{32}', 'g') as m (digits)
$$;
comment on function listingd.find_named_ids() is
    'The ids that inputs of open jobs and schedules name, with their users: what retention must leave.';
revoke all on function listingd.find_named_ids() from public;
