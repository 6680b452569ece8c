-- name: set_session
-- One row; bounds of this session, so that a dead client's locks and statements end by themselves. Whatever the
-- database's defaults: counts under a lock need read committed, and whoever may create a function in a schema of the
-- search_path could have the daemon execute it.
-- $1 statement_timeout, $2 lock_timeout, $3 idle_in_transaction_session_timeout (text with units)
select
    set_config('statement_timeout', $1, false),
    set_config('lock_timeout', $2, false),
    set_config('idle_in_transaction_session_timeout', $3, false),
    set_config('tcp_keepalives_idle', '15', false),
    set_config('tcp_keepalives_interval', '5', false),
    set_config('tcp_keepalives_count', '3', false),
    set_config('jit', 'off', false),
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('search_path', 'pg_catalog, pg_temp', false);

-- name: set_client_check
-- One row; a statement whose client has died ends within two seconds. Fails with 22023 on platforms without it.
select set_config('client_connection_check_interval', '2s', false);

-- name: confine_reads
-- One row; until the end of the transaction the session sees one user's rows alone. Fails with 22023 without the
-- role, with 42501 when this login may not become it. $1 user_id
select set_config('role', 'listingd_reader', true), set_config('listingd.user_id', $1, true);

-- name: backend_pid
-- The process id of the server session that answers.
select pg_catalog.pg_backend_pid();

-- name: lock_instance
-- One process at a time registers under an instance name, until its transaction ends. $1 instance
select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('listingd.instance.' || $1, 0));
