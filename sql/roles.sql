-- Two logins with least privilege: `listingd_owner` owns the schema and migrates, `listingd` runs the daemon and changes
-- rows only. Run it once as a superuser (or as a role with createrole, and with admin on the database), in the database
-- of listingd; then give both a password:  \password listingd   Twice changes nothing. docs/operations.md says how.
-- Roles belong to the whole server: rename them here when two installations share one.
do $$
declare
    role name;
begin
    foreach role in array '{listingd_owner,listingd}'::name[] loop
        if to_regrole(role) is null then
            execute format('create role %I login', role);
        end if;
    end loop;
    foreach role in array '{listingd_daemon,listingd_reader}'::name[] loop  -- see sql/functions/grant_roles.sql
        if to_regrole(role) is null then
            execute format('create role %I nologin', role);
        end if;
    end loop;
    execute format('grant connect, create on database %I to listingd_owner', current_database());
    execute format('grant connect on database %I to listingd', current_database());
end
$$;
grant listingd_reader to listingd_daemon;
grant listingd_daemon to listingd;
grant pg_read_all_stats to listingd;  -- to name the session that holds back vacuum, whoever's it is

-- Bounds of every session of the daemon, for the case that a pooler stands between and the daemon cannot set them.
-- A partition or a killed client then holds no lock and no statement for long.
alter role listingd set statement_timeout = '15s';
alter role listingd set lock_timeout = '3s';
alter role listingd set idle_in_transaction_session_timeout = '10s';
alter role listingd set client_connection_check_interval = '2s';
alter role listingd set tcp_keepalives_idle = 15;
alter role listingd set tcp_keepalives_interval = 5;
alter role listingd set tcp_keepalives_count = 3;
alter role listingd set jit = off;
alter role listingd set default_transaction_isolation = 'read committed';
alter role listingd set search_path = pg_catalog, pg_temp;  -- nobody's function is taken for one of Postgres'
