"""The migration runner against real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner

from daemon.cli import commands
from daemon.db import load_queries
from daemon.errors import Misconfigured
from daemon.migrate import Applied, check_schema, list_migrations, migrate, pending
from tests.conftest import with_database

NewDatabase = Callable[..., Awaitable[str]]


def _write(directory: Path, migrations: dict[str, str], functions: dict[str, str] | None = None) -> Path:
    for folder, files in (("migrations", migrations), ("functions", functions or {})):
        (directory / folder).mkdir(exist_ok=True)
        for name, text in files.items():
            (directory / folder / name).write_text(text)
    return directory


async def _fetchval(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_an_empty_database_gets_everything_and_a_second_run_nothing(new_database: NewDatabase) -> None:
    dsn = await new_database()

    first = await migrate(dsn)
    second = await migrate(dsn)

    assert [m.number for m in list_migrations()] == [a.number for a in first]
    assert [] == second
    assert [] == await pending(dsn)


async def test_two_runs_at_once_apply_each_migration_once(new_database: NewDatabase) -> None:
    dsn = await new_database()

    runs = await asyncio.gather(*(migrate(dsn) for _ in range(3)))

    assert sorted(m.number for m in list_migrations()) == sorted(a.number for run in runs for a in run)


async def test_two_runs_at_once_see_each_other_in_a_database_with_strict_defaults(
    new_database: NewDatabase,
) -> None:
    dsn = await new_database()
    connection = await asyncpg.connect(dsn)
    name = await connection.fetchval("select current_database()")
    await connection.execute(f"alter database {name} set default_transaction_isolation = 'repeatable read'")
    await connection.close()

    runs = await asyncio.gather(*(migrate(dsn) for _ in range(3)))

    assert sorted(m.number for m in list_migrations()) == sorted(a.number for run in runs for a in run)


async def test_an_outdated_schema_is_named_before_it_is_used(new_database: NewDatabase) -> None:
    dsn = await new_database()

    with pytest.raises(Misconfigured, match="listingd migrate") as caught:
        await check_schema(dsn)

    assert "schema_outdated" == caught.value.code


async def test_pending_changes_nothing(new_database: NewDatabase) -> None:
    dsn = await new_database()

    found = await pending(dsn)

    assert list_migrations() == found
    assert await _fetchval(dsn, "select to_regnamespace('listingd') is null")


async def test_a_server_that_refuses_us_is_told_to_the_operator(new_database: NewDatabase) -> None:
    dsn = await new_database()

    with pytest.raises(Misconfigured, match="refuses us"):
        await migrate(with_database(dsn, "no_such_database"))
    with pytest.raises(Misconfigured, match="cannot be read"):
        await migrate("postgresql://somebody:hidden@localhost:port/x")


def test_the_command_names_a_database_that_is_down() -> None:
    env = {"LISTINGD_DATABASE_URL": "postgresql://somebody:hidden@127.0.0.1:1/x"}

    ended = CliRunner().invoke(commands, ["migrate"], env=env)

    assert 1 == ended.exit_code
    assert "The database does not answer" in ended.stderr
    assert "correct LISTINGD_DATABASE_URL" in ended.stderr
    assert "hidden" not in ended.output


async def test_an_edited_migration_is_refused(new_database: NewDatabase, tmp_path: Path) -> None:
    dsn = await new_database()
    _write(tmp_path, {"0001_a.sql": "create table listingd.a (id int)"})
    await migrate(dsn, directory=tmp_path)
    _write(tmp_path, {"0001_a.sql": "create table listingd.a (id bigint)"})

    with pytest.raises(Misconfigured, match="0001_a was changed"):
        await migrate(dsn, directory=tmp_path)
    with pytest.raises(Misconfigured, match="0001_a was changed"):
        await pending(dsn, directory=tmp_path)


async def test_a_newer_schema_is_refused(new_database: NewDatabase, tmp_path: Path) -> None:
    dsn = await new_database()
    _write(tmp_path, {"0001_a.sql": "select 1", "0002_b.sql": "select 2"})
    await migrate(dsn, directory=tmp_path)
    (tmp_path / "migrations" / "0002_b.sql").unlink()

    with pytest.raises(Misconfigured, match="0002_b, which this release does not know"):
        await migrate(dsn, directory=tmp_path)


async def test_a_failing_migration_leaves_nothing_and_keeps_what_came_before(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    dsn = await new_database()
    broken = "create table listingd.b (id int); select 1/0"
    _write(tmp_path, {"0001_a.sql": "create table listingd.a (id int)", "0002_b.sql": broken})

    with pytest.raises(Misconfigured, match="0002_b failed"):
        await migrate(dsn, directory=tmp_path)

    assert await _fetchval(dsn, "select to_regclass('listingd.a') is not null")
    assert await _fetchval(dsn, "select to_regclass('listingd.b') is null")


async def test_functions_are_replaced_when_their_text_changes(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    dsn = await new_database()
    one = "create or replace function listingd.answer() returns int language sql as 'select 1'"
    _write(tmp_path, {"0001_a.sql": "select 1"}, {"answer.sql": one})
    await migrate(dsn, directory=tmp_path)
    _write(tmp_path, {}, {"answer.sql": one.replace("select 1", "select 2")})

    applied = await migrate(dsn, directory=tmp_path)

    assert [Applied(0, "functions")] == applied
    assert 2 == await _fetchval(dsn, "select listingd.answer()")


async def test_a_busy_table_is_waited_for_without_queueing_on_its_lock(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    """An `alter table` that waits in line stops everybody behind it; ours steps back every 500 ms."""
    dsn = await new_database()
    _write(tmp_path, {"0001_a.sql": "create table listingd.a (id int)"})
    await migrate(dsn, directory=tmp_path)
    _write(tmp_path, {"0002_b.sql": "alter table listingd.a add column b int"})
    reader = await asyncpg.connect(dsn)
    transaction = reader.transaction()
    await transaction.start()
    await reader.execute("select * from listingd.a")

    run = asyncio.ensure_future(migrate(dsn, directory=tmp_path))
    # Its first try has been given up when a lock has been asked for and is gone again.
    await _wait_for_lock(dsn, wanted=True)
    await _wait_for_lock(dsn, wanted=False)
    await transaction.rollback()
    await reader.close()

    assert [Applied(2, "b"), Applied(0, "functions")] == await run


async def _wait_for_lock(dsn: str, *, wanted: bool) -> None:
    from tests.support import eventually

    watcher = await asyncpg.connect(dsn)
    query = "select exists (select from pg_locks where not granted and relation = 'listingd.a'::regclass)"

    async def seen() -> bool:
        return bool(await watcher.fetchval(query)) is wanted

    try:
        await eventually(seen, within_s=10)
    finally:
        await watcher.close()


def test_twins_and_odd_names_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, {"0001_a.sql": "", "0001_b.sql": ""})
    with pytest.raises(Misconfigured, match="a number of their own"):
        list_migrations(tmp_path)

    _write(tmp_path, {"nonsense.sql": ""})
    with pytest.raises(Misconfigured, match="nonsense"):
        list_migrations(tmp_path)


async def test_every_named_statement_is_prepared_by_the_server(database: str) -> None:
    """A typing error in a statement shows here, not at three in the morning."""
    connection = await asyncpg.connect(database)
    failures = {}
    try:
        for name, text in load_queries().items():
            try:
                await connection.prepare(text)
            except asyncpg.PostgresError as exc:
                failures[name] = str(exc)
    finally:
        await connection.close()

    assert {} == failures


def test_migrations_are_numbered_without_gaps() -> None:
    """A gap is a migration that somebody else has and we do not."""
    numbers = [migration.number for migration in list_migrations()[:-1]]

    assert list(range(1, len(numbers) + 1)) == numbers
