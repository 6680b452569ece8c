"""The owner migrates, the daemon runs with row rights alone: sql/roles.sql on a server that never saw listingd."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import asyncpg
import pytest
from pydantic import SecretStr

from daemon.db import sql_dir
from daemon.jobs import State
from daemon.migrate import migrate
from daemon.service import run_service
from daemon.settings import Http, Settings
from daemon.views import JobFilter, Views
from tests.conftest import REPOSITORY, temporary_postgres, with_database
from tests.support import eventually


def as_user(dsn: str, login: str) -> str:
    """The same DSN for another login."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{login}@" + parts.netloc.rpartition("@")[2]))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of its own: roles belong to the whole server."""
    with temporary_postgres() as dsn:
        yield dsn


@pytest.fixture(scope="module")
def installed(server: str) -> str:
    """The DSN, for no login yet, of a database that the owner has migrated."""

    async def install() -> None:
        admin = await asyncpg.connect(server)
        await admin.execute("create database app")
        await admin.close()
        admin = await asyncpg.connect(with_database(server, "app"))
        script = (sql_dir() / "roles.sql").read_text()
        await admin.execute(script)
        await admin.execute(script)
        await admin.close()
        await migrate(as_user(with_database(server, "app"), "listingd_owner"))

    asyncio.run(install())
    return with_database(server, "app")


@pytest.fixture
async def daemon(installed: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(as_user(installed, "listingd"))
    yield connection
    await connection.close()


async def test_the_owner_needs_no_superuser(installed: str) -> None:
    connection = await asyncpg.connect(as_user(installed, "listingd_owner"))
    owner = await connection.fetchrow(
        "select r.rolsuper, r.rolcreaterole, r.rolbypassrls from pg_roles as r where r.rolname = current_user"
    )
    foreign = await connection.fetch(
        "select c.relname from pg_class as c where c.relnamespace = 'listingd'::regnamespace"
        " and pg_get_userbyid(c.relowner) <> 'listingd_owner'"
    )
    await connection.close()

    assert (False, False, False) == tuple(owner)
    assert [] == foreign


async def test_a_whole_daemon_runs_as_the_daemon_role(installed: str, settings: Settings) -> None:
    """Upload, picture with its paid steps, events, and a list behind the second wall: with granted rights alone."""
    own = settings.model_copy(
        update={
            "database_url": SecretStr(as_user(installed, "listingd")),
            "http": Http(port=0),
            "poll_s": 0.5,
        }
    )
    photo = (REPOSITORY / "examples" / "sample_photo.jpg").read_bytes()
    async with run_service(own) as service, aiohttp.ClientSession(service.url) as http:
        http.headers["Authorization"] = f"Bearer {service.service_key}"
        async with http.post(
            "/v1/uploads?user_id=u1", data=photo, headers={"Content-Type": "image/jpeg"}
        ) as answer:
            upload = await answer.json()
            assert 201 == answer.status, upload
        job = {
            "kind": "image", "user_id": "u1",
            "input": {"photo": {"upload_id": upload["upload_id"]}, "slot": "main", "product": {"title": "A mug"}},
        }  # fmt: skip
        async with http.post("/v1/jobs", json=job, headers={"Prefer": "wait=60"}) as answer:
            made = await answer.json()
            assert 200 == answer.status, made
        views = Views(service.db)
        seen = await views.list_jobs(JobFilter(user_id="u1"), limit=10)
        others = await views.list_jobs(JobFilter(user_id="u2"), limit=10)

        assert ("completed", 1) == (made["state"], len(made["assets"]))
        assert [State.COMPLETED] == [job.state for job in seen.jobs]
        assert [] == others.jobs
        assert service.db.confined
        assert "listingd" == await service.db.pool.fetchval("select current_user::text")
        # What else a daemon does: rescue, expiry, retention, steering.
        assert await service.db.fetch("rescue_jobs", 3, None, service.lease.worker_id) == []
        await service.queue.expire()
        assert await service.db.fetchrow("prune_jobs", ["completed"], 0.0, 10, None) is not None
        await eventually(lambda: not service.supervisor.down)


async def test_every_statement_is_allowed_to_the_daemon(daemon: asyncpg.Connection) -> None:
    """Prepared, planned and refused nothing: rights are checked when a plan starts."""
    from daemon.db import load_queries

    refused = {}
    for name, text in load_queries().items():
        if name in {"create_schema", "create_schema_migrations", "record_migration"}:
            continue  # the owner's
        transaction = daemon.transaction()
        await daemon.execute(f"prepare probe as {text}")
        await transaction.start()
        try:
            types = await daemon.fetchval(
                "select coalesce(string_agg('null::' || t, ', ' order by n), '') from pg_prepared_statements as p"
                " cross join unnest(p.parameter_types) with ordinality as u (t, n) where p.name = 'probe'"
            )
            await daemon.execute(f"explain execute probe{f'({types})' if types else ''}")
        except asyncpg.InsufficientPrivilegeError as exc:
            refused[name] = str(exc)
        finally:
            await transaction.rollback()
            await daemon.execute("deallocate probe")

    assert {} == refused


@pytest.mark.parametrize(
    "statement",
    [
        "drop table listingd.tombstones",
        "alter table listingd.jobs add column x int",
        "truncate listingd.attempts",
        "create table listingd.mine (id int)",
        "create function listingd.mine() returns int language sql as 'select 1'",
        "create schema mine",
        "alter table listingd.jobs disable row level security",
        "drop policy listingd_reader on listingd.jobs",
        "select listingd.grant_roles()",
        "delete from listingd.schema_migrations",
        "create role mine",
        "alter role listingd superuser",
        "select * from pg_authid",
    ],
)
async def test_the_daemon_changes_rows_and_nothing_else(daemon: asyncpg.Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await daemon.execute(statement)


async def test_the_daemons_sessions_are_bounded(daemon: asyncpg.Connection) -> None:
    """By the role, so that they hold behind a pooler too."""
    rows = await daemon.fetch(
        "select s.name, current_setting(s.name) from pg_settings as s where s.name = any($1)",
        [
            "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "jit",
            "client_connection_check_interval", "default_transaction_isolation", "search_path",
        ],
    )  # fmt: skip

    assert {
        "statement_timeout": "15s",
        "lock_timeout": "3s",
        "idle_in_transaction_session_timeout": "10s",
        "client_connection_check_interval": "2s",
        "jit": "off",
        "default_transaction_isolation": "read committed",
        "search_path": "pg_catalog, pg_temp",
    } == {row[0]: row[1] for row in rows}


async def test_an_app_enqueues_with_the_right_to_that_alone(installed: str, server: str) -> None:
    """In its own transaction, from a trigger on its own table."""
    admin = await asyncpg.connect(installed)
    await admin.execute(
        """
        create role app login;
        grant usage on schema listingd to app;
        grant execute on function listingd.enqueue_job to app;
        create schema shop authorization app;
        """
    )
    await admin.close()
    app = await asyncpg.connect(as_user(installed, "app"))
    try:
        await app.execute(
            """
            create table shop.products (id int primary key, title text, job uuid);
            create function shop.make_listing() returns trigger language plpgsql as $$
            begin
                new.job := listingd.enqueue_job(
                    'image', jsonb_build_object('product', jsonb_build_object('title', new.title)), user_id => 'shop'
                );
                return new;
            end $$;
            create trigger make_listing before insert on shop.products for each row execute function shop.make_listing();
            """
        )
        await app.execute("insert into shop.products (id, title) values (1, 'A mug')")
        job = await app.fetchval("select job from shop.products")
        transaction = app.transaction()
        await transaction.start()
        await app.execute("insert into shop.products (id, title) values (2, 'Never')")
        await transaction.rollback()
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.fetch("select * from listingd.jobs")
    finally:
        await app.close()
    daemon = await asyncpg.connect(as_user(installed, "listingd"))
    stored = await daemon.fetch("select id, input::text from listingd.jobs where user_id = 'shop'")
    await daemon.close()

    assert [(job, {"product": {"title": "A mug"}})] == [
        (row["id"], json.loads(row["input"])) for row in stored
    ]


async def test_without_createrole_an_owner_runs_everything_alone(server: str, settings: Settings) -> None:
    """The simplest installation: one login, no rights but on its own database; one wall, and a line that says so."""
    admin = await asyncpg.connect(server)
    await admin.execute("create role plain login")
    await admin.execute("create database plain owner plain")
    await admin.close()
    dsn = as_user(with_database(server, "plain"), "plain")
    own = settings.model_copy(update={"database_url": SecretStr(dsn), "http": Http(port=0)})

    async with run_service(own) as service, aiohttp.ClientSession(service.url) as http:
        http.headers["Authorization"] = f"Bearer {service.service_key}"
        job = {"kind": "ping", "user_id": "u1", "input": {"echo": 1}}
        async with http.post("/v1/jobs", json=job, headers={"Prefer": "wait=30"}) as answer:
            assert 200 == answer.status, await answer.text()
        assert 1 == len((await Views(service.db).list_jobs(JobFilter(user_id="u1"), limit=10)).jobs)
