"""Brings a database to the schema of this code: sql/migrations in order, then sql/functions.

Forward only. Each migration runs in a transaction of its own under one advisory lock, so two daemons may
start at once. A migration that waits for a busy table gives up its place after 500 ms and tries again:
an `alter table` in a lock queue would stop every claim behind it. The functions are replaced together when
the text of any of them has changed or a migration is new, and sql/grants.sql puts up roles and policies after
them; they stand as number 0 in listingd.schema_migrations.

Refused: PostgreSQL before 15, a migration edited after it was applied, a schema newer than this code.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from daemon.db import Connection, is_transient, load_queries, sql_dir, translate_errors, translate_refusals
from daemon.errors import Misconfigured, Unavailable

OLDEST_SERVER = 15
FUNCTIONS = 0
_LOCK_TIMEOUT = "500ms"
_TRIES = 20
_BUSY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file, or (number 0) all functions together. checksum: SHA-256, hex."""

    number: int
    name: str
    checksum: str
    text: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What a run changed."""

    number: int
    name: str


def list_migrations(directory: Path | None = None) -> list[Migration]:
    """All migrations by number, the functions last. Errors: Misconfigured for twins and odd names."""
    directory = directory or sql_dir()
    found = []
    for path in sorted((directory / "migrations").glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_([a-z0-9_]+)", path.stem)
        if match is None:
            raise Misconfigured(f"{path.name} is not named like 0001_name.sql.")
        text = path.read_text(encoding="utf-8")
        found.append(Migration(int(match[1]), match[2], _checksum(text), text))
    numbers = [migration.number for migration in found]
    if not found or FUNCTIONS in numbers or len(set(numbers)) < len(numbers):
        raise Misconfigured(f"The migrations in {directory} do not each have a number of their own.")
    paths = [*sorted((directory / "functions").glob("*.sql")), *directory.glob("grants.sql")]
    functions = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    # The number is part of it: the grants and policies of a new table stand in grants.sql.
    checksum = _checksum(f"{numbers[-1]}\n{functions}")
    return [*found, Migration(FUNCTIONS, "functions", checksum, functions)]


async def migrate(target: str | Connection, *, directory: Path | None = None) -> list[Applied]:
    """Apply what is missing; returns what was applied, empty when there was nothing to do.

    target: a DSN, or a connection outside any transaction.
    Errors: Misconfigured (see the module), Unavailable (no database, or its tables stay busy).
    """
    known = list_migrations(directory)
    with translate_errors():
        async with _connection(target) as connection:
            _require_version(connection)
            missing = await _find_missing(connection, known)  # none at nearly every start
            return [
                Applied(migration.number, migration.name)
                for migration in missing
                if await _apply_patiently(connection, migration, known)
            ]


async def pending(target: str | Connection, *, directory: Path | None = None) -> list[Migration]:
    """What migrate() would apply now. Changes nothing. Errors: as migrate()."""
    known = list_migrations(directory)
    with translate_errors():
        async with _connection(target) as connection:
            _require_version(connection)
            return await _find_missing(connection, known)


async def check_schema(target: str | Connection) -> None:
    """Return when the schema is the one this code works with.

    Errors: Misconfigured that says what to do (migrate, or install the newer release); Unavailable.
    """
    if missing := await pending(target):
        names = ", ".join(f"{m.number:04d}_{m.name}" if m.number else m.name for m in missing)
        raise Misconfigured(
            f"The database lacks: {names}.", code="schema_outdated", hint="Run `listingd migrate`."
        )


async def _apply_patiently(connection: Connection, migration: Migration, known: Sequence[Migration]) -> bool:
    for attempt in range(_TRIES):
        try:
            return await _apply(connection, migration, known)
        except _BUSY:
            await asyncio.sleep(random.uniform(0.05, 0.2) * (1 + attempt))
        except asyncpg.InsufficientPrivilegeError as exc:
            raise Misconfigured(
                f"This database user may not apply {migration.number:04d}_{migration.name}: {exc}.",
                code="migration_refused",
                hint="Run `listingd migrate` with the DSN of the schema's owner (docs/operations.md).",
            ) from exc
    raise Unavailable(
        f"The migration {migration.number:04d}_{migration.name} found its tables busy {_TRIES} times.",
        hint="Look for a long transaction in pg_stat_activity, then run `listingd migrate` again.",
        data={"retry_after_s": 30},
    )


async def _apply(connection: Connection, migration: Migration, known: Sequence[Migration]) -> bool:
    """Apply one migration unless another process just did. True when this call applied it."""
    sql = load_queries()
    # What another one did while we waited for the lock must be seen, whatever the database's default.
    async with connection.transaction(isolation="read_committed"):
        await connection.fetchrow(sql["lock_migrations"])
        await connection.execute(sql["create_schema"])
        await connection.execute(sql["create_schema_migrations"])
        if migration not in await _find_missing(connection, known):
            return False
        await connection.fetchrow(sql["set_migration_timeouts"], _LOCK_TIMEOUT)
        try:
            if migration.text.strip():  # asyncpg fails on an empty text
                await connection.execute(migration.text)
        except asyncpg.PostgresError as exc:
            if is_transient(exc) or isinstance(exc, asyncpg.InsufficientPrivilegeError):
                raise
            raise Misconfigured(
                f"The migration {migration.number:04d}_{migration.name} failed: {exc}.",
                hint="Nothing of it was kept. The database may hold objects that listingd did not make.",
            ) from exc
        await connection.execute(
            sql["record_migration"], migration.number, migration.name, migration.checksum
        )
    return True


async def _find_missing(connection: Connection, known: Sequence[Migration]) -> list[Migration]:
    """What of the known is not applied. Errors: Misconfigured when something else is."""
    done = await _read_applied(connection)
    _refuse_foreign(known, done)
    return [m for m in known if m.number not in done or done[m.number][1] != m.checksum]


async def _read_applied(connection: Connection) -> dict[int, tuple[str, str]]:
    """Number to (name, checksum) of what is applied. Errors: Misconfigured when it may not be read."""
    sql = load_queries()
    try:
        if not await connection.fetchval(sql["schema_migrations_exist"]):
            return {}
        rows = await connection.fetch(sql["list_migrations"])
    except asyncpg.InsufficientPrivilegeError as exc:
        raise Misconfigured(
            f"This database user may not look into the schema listingd: {exc}.",
            hint="Use the daemon's login, or grant it what sql/roles.sql does (docs/operations.md).",
        ) from exc
    return {row["number"]: (row["name"], row["checksum"]) for row in rows}


def _refuse_foreign(known: Sequence[Migration], done: dict[int, tuple[str, str]]) -> None:
    numbered = {m.number: m for m in known if m.number != FUNCTIONS}
    for number, (name, checksum) in done.items():
        if number == FUNCTIONS:
            continue
        if number not in numbered:
            raise Misconfigured(
                f"The database has migration {number:04d}_{name}, which this release does not know.",
                code="schema_newer",
                hint="Install the release that made it, or a newer one.",
            )
        if numbered[number].checksum != checksum:
            raise Misconfigured(
                f"The migration {number:04d}_{name} was changed after it had been applied.",
                code="schema_changed",
                hint="Restore the file; put the change into a new migration.",
            )


def _require_version(connection: Connection) -> None:
    version = connection.get_server_version()
    if version.major < OLDEST_SERVER:
        raise Misconfigured(
            f"PostgreSQL {version.major} is too old.",
            code="server_too_old",
            hint=f"listingd needs PostgreSQL {OLDEST_SERVER} or newer.",
        )


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@asynccontextmanager
async def _connection(target: str | Connection) -> AsyncIterator[Connection]:
    if not isinstance(target, str):
        yield target
        return
    arguments = {} if "target_session_attrs" in target else {"target_session_attrs": "read-write"}
    with translate_refusals(target):
        connection = await asyncpg.connect(
            target,
            timeout=10,
            statement_cache_size=0,  # works through a transaction pooler too
            server_settings={"application_name": "listingd:migrate"},
            **arguments,
        )
    try:
        yield connection
    finally:
        connection.terminate()
