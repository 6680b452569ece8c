"""The way to Postgres: sessions, errors, statements."""

from __future__ import annotations

import asyncio
import socket
import traceback
from pathlib import Path

import asyncpg
import pytest

from daemon.db import (
    Database,
    detect_pooler,
    is_transient,
    load_queries,
    open_pool,
    translate_errors,
    translate_refusals,
)
from daemon.errors import Misconfigured, Unavailable
from daemon.migrate import migrate
from daemon.settings import Settings
from tests.conftest import with_database


async def _show(connection: object, name: str) -> object:
    return await connection.fetchval(f"show {name}")  # type: ignore[attr-defined]


async def test_every_session_is_bounded(db: Database) -> None:
    """A killed client must not leave locks and statements behind."""
    dedicated = await db.dedicated_connection("test")
    try:
        async with db.acquire() as pooled:
            for connection in (pooled, dedicated):
                assert "15s" == await _show(connection, "statement_timeout")
                assert "3s" == await _show(connection, "lock_timeout")
                assert "10s" == await _show(connection, "idle_in_transaction_session_timeout")
                assert await _show(connection, "client_connection_check_interval") in {"2s", "0"}
                assert "off" == await _show(connection, "jit")
            assert "listingd" == await _show(pooled, "application_name")
        assert "listingd:test" == await _show(dedicated, "application_name")
    finally:
        dedicated.terminate()


async def test_sessions_owe_nothing_to_the_databases_defaults(db: Database) -> None:
    """Places in a kind are counted under a lock that was waited for: an older snapshot would not see those taken."""
    name = await db.pool.fetchval("select current_database()")
    await db.pool.execute(f"alter database {name} set default_transaction_isolation = 'serializable'")

    connection = await db.dedicated_connection("test")
    try:
        assert "read committed" == await _show(connection, "transaction_isolation")
    finally:
        connection.terminate()


async def test_no_function_of_others_is_taken_for_one_of_postgres(db: Database) -> None:
    """Apps may create functions in public, and one whose arguments fit better would run with the daemon's rights."""
    await db.pool.execute(
        "create function public.make_interval(secs text) returns interval language plpgsql"
        " as $$ begin raise exception 'taken in'; end $$"
    )

    assert await db.fetchval("start_worker", "test", 60.0, ["ping"], 1, "{}") is not None


async def test_a_released_connection_keeps_its_bounds_and_loses_an_open_transaction(db: Database) -> None:
    async with db.acquire() as connection:
        await connection.execute("begin")
        before = connection.get_server_pid()
    async with db.acquire() as connection:
        assert before == connection.get_server_pid()
        assert not connection.is_in_transaction()
        assert "15s" == await _show(connection, "statement_timeout")


async def test_a_statement_that_runs_too_long_is_unavailable(db: Database) -> None:
    with pytest.raises(Unavailable) as caught:
        async with db.acquire() as connection:
            await connection.execute("set statement_timeout = '20ms'")
            await connection.execute("select pg_sleep(10)")

    assert isinstance(caught.value.__cause__, asyncpg.QueryCanceledError)
    assert 1 == caught.value.data["retry_after_s"]


async def test_a_terminated_session_is_unavailable_and_the_pool_recovers(db: Database) -> None:
    async with db.acquire() as other:
        with pytest.raises(Unavailable):
            async with db.acquire() as connection:
                await other.execute("select pg_terminate_backend($1)", connection.get_server_pid())
                await connection.fetchval("select 1")

    assert await db.fetchval("backend_pid")


async def test_a_mistake_in_a_statement_is_not_disguised(db: Database) -> None:
    with pytest.raises(asyncpg.UndefinedTableError):
        async with db.transaction() as connection:
            await connection.execute("select * from nowhere")


async def test_a_closed_database_is_unavailable(db: Database) -> None:
    await db.close()

    with pytest.raises(Unavailable):
        await db.fetchval("backend_pid")


async def test_a_server_that_is_not_there_is_unavailable(settings: Settings) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    with pytest.raises(Unavailable):
        await open_pool(settings, dsn=f"postgresql://u@127.0.0.1:{port}/d")
    with pytest.raises(Unavailable):
        await open_pool(settings, dsn="postgresql://u@/d?host=/nonexistent")


async def test_a_database_that_does_not_exist_is_for_the_operator(
    settings: Settings, postgres_dsn: str
) -> None:
    with pytest.raises(Misconfigured, match="in LISTINGD_DATABASE_URL"):
        await open_pool(settings, dsn=with_database(postgres_dsn, "ld_nowhere"))


@pytest.mark.parametrize("query", ["pgbouncer=true", "channel_binding=require", "statement_timeout=soon"])
async def test_a_parameter_that_the_server_does_not_take_is_for_the_operator(
    settings: Settings, postgres_dsn: str, query: str
) -> None:
    """URLs of Supabase and Neon carry them; asyncpg hands them on to the server."""
    dsn = postgres_dsn + ("&" if "?" in postgres_dsn else "?") + query

    with pytest.raises(Misconfigured, match=query.partition("=")[0]) as caught:
        await open_pool(settings, dsn=dsn)
    with pytest.raises(Misconfigured):
        await migrate(dsn)

    assert "what follows a ?" in caught.value.hint


async def test_a_direct_server_is_not_taken_for_a_pooler(db: Database) -> None:
    assert db.pooled is False
    assert db.can_listen


async def test_a_session_that_changes_between_transactions_is_a_transaction_pooler(database: str) -> None:
    """Two clients that share one server session, as behind PgBouncer with pool_mode=transaction."""
    shared = await asyncpg.connect(database)
    other = await asyncpg.connect(database)
    try:
        assert await detect_pooler(shared, shared, load_queries()["backend_pid"])
        assert not await detect_pooler(shared, other, load_queries()["backend_pid"])
    finally:
        await shared.close()
        await other.close()


async def test_behind_a_pooler_nothing_is_prepared_and_nothing_is_set(
    database: str, settings: Settings
) -> None:
    db = Database(settings, dsn=database)
    db.pooled = True
    connection = await db.dedicated_connection("x")
    try:
        for _ in range(3):
            await connection.fetchval(db.sql["backend_pid"])
        assert 0 == await connection.fetchval("select count(*) from pg_prepared_statements")
        assert "0" == await _show(connection, "statement_timeout")
        assert not db.can_listen
    finally:
        connection.terminate()


async def test_tcp_connections_have_keepalive() -> None:
    """asyncpg leaves it off: a half-open LISTEN was still "open" after 35 s."""
    from daemon.db import _keep_alive

    class Holder:
        pass

    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, *server.sockets[0].getsockname()
        )
        holder = Holder()
        holder._transport = transport  # type: ignore[attr-defined]
        _keep_alive(holder)
        assert transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        transport.close()


@pytest.mark.parametrize(
    "exc",
    [
        OSError(),
        FileNotFoundError(),
        socket.gaierror(),
        TimeoutError(),
        ConnectionResetError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError(),
        asyncpg.ConnectionDoesNotExistError("gone"),
        asyncpg.AdminShutdownError("57P01"),
        asyncpg.CrashShutdownError("57P02"),
        asyncpg.CannotConnectNowError("57P03"),
        asyncpg.TooManyConnectionsError("53300"),
        asyncpg.ReadOnlySQLTransactionError("25006"),
        asyncpg.LockNotAvailableError("55P03"),
        asyncpg.DeadlockDetectedError("40P01"),
        asyncpg.QueryCanceledError("57014"),
        asyncpg.ProtocolViolationError("query_wait_timeout"),  # PgBouncer has no server
        asyncpg.ProtocolViolationError("no more connections allowed (max_client_conn)"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_reconnect_and_go_on(exc: Exception) -> None:
    assert is_transient(exc)
    with pytest.raises(Unavailable), translate_errors(), translate_refusals("postgresql://u@h/x"):
        raise exc


@pytest.mark.parametrize(
    "exc",
    [
        asyncpg.UniqueViolationError("23505"),
        asyncpg.UndefinedColumnError("42703"),
        asyncpg.InterfaceError("the server expects 2 arguments for this query, 1 was passed"),
        ValueError(),
        asyncio.CancelledError(),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_a_bug_passes_untouched(exc: BaseException) -> None:
    with pytest.raises(type(exc)), translate_errors():
        raise exc


def test_statements_are_read_by_name_without_their_comments(tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_text(
        "-- name: one\n-- One row.\n-- $1 a number\nselect $1::int\n-- kept\n;\n\n-- name: two\n-- x\nselect 2;\n"
    )

    queries = load_queries(tmp_path)

    assert "-- name: one\nselect $1::int\n-- kept\n" == queries["one"]
    assert "-- name: two\nselect 2" == queries["two"]


def test_a_statement_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_text("-- name: one\nselect 1;\n-- name: one\nselect 2;\n")

    with pytest.raises(Misconfigured, match="one stands twice"):
        load_queries(tmp_path)


async def test_a_listen_url_that_cannot_be_read_is_named_and_its_password_is_not_shown(
    database: str, settings: Settings
) -> None:
    """asyncpg's own error quotes what it took for a port: a password with a slash in it."""
    db = Database(settings, dsn=database, listen_dsn="postgresql://u:hunter2/x@127.0.0.1:1/x")

    with pytest.raises(Misconfigured) as caught:
        await db.dedicated_connection("test", direct=True)

    assert "LISTINGD_LISTEN_DATABASE_URL" in caught.value.hint
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
