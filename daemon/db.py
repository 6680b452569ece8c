"""The way to Postgres: named statements, a pool, connections of one's own, and what an error means.

All SQL stands in sql/; this module loads sql/queries/*.sql and runs statements by name. jsonb stays text:
it holds values that Python cannot read, and whoever asks decodes each row in its own `try`.

Whatever says "reconnect and go on" (a restart, a failover, a full server, a time-out, a lost socket) leaves
here as errors.Unavailable; every other error is a bug and passes untouched.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeAlias, cast
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from daemon import logs
from daemon.errors import Misconfigured, Unavailable, first_cause
from daemon.settings import Settings

Connection: TypeAlias = "asyncpg.Connection | PoolConnectionProxy"

_TRANSIENT_CLASSES = ("08", "53")  # connection lost or refused; no disk, memory or connections left
_TRANSIENT_STATES = frozenset(
    {
        "25006",  # read-only: the primary moved
        "25P03",  # idle in transaction for too long: we were stopped for a while
        "40001",  # serialization failure
        "40P01",  # deadlock
        "55P03",  # lock_timeout
        "57014",  # statement_timeout or a cancel
        "57P01",  # terminated by an administrator, a shutdown
        "57P02",  # another backend crashed
        "57P03",  # starting up or shutting down
        "57P05",  # idle session ended
    }
)
_NO_ROLE = (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError)
_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,  # no right to connect
    asyncpg.UndefinedObjectError,  # ?pgbouncer=true, which others' drivers take out of the URL: a parameter to the server
    asyncpg.InvalidParameterValueError,
    asyncpg.CantChangeRuntimeParamError,
)
# PgBouncer says everything under the one code of a broken connection: these no waiting heals.
_POOLER_REFUSES = re.compile(
    r"no such (database|user)|authentication failed|login rejected|SSL required|unsupported startup parameter"
    r"|(database|role) .* does not exist"
)
_RETRY_AFTER_S = 1

log = logs.get_logger()


def is_transient(exc: BaseException) -> bool:
    """Whether the same call may succeed on a new connection a moment later."""
    if isinstance(exc, asyncpg.PostgresError):
        state = exc.sqlstate or ""
        return state.startswith(_TRANSIENT_CLASSES) or state in _TRANSIENT_STATES
    if isinstance(exc, asyncpg.InterfaceError):
        # A plain InterfaceError is a wrong argument; only the ones about the connection pass with time.
        return "clos" in str(exc) or "released" in str(exc)
    return isinstance(exc, (OSError, asyncpg.InternalClientError))  # OSError includes TimeoutError, gaierror


class translate_errors:  # noqa: N801 -- reads as a verb: `with translate_errors():`; a class is 3x faster
    """Turn what is_transient into Unavailable, keeping the cause."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is not None and is_transient(exc):
            raise Unavailable(
                "The database cannot be reached right now.",
                hint="The same request may succeed in a moment.",
                data={"retry_after_s": _RETRY_AFTER_S, "cause": type(exc).__name__},
            ) from exc


@contextmanager
def translate_refusals(dsn: str, variable: str = "LISTINGD_DATABASE_URL") -> Iterator[None]:
    """Turn what only the operator can change (user, password, database, parameters, DSN) into Misconfigured."""
    try:
        with _translate_unreadable(dsn, variable):
            yield
    except (*_REFUSED, asyncpg.ProtocolViolationError) as exc:
        if isinstance(exc, asyncpg.ProtocolViolationError) and not _POOLER_REFUSES.search(str(exc)):
            raise
        raise Misconfigured(
            f"The database refuses us: {first_cause(exc)}.",
            hint=f"Check user, password, database and what follows a ? in {variable}.",
        ) from exc


@contextmanager
def _translate_unreadable(dsn: str, variable: str) -> Iterator[None]:
    try:
        yield
    except ValueError as exc:  # a DSN that asyncpg cannot read
        if str(exc).startswith("root certificate file"):  # it asks for a check, and does not say by what
            raise Misconfigured(
                f"The database's certificate cannot be checked: {first_cause(exc)}.",
                hint=f"Name the file of the authority in {variable}: sslrootcert=/etc/….pem.",
            ) from None
        raise Misconfigured(
            "The database URL cannot be read.",
            hint=f"{variable} looks like postgresql://user:password@host:5432/name; "
            "in a password / is written %2F, and @ %40.",
        ) from None  # its text may hold the password
    except OSError:
        _check_certificates(dsn, variable)
        raise


def _check_certificates(dsn: str, variable: str) -> None:
    """Whether a file that the DSN names is what keeps us out: its error is that of a server that is away.

    Errors: Misconfigured.
    """
    named = dict(parse_qsl(urlsplit(dsn).query))
    for name in ("sslrootcert", "sslcrl", "sslcert", "sslkey"):
        path = named.get(name) or os.environ.get(f"PG{name.upper()}")
        if not path:
            continue
        try:
            Path(path).open("rb").close()
            if name in {"sslrootcert", "sslcrl"}:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
        except OSError as exc:
            why = "it holds no certificate" if isinstance(exc, ssl.SSLError) else exc.strerror
            raise Misconfigured(
                f"{name} {path} cannot be read: {why}.",
                hint=f"{variable} or PG{name.upper()} names it; the daemon's user must be able to read it.",
            ) from exc


def sql_dir() -> Path:
    """The directory `sql`: inside the package in a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "_sql"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "sql"


@functools.cache
def load_queries(directory: Path | None = None) -> Mapping[str, str]:
    """Name to text of every statement in sql/queries/*.sql; the `-- name:` line stays as its first line.

    Errors: Misconfigured when the files are missing or a name stands twice.
    """
    directory = directory or sql_dir() / "queries"
    queries: dict[str, str] = {}
    for path in sorted(directory.glob("*.sql")):
        _, *parts = re.split(r"^-- name: *(\w+)[ \t]*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in queries:
                raise Misconfigured(f"The statement {name} stands twice in {directory}.")
            body = re.sub(r"\A(\s*--[^\n]*\n)*", "", text).strip().removesuffix(";")
            queries[name] = f"-- name: {name}\n{body}"
    if not queries:
        raise Misconfigured(f"No SQL statements in {directory}.", hint="Install listingd again.")
    return MappingProxyType(queries)


class Database:
    """A pool of connections and the named statements.

    `sql` maps a statement's name to its text; `pooled` says that a transaction pooler (PgBouncer,
    Supavisor) stands between: no prepared statements and no session state then, and LISTEN only by
    `listen_dsn`.
    """

    def __init__(self, settings: Settings, *, dsn: str, listen_dsn: str | None = None) -> None:
        self.sql = load_queries()
        self.dsn = dsn
        self.listen_dsn = listen_dsn
        self.pooled = False
        self._settings = settings.database
        self._pool: asyncpg.Pool | None = None
        self._readers: asyncpg.Pool | None = None
        self.confined = True  # until the server refuses the role: fetch_as then reads like fetch

    @property
    def pool(self) -> asyncpg.Pool:
        if self._pool is None:
            raise Unavailable("The database is not open.", data={"retry_after_s": _RETRY_AFTER_S})
        return self._pool

    @property
    def can_listen(self) -> bool:
        """Whether LISTEN delivers: not through a transaction pooler without a direct DSN."""
        return not self.pooled or self.listen_dsn is not None

    async def open(self) -> None:
        """Find out what stands at the other end, then open the pool.

        Errors: Unavailable; Misconfigured when the server refuses the user, password or database.
        """
        with translate_errors(), translate_refusals(self.dsn):
            self.pooled = await self._detect_pooler()
            self._pool = await self._create_pool("listingd", min_size=min(2, self._settings.pool_size))
            # Sessions of their own: a plan is thrown away when its session's role changes.
            self._readers = await self._create_pool("listingd:reader", min_size=0)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Close all connections of the pools, with force after `timeout_s` seconds."""
        pools = [pool for pool in (self._pool, self._readers) if pool is not None]
        self._pool = self._readers = None
        try:
            # asyncpg's close() waits for ever on a half-open connection.
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(pool.close() for pool in pools))
        except TimeoutError:
            for pool in pools:
                pool.terminate()

    async def __aenter__(self) -> Database:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def fetch(self, name: str, *args: Any) -> list[asyncpg.Record]:
        """All rows of the statement called `name`. Errors: Unavailable."""
        with translate_errors():
            rows: list[asyncpg.Record] = await self.pool.fetch(self.sql[name], *args)
            return rows

    async def fetchrow(self, name: str, *args: Any) -> asyncpg.Record | None:
        """The first row, or None. Errors: Unavailable."""
        with translate_errors():
            return await self.pool.fetchrow(self.sql[name], *args)

    async def fetchval(self, name: str, *args: Any) -> Any:
        """The first column of the first row, or None. Errors: Unavailable."""
        with translate_errors():
            return await self.pool.fetchval(self.sql[name], *args)

    async def fetch_as(self, user_id: str | None, name: str, *args: Any) -> list[asyncpg.Record]:
        """As fetch, but the server shows this user's rows alone, whatever the statement asks for; None: all rows.

        The second wall (sql/functions/grant_roles.sql): a role that is behind row level security. Costs 0.2 ms
        (three more round trips). Where the server has no such role the first wall, the statement's own user_id,
        stands alone, and one line says so. Errors: Unavailable.
        """
        if user_id is None or not self.confined or self._readers is None:
            return await self.fetch(name, *args)
        with translate_errors():
            async with (
                self._readers.acquire(timeout=self._settings.connect_timeout_s) as connection,
                connection.transaction(),
            ):
                try:
                    await connection.fetchrow(self.sql["confine_reads"], user_id)
                except _NO_ROLE as exc:
                    self.confined = False
                    log.warning("database.unconfined", error=str(exc))
                else:
                    rows: list[asyncpg.Record] = await connection.fetch(self.sql[name], *args)
                    return rows
        return await self.fetch(name, *args)

    async def _create_pool(self, application_name: str, *, min_size: int) -> asyncpg.Pool:
        return await asyncpg.create_pool(
            self.dsn,
            min_size=min_size,
            max_size=self._settings.pool_size,
            max_queries=10_000_000,
            init=self._prepare_session,
            reset=_keep_session,
            **self._connect_arguments(application_name),
        )

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """A connection of the pool for the length of the block. Errors: Unavailable."""
        with translate_errors():
            async with self.pool.acquire(timeout=self._settings.connect_timeout_s) as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction that the end of the block commits. Errors: Unavailable."""
        async with self.acquire() as connection, connection.transaction():
            yield connection

    async def dedicated_connection(self, name: str, *, direct: bool = False) -> asyncpg.Connection:
        """A connection outside the pool, shown as `listingd:<name>` in pg_stat_activity; the caller ends it.

        With `direct`, by the listen DSN when there is one. End it with `terminate()` when in doubt:
        `close()` hangs on a half-open socket. Errors: Unavailable; Misconfigured when the DSN cannot be read.
        """
        dsn = self.listen_dsn if direct and self.listen_dsn else self.dsn
        variable = "LISTINGD_DATABASE_URL" if dsn == self.dsn else "LISTINGD_LISTEN_DATABASE_URL"
        pooled = self.pooled and dsn == self.dsn
        with translate_errors(), _translate_unreadable(dsn, variable):
            connection = await asyncpg.connect(
                dsn, **self._connect_arguments(f"listingd:{name}", pooled=pooled)
            )
            try:
                await self._prepare_session(connection, pooled=pooled)
            except BaseException:
                connection.terminate()
                raise
        return connection

    def _connect_arguments(self, application_name: str, *, pooled: bool | None = None) -> dict[str, Any]:
        pooled = self.pooled if pooled is None else pooled
        arguments: dict[str, Any] = {
            "timeout": self._settings.connect_timeout_s,
            # The server ends statements by itself; this one is for a server that has vanished.
            "command_timeout": self._settings.statement_timeout_s + 5,
            # PgBouncer refuses unknown startup parameters: the others are set by set_session.
            "server_settings": {"application_name": application_name},
            "statement_cache_size": 0 if pooled else 300,
            "max_cached_statement_lifetime": 0,
            "max_cacheable_statement_size": 0 if pooled else 64 * 1024,
        }
        if "target_session_attrs" not in self.dsn:
            arguments["target_session_attrs"] = "read-write"
        return arguments

    async def _prepare_session(self, connection: asyncpg.Connection, *, pooled: bool | None = None) -> None:
        """Bounds for a new session.

        Behind a transaction pooler they would leak to strangers: the role's own settings
        (docs/operations.md) must do there.
        """
        _keep_alive(connection)
        if self.pooled if pooled is None else pooled:
            return
        settings = self._settings
        await connection.fetchrow(
            self.sql["set_session"],
            f"{int(settings.statement_timeout_s * 1000)}ms",
            f"{int(settings.lock_timeout_s * 1000)}ms",
            f"{int(settings.idle_in_transaction_timeout_s * 1000)}ms",
        )
        with suppress(asyncpg.InvalidParameterValueError):  # not on every platform
            await connection.fetchrow(self.sql["set_client_check"])

    async def _detect_pooler(self) -> bool:
        arguments = self._connect_arguments("listingd:probe", pooled=True)
        first = await asyncpg.connect(self.dsn, **arguments)
        try:
            second = await asyncpg.connect(self.dsn, **arguments)
            try:
                return await detect_pooler(first, second, self.sql["backend_pid"])
            finally:
                second.terminate()
        finally:
            first.terminate()


async def detect_pooler(first: asyncpg.Connection, second: asyncpg.Connection, backend_pid: str) -> bool:
    """Whether the server session behind a connection changes between transactions.

    Two connections take turns: behind a transaction pooler the second is served by the session that the
    first has just left, or the first comes back to another one. A direct server and a session pooler keep
    each connection on its own.
    """
    rounds = 1 if await first.fetchval(backend_pid) == first.get_server_pid() else 5
    for _ in range(rounds):
        before = await first.fetchval(backend_pid)
        async with second.transaction():
            # Asked first: a pooler with a single session would make the next question wait for this transaction.
            if await second.fetchval(backend_pid) == before:
                return True
            if await first.fetchval(backend_pid) != before:
                return True
    return False


async def open_pool(settings: Settings, *, dsn: str | None = None) -> Database:
    """The database of the settings, or of `dsn` (the embedded one's), open.

    Errors: Misconfigured, Unavailable.
    """
    if dsn is None:
        if settings.database_url is None:
            raise Misconfigured("No database is set.", hint="Set LISTINGD_DATABASE_URL.")
        dsn = settings.database_url.get_secret_value()
    listen = settings.listen_database_url
    database = Database(settings, dsn=dsn, listen_dsn=listen.get_secret_value() if listen else None)
    await database.open()
    return database


async def _keep_session(connection: asyncpg.Connection) -> None:
    """Nothing: no statement of ours leaves session state behind.

    asyncpg has rolled back an open transaction before; its own reset costs a third of the throughput.
    """


def _keep_alive(connection: asyncpg.Connection) -> None:
    """Let the kernel find a half-open connection in 11 s; asyncpg leaves this off."""
    transport = cast("Any", connection)._transport  # noqa: SLF001 -- asyncpg has no public way to the socket
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # macOS names the first one differently
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
