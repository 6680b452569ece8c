-- The two walls inside the database, put up (and mended) whenever the functions are replaced:
--   listingd_daemon   a group for the daemon's login: reads and writes rows, changes no table, no function
--   listingd_reader   what the daemon becomes to read for one user: sees the rows of setting listingd.user_id alone
-- Every table is behind row level security, so that a careless grant to another role shows nothing. The daemon's
-- policy is `true` and vanishes from its plans; the owner of the tables is not confined at all.
-- `in (select …)` and not `=`: the planner takes `=` for a filter that leaves one row in many, though the statements
-- name the user themselves, and reads and sorts all of a user's jobs for one page (5 ms instead of 0.5).
-- False when the roles are missing and the caller may not create them: nothing is changed then (sql/roles.sql).
create or replace function listingd.grant_roles()
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    role name;
    walled record;
begin
    foreach role in array '{listingd_daemon,listingd_reader}'::name[] loop
        if to_regrole(role) is null then
            begin
                execute format('create role %I nologin', role);
            exception
                when insufficient_privilege then return false;
                when duplicate_object or unique_violation then null;  -- another database of this server did it now
            end;
        end if;
    end loop;
    foreach role in array array['listingd_daemon', current_user] loop
        if not pg_has_role(role, 'listingd_reader', 'member') then
            begin
                execute format('grant listingd_reader to %I', role);
            exception when insufficient_privilege or unique_violation then null;
            end;
        end if;
    end loop;

    grant usage on schema listingd to listingd_daemon, listingd_reader;
    grant select, insert, update, delete on all tables in schema listingd to listingd_daemon;
    grant usage, select on all sequences in schema listingd to listingd_daemon;
    grant execute on all functions in schema listingd to listingd_daemon;
    alter default privileges in schema listingd grant select, insert, update, delete on tables to listingd_daemon;
    alter default privileges in schema listingd grant usage, select on sequences to listingd_daemon;
    alter default privileges in schema listingd grant execute on functions to listingd_daemon;
    revoke insert, update, delete on listingd.schema_migrations from listingd_daemon;
    revoke execute on function listingd.grant_roles() from listingd_daemon;

    grant select on
        listingd.jobs, listingd.job_states, listingd.attempts, listingd.steps, listingd.projects, listingd.assets,
        listingd.generated_images, listingd.aplus_contents
    to listingd_reader;
    grant execute on function listingd.rfc3339(timestamptz), listingd.count_ahead(bigint) to listingd_reader;

    for walled in
        select
            c.relname as name, c.relrowsecurity as is_closed,
            exists (
                select from pg_policy as p where p.polrelid = c.oid and p.polname = 'listingd_daemon'
            ) as has_daemon,
            exists (
                select from pg_policy as p where p.polrelid = c.oid and p.polname = 'listingd_reader'
            ) as has_reader,
            case
                when c.relname in ('jobs', 'job_states', 'steps', 'projects', 'assets', 'aplus_contents')
                    then 'user_id in (select current_setting(''listingd.user_id'', true))'
                when c.relname = 'attempts'
                    then 'exists (select from listingd.job_states as s where s.id = job_id)'
            end as shows
        from pg_class as c
        where c.relnamespace = 'listingd'::regnamespace and c.relkind in ('r', 'p')
        order by c.relname
    loop
        if not walled.is_closed then
            execute format('alter table listingd.%I enable row level security', walled.name);
        end if;
        if not walled.has_daemon then
            execute format('create policy listingd_daemon on listingd.%I to listingd_daemon using (true)', walled.name);
        end if;
        if walled.shows is not null and not walled.has_reader then
            execute format(
                'create policy listingd_reader on listingd.%I for select to listingd_reader using (%s)',
                walled.name, walled.shows
            );
        end if;
    end loop;
    return true;
end
$$;
comment on function listingd.grant_roles() is
    'Puts up the roles, grants and policies of the daemon and of reads for one user. False when it may not.';
revoke all on function listingd.grant_roles() from public;
