"""sql/supabase.sql on a database with Supabase's roles, rights by default and auth schema, rebuilt here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from daemon.db import load_queries, sql_dir
from daemon.migrate import migrate
from tests.conftest import temporary_postgres, with_database
from tests.pg.test_roles import as_user

ADA, BOB = UUID(int=0xADA), UUID(int=0xB0B)

# What a project is born with. `platform` stands for Supabase's `postgres`: no superuser, but createrole and bypassrls.
PLATFORM = """
create role supabase_admin superuser;
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create role authenticator login noinherit;
create role platform login createrole createdb bypassrls;
grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role to platform with admin option;
create database project owner platform;
"""

PROJECT = """
create schema auth authorization supabase_admin;
create function auth.uid() returns uuid language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    )::uuid
$$;
alter function auth.uid() owner to supabase_admin;
grant usage on schema auth to anon, authenticated, service_role, platform;
grant usage on schema public to anon, authenticated, service_role;
grant create on schema public to platform;
alter default privileges for role platform in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges for role platform in schema public grant all on functions to anon, authenticated, service_role;
set session authorization platform;
create publication supabase_realtime;
reset session authorization;
"""


@pytest.fixture(scope="module")
def project() -> Iterator[str]:
    """The DSN of a Supabase project with listingd in it, installed twice."""

    async def install(server: str) -> str:
        admin = await asyncpg.connect(server)
        for statement in PLATFORM.strip().split(";\n"):
            await admin.execute(statement)
        await admin.close()
        dsn = with_database(server, "project")
        admin = await asyncpg.connect(dsn)
        await admin.execute(PROJECT)
        await admin.close()
        await migrate(as_user(dsn, "platform"))
        platform = await asyncpg.connect(as_user(dsn, "platform"))
        script = (sql_dir() / "supabase.sql").read_text()
        await platform.execute(script)
        await platform.execute(
            "select listingd.enqueue_job('image', user_id => 'somebody before the second run')"
        )
        before = await read_catalog(platform)
        await platform.execute(script)
        assert before == await read_catalog(platform), "a second run changes nothing"
        await platform.close()
        return dsn

    with temporary_postgres() as server:
        yield asyncio.run(install(server))


async def read_catalog(connection: asyncpg.Connection) -> list[Any]:
    """What the script makes: relations with their rights, functions, policies, triggers, the publication."""
    return [
        await connection.fetch(query)
        for query in (
            (
                "select oid::regclass::text, array(select a::text from unnest(relacl) as a order by 1), relrowsecurity from pg_class where relkind in ('r', 'v') and"
                " relnamespace::regnamespace::text in ('listingd', 'public') order by 1"
            ),
            (
                "select oid::regprocedure::text, array(select a::text from unnest(proacl) as a order by 1) from pg_proc"
                " where pronamespace::regnamespace::text in ('listingd', 'public') order by 1"
            ),
            "select polrelid::regclass::text, polname, polroles::text, pg_get_expr(polqual, polrelid) from pg_policy order by 1, 2",
            "select tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) from pg_trigger where not tgisinternal order by 1, 2",
            "select schemaname, tablename from pg_publication_tables order by 1, 2",
            "select count(*) from listingd.job_board",
        )
    ]


class PostgREST:
    """The statements that PostgREST sends, in a transaction of the role and claims of the caller's token."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def request(self, role: str, user: UUID | None) -> AsyncIterator[asyncpg.Connection]:
        claims = {"role": role} | ({} if user is None else {"sub": str(user)})
        async with self._connection.transaction():
            await self._connection.execute(
                "select set_config('search_path', 'public', true), set_config('role', $1, true),"
                " set_config('request.jwt.claims', $2, true)",
                role, json.dumps(claims),
            )  # fmt: skip
            yield self._connection

    async def rpc(
        self, name: str, arguments: Mapping[str, Any], *, role: str = "authenticated", user: UUID | None = ADA
    ) -> list[Any]:
        """POST /rpc/<name>: named arguments from a JSON body, the rest by their defaults."""
        async with self.request(role, user) as connection:
            types = await connection.fetchrow(
                "select p.proargnames, array(select format_type(t, null) from unnest(p.proargtypes) as t) as types"
                " from pg_proc as p where p.proname = $1 and p.pronamespace = 'public'::regnamespace",
                name,
            )
            known = dict(zip(types["proargnames"], types["types"], strict=False))
            columns = ", ".join(f'"{a}" {known.get(a, "text")}' for a in arguments)
            body = f"lateral (select * from json_to_record(pgrst_payload.json_data) as _({columns})) as pgrst_body, "
            named = ", ".join(f'"{a}" := pgrst_body."{a}"' for a in arguments)
            rows = await connection.fetch(
                f"with pgrst_source as (select f.* from (select $1::json as json_data) as pgrst_payload,"
                f' {body if arguments else ""}lateral "public"."{name}"({named}) as f)'
                " select row_to_json(_postgrest_t)::text from (select * from pgrst_source) as _postgrest_t",
                json.dumps(arguments),
            )
            return [
                next(iter(r.values())) if set(r) == {"f"} else r for r in (json.loads(row[0]) for row in rows)
            ]

    async def get(self, table: str, *, role: str = "authenticated", user: UUID | None = ADA) -> list[Any]:
        """GET /<table>."""
        async with self.request(role, user) as connection:
            rows = await connection.fetch(f"select row_to_json(t)::text from {table} as t")
            return [json.loads(row[0]) for row in rows]


@pytest.fixture
async def platform(project: str) -> AsyncIterator[asyncpg.Connection]:
    """The owner, after emptying the queue."""
    connection = await asyncpg.connect(as_user(project, "platform"))
    await connection.execute(
        "delete from listingd.jobs; delete from listingd.job_states; delete from listingd.workers"
    )
    yield connection
    await connection.close()


@pytest.fixture
async def rest(project: str, platform: asyncpg.Connection) -> AsyncIterator[PostgREST]:
    connection = await asyncpg.connect(as_user(project, "authenticator"))
    yield PostgREST(connection)
    await connection.close()


IMAGE = {"kind": "image", "input": {"product": {"title": "A mug"}}}


async def test_a_user_enqueues_as_themselves_with_defaults(
    rest: PostgREST, platform: asyncpg.Connection
) -> None:
    (job,) = await rest.rpc("enqueue_listing_job", IMAGE)
    (other,) = await rest.rpc(
        "enqueue_listing_job", IMAGE | {"priority": 5, "tags": ["sale"], "metadata": {"a": 1}}, user=BOB
    )

    rows = await platform.fetch(
        "select id::text, user_id, kind, priority, max_attempts, tags from listingd.jobs order by id"
    )
    assert [
        (job, str(ADA), "image", 0, 4, []),
        (other, str(BOB), "image", 5, 4, ["sale"]),
    ] == [tuple(row) for row in rows]


async def test_nobody_enqueues_for_somebody_else(rest: PostgREST) -> None:
    with pytest.raises(asyncpg.UndefinedFunctionError):
        await rest.rpc("enqueue_listing_job", IMAGE | {"user_id": str(BOB)})
    for role, user in (("anon", None), ("anon", ADA), ("authenticated", None)):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await rest.rpc("enqueue_listing_job", IMAGE, role=role, user=user)


async def test_nobody_enqueues_into_the_project_of_somebody_else(
    rest: PostgREST, platform: asyncpg.Connection
) -> None:
    """Its budget would pay, or be used up."""
    project = uuid4()
    await platform.execute("insert into listingd.projects (id, user_id) values ($1, $2)", project, str(BOB))

    with pytest.raises(asyncpg.InvalidParameterValueError):
        await rest.rpc("enqueue_listing_job", IMAGE | {"project_id": str(project)})
    assert await rest.rpc("enqueue_listing_job", IMAGE | {"project_id": str(project)}, user=BOB)


@pytest.mark.parametrize("kind", ["ping", "webhook", None, "Image; drop table"])
async def test_only_the_kinds_of_listings_are_offered(rest: PostgREST, kind: str | None) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await rest.rpc("enqueue_listing_job", {"kind": kind, "input": {}})


async def test_one_user_cannot_fill_the_queue(rest: PostgREST, platform: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.ProgramLimitExceededError):
        await rest.rpc("enqueue_listing_job", {"kind": "image", "input": {"x": "x" * 1_100_000}})
    await platform.execute(
        "select listingd.enqueue_jobs((select jsonb_agg(jsonb_build_object('kind', 'image', 'user_id', $1::text))"
        " from generate_series(1, 1000)))",
        str(ADA),
    )
    with pytest.raises(asyncpg.ProgramLimitExceededError):
        await rest.rpc("enqueue_listing_job", IMAGE)
    assert await rest.rpc("enqueue_listing_job", IMAGE, user=BOB)


async def store_everything(platform: asyncpg.Connection, user: UUID) -> UUID:
    job_id: UUID = await platform.fetchval(
        "select listingd.enqueue_job('image', user_id => $1, project_id => $2)", str(user), uuid4()
    )
    await platform.execute(
        """
        insert into listingd.projects (id, user_id) select j.project_id, j.user_id from listingd.jobs as j where j.id = $1
        """,
        job_id,
    )
    await platform.execute(
        """
        insert into listingd.assets (id, job_id, user_id, project_id, role, content_type, size_bytes, sha256, version)
        select gen_random_uuid(), j.id, j.user_id, j.project_id, 'image', 'image/png', 1, 'x', 2
        from listingd.jobs as j where j.id = $1
        """,
        job_id,
    )
    await platform.execute(
        """
        insert into listingd.aplus_contents (id, job_id, user_id, project_id, locale, document)
        select gen_random_uuid(), j.id, j.user_id, j.project_id, 'en-US', '{}' from listingd.jobs as j where j.id = $1
        """,
        job_id,
    )
    return job_id


READABLE = (
    "listing_jobs", "listing_images", "listing_aplus_contents", "listingd.jobs", "listingd.job_states",
    "listingd.job_board", "listingd.projects", "listingd.assets", "listingd.generated_images", "listingd.aplus_contents",
)  # fmt: skip


async def test_a_user_reads_own_rows_and_nothing_of_others(
    rest: PostgREST, platform: asyncpg.Connection
) -> None:
    await platform.execute(
        "delete from listingd.projects; delete from listingd.assets; delete from listingd.aplus_contents"
    )
    for user in (ADA, BOB):
        await store_everything(platform, user)

    for table in READABLE:
        mine = await rest.get(table)
        assert [str(ADA)] == [row["user_id"] for row in mine], table
        assert 2 == len(await rest.get(table, role="service_role", user=None)), table
        assert [] == await rest.get(table, user=None), table
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await rest.get(table, role="anon", user=None)


async def test_the_view_has_the_old_names(rest: PostgREST, platform: asyncpg.Connection) -> None:
    job_id = await store_everything(platform, ADA)
    await platform.execute(
        "update listingd.job_states set state = 'processing', progress = '{\"done\": 1, \"total\": 3}', started_at = now()"
        " where id = $1",
        job_id,
    )

    (row,) = await rest.get("listing_jobs")

    assert [
        "id", "user_id", "project_id", "job_type", "status", "progress", "payload", "result", "error_message",
        "error_code", "attempts", "max_attempts", "priority", "parent_id", "slot", "metadata", "created_at",
        "started_at", "completed_at", "updated_at",
    ] == list(row)  # fmt: skip
    assert ("image", "processing", 33, None) == (
        row["job_type"], row["status"], row["progress"], row["completed_at"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "insert into listingd.jobs (id, kind, input) values (gen_random_uuid(), 'image', '{}')",
        "update listingd.job_states set state = 'completed'",
        "delete from listingd.jobs",
        "update listing_images set slot = 'x'",
        "select * from listingd.service_keys",
        "select * from listingd.webhook_secrets",
        "select * from listingd.spend",
        "select listingd.enqueue_job('ping')",
        "select listingd.cancel_job(gen_random_uuid())",
        "select * from get_next_job()",
        "select * from mark_job_completed(1)",
    ],
)
@pytest.mark.parametrize("role", ["anon", "authenticated"])
async def test_a_browser_may_do_nothing_else(rest: PostgREST, role: str, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with rest.request(role, ADA) as connection:
            await connection.execute(statement)


async def test_a_careless_grant_opens_nothing(rest: PostgREST, platform: asyncpg.Connection) -> None:
    """Supabase's guide to own schemas grants all on all tables."""
    await store_everything(platform, BOB)
    tables = [
        row[0]
        for row in await platform.fetch(
            "select oid::regclass::text from pg_class where relnamespace = 'listingd'::regnamespace and relkind = 'r'"
        )
    ]
    await platform.execute("grant all on all tables in schema listingd to anon, authenticated")
    await platform.execute("grant usage on schema listingd to anon")
    try:
        for role in ("anon", "authenticated"):
            for table in tables:
                assert [] == await rest.get(table, role=role, user=uuid4()), table
            async with rest.request(role, uuid4()) as connection:
                assert "DELETE 0" == await connection.execute("delete from listingd.jobs")
    finally:
        await platform.execute((sql_dir() / "supabase.sql").read_text())
        await platform.execute("revoke usage on schema listingd from anon")


async def test_cancel_and_retry_reach_own_jobs_alone(rest: PostgREST) -> None:
    (job,) = await rest.rpc("enqueue_listing_job", IMAGE)

    for call in ("cancel_listing_job", "retry_listing_job"):
        assert [] == [state for state in await rest.rpc(call, {"job_id": job}, user=BOB) if state is not None]
    assert ["cancelled"] == await rest.rpc("cancel_listing_job", {"job_id": job})
    assert ["pending"] == await rest.rpc("retry_listing_job", {"job_id": job})


async def test_the_old_chain_goes_on_and_is_fenced(rest: PostgREST, platform: asyncpg.Connection) -> None:
    """A worker whose lease ran out writes nothing over its successor's work."""
    service: dict[str, Any] = {"role": "service_role", "user": None}
    (job,) = await rest.rpc("enqueue_listing_job", IMAGE)

    (seen,) = await rest.rpc("get_next_job", {}, **service)
    (claimed,) = await rest.rpc("mark_job_processing", {"job_id": seen["id"]}, **service)
    again = await rest.rpc("mark_job_processing", {"job_id": seen["id"]}, **service)
    await platform.execute("update listingd.workers set lease_until = now()")
    await platform.execute("select listingd.rescue_jobs(5, null, 0)")
    late = await rest.rpc(
        "mark_job_completed", {"own_fence": claimed["fence"], "result": {"late": True}}, **service
    )
    late_failure = await rest.rpc(
        "mark_job_failed", {"own_fence": claimed["fence"], "error_message": "late"}, **service
    )
    (second,) = await rest.rpc("get_next_job", {}, **service)
    (mine,) = await rest.rpc(
        "mark_job_processing", {"job_id": second["id"], "own_fence": second["fence"]}, **service
    )
    done = await rest.rpc(
        "mark_job_completed", {"own_fence": mine["fence"], "result": {"ok": True}}, **service
    )

    assert [job, job, job] == [seen["id"], claimed["id"], mine["id"]]
    assert mine["fence"] > claimed["fence"]
    assert [] == again
    assert ([None], [None], [job]) == (late, late_failure, done)
    (row,) = await rest.get("listing_jobs")
    assert ("completed", {"ok": True}, 100) == (row["status"], row["result"], row["progress"])


async def test_realtime_hears_of_states_and_not_of_percents(platform: asyncpg.Connection) -> None:
    """Each change of the board travels to every browser that listens."""
    job_id = await store_everything(platform, ADA)
    queries = load_queries()
    changes = []

    async def look() -> None:
        changes.append(tuple(await platform.fetchrow(
            "select state, xmin::text::bigint from listingd.job_board where id = $1", job_id
        )))  # fmt: skip

    await look()
    claimed = await platform.fetchrow("select fence from listingd.mark_job_processing($1)", job_id)
    await look()
    worker = await platform.fetchval("select worker from listingd.job_states where id = $1", job_id)
    for percent in range(0, 100, 10):
        reported = await platform.fetch(
            queries["report_progress"],
            [claimed["fence"]],
            [json.dumps({"done": percent, "total": 100})],
            worker,
        )
        assert 1 == len(reported)
    await look()
    await platform.execute("select listingd.mark_job_completed($1)", claimed["fence"])
    await look()

    assert ["pending", "processing", "processing", "completed"] == [state for state, _ in changes]
    assert changes[1] == changes[2]
    published = await platform.fetch(
        "select t.schemaname || '.' || t.tablename, c.relreplident::text from pg_publication_tables as t"
        " join pg_class as c on c.oid = (t.schemaname || '.' || t.tablename)::regclass where t.pubname = 'supabase_realtime'"
    )
    assert [("listingd.job_board", "d")] == [tuple(row) for row in published]
    board = await platform.fetchrow("select * from listingd.job_board where id = $1", job_id)
    assert board["project_id"] is not None
    await platform.execute("delete from listingd.jobs where id = $1", job_id)
    assert not await platform.fetchval("select exists (select from listingd.job_board where id = $1)", job_id)


async def test_without_supabase_the_script_says_so(database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        with pytest.raises(asyncpg.RaiseError, match="no Supabase roles"):
            await connection.execute((sql_dir() / "supabase.sql").read_text())
    finally:
        await connection.close()
