-- name: find_vacuum_holders
-- What keeps vacuum from removing rows that died since, the oldest first: held_by (session, prepared transaction,
-- replication slot), name, pid, application, state, age_s, query_start, horizon (the transaction it holds on to).
-- age_s is null for slots: Postgres keeps no time for them. Another user's sessions are seen by members of
-- pg_read_all_stats alone. Sessions of other databases hold back nothing here.
select h.held_by, h.name, h.pid, h.application, h.state, h.age_s, h.query_start, h.horizon::text as horizon
from (
    select
        'session' as held_by, a.usename::text as name, a.pid, a.application_name as application,
        coalesce(a.state, a.backend_type) as state,
        extract(epoch from now() - coalesce(a.xact_start, a.backend_start))::float8 as age_s,
        a.query_start,
        case when age(a.backend_xid) > age(a.backend_xmin) or a.backend_xmin is null then a.backend_xid else a.backend_xmin end as horizon
    from pg_stat_activity as a
    where
        a.pid <> pg_backend_pid()
        and (a.backend_xmin is not null or a.backend_xid is not null)
        and (a.datname = current_database() or a.backend_type = 'walsender')
        and a.backend_type <> 'autovacuum worker'
    union all
    select
        'prepared transaction', p.gid, null, p.owner::text, 'prepared', extract(epoch from now() - p.prepared)::float8, null,
        p.transaction
    from pg_prepared_xacts as p
    where p.database = current_database()
    union all
    select
        'replication slot', r.slot_name::text, r.active_pid, coalesce(r.plugin, 'physical')::text,
        case when r.active then 'active' else 'inactive' end, null, null, r.xmin
    from pg_replication_slots as r
    where r.xmin is not null
) as h
order by age(h.horizon) desc, h.age_s desc nulls last
limit 20
