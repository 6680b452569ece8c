-- name: set_session
-- One row; bounds of this session, so that a dead client's locks and statements end by themselves.
-- $1 statement_timeout, $2 lock_timeout, $3 idle_in_transaction_session_timeout (text with units)
select
    set_config('statement_timeout', $1, false),
    set_config('lock_timeout', $2, false),
    set_config('idle_in_transaction_session_timeout', $3, false),
    set_config('tcp_keepalives_idle', '15', false),
    set_config('tcp_keepalives_interval', '5', false),
    set_config('tcp_keepalives_count', '3', false),
    set_config('jit', 'off', false);

-- name: set_client_check
-- One row; a statement whose client has died ends within two seconds. Fails with 22023 on platforms without it.
select set_config('client_connection_check_interval', '2s', false);

-- name: backend_pid
-- The process id of the server session that answers.
select pg_catalog.pg_backend_pid();
