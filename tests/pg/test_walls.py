"""Row level security as the second wall, and roles with no more rights than they need."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from uuid import UUID

import asyncpg
import pytest

from daemon.db import Database
from daemon.errors import Misconfigured
from daemon.jobs import new_id
from daemon.migrate import check_schema, migrate
from daemon.views import JobFilter, Views

NewDatabase = Callable[..., Awaitable[str]]

READER_TABLES = ("aplus_contents", "assets", "attempts", "job_states", "jobs", "projects", "steps")


async def store(db: Database, user_id: str) -> UUID:
    """A failed job of a user with a row in every table that a user may read."""
    job_id: UUID = await db.pool.fetchval(
        "select listingd.enqueue_job('image', user_id => $1, project_id => $2)", user_id, new_id()
    )
    claimed = await db.pool.fetchrow(
        "select fence from listingd.mark_jobs_processing('w', array(select fence from listingd.job_states where id = $1))",
        job_id,
    )
    await db.pool.execute(
        "select listingd.mark_job_failed($1, 'broken', 'It broke.', false)", claimed["fence"]
    )
    await db.pool.execute(
        """
        with mine as (select j.id, j.user_id, j.project_id from listingd.jobs as j where j.id = $1),
        kept as (
            insert into listingd.projects (id, user_id) select m.project_id, m.user_id from mine as m
        ),
        drawn as (
            insert into listingd.assets (id, job_id, user_id, project_id, role, content_type, size_bytes, sha256, version)
            select gen_random_uuid(), m.id, m.user_id, m.project_id, 'image', 'image/png', 1, 'x', 2 from mine as m
        ),
        written as (
            insert into listingd.aplus_contents (id, job_id, project_id, user_id, locale, document)
            select gen_random_uuid(), m.id, m.project_id, m.user_id, 'en-US', '{}' from mine as m
        )
        insert into listingd.steps (id, user_id, job_id, kind, name, provider, worker, fence, reserved_on)
        select gen_random_uuid(), m.user_id, m.id, 'image', 'paint', 'p', 1, 1, current_date from mine as m
        """,
        job_id,
    )
    return job_id


def with_statement(db: Database, name: str, text: str) -> None:
    """Give a database a further named statement."""
    db.sql = {**db.sql, name: text}


@pytest.mark.parametrize("table", READER_TABLES)
async def test_a_read_that_forgot_its_where_shows_own_rows_alone(db: Database, table: str) -> None:
    """P13, should a statement ever be written wrong."""
    mine, theirs = await store(db, "me"), await store(db, "somebody else")
    key = "id" if table in {"job_states", "jobs"} else "job_id"
    with_statement(db, "everything", f"select * from listingd.{table}")

    rows = await db.fetch_as("me", "everything")
    all_rows = await db.fetch_as(None, "everything")

    assert 1 == len(rows)
    assert 2 == len(all_rows)
    if table != "projects":
        assert [mine] == [row[key] for row in rows]
        assert {mine, theirs} == {row[key] for row in all_rows}
    assert db.confined


async def test_nobody_is_nobody(db: Database) -> None:
    """A session that forgot to say for whom it reads sees nothing."""
    await store(db, "me")

    async with db.acquire() as connection, connection.transaction():
        await connection.execute("set local role listingd_reader")
        assert 0 == await connection.fetchval("select count(*) from listingd.jobs")


@pytest.mark.parametrize(
    "statement",
    [
        "select * from listingd.service_keys",
        "select * from listingd.webhook_secrets",
        "select * from listingd.idempotency_keys",
        "update listingd.jobs set priority = 1",
        "delete from listingd.assets",
        "select listingd.cancel_job('00000000-0000-0000-0000-000000000000')",
    ],
)
async def test_a_read_for_a_user_can_only_read_what_is_theirs(db: Database, statement: str) -> None:
    with_statement(db, "forbidden", statement)

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await db.fetch_as("me", "forbidden")
    assert db.confined, "a missing right is a bug of ours and opens nothing"


async def test_every_read_of_the_api_works_behind_the_wall(db: Database) -> None:
    """The reader has the rights that the statements need, and the answers are the same as without it."""
    job_id = await store(db, "me")
    waiting = await db.pool.fetchval("select listingd.enqueue_job('image', user_id => 'me')")
    file_id = await db.pool.fetchval("select id from listingd.assets where job_id = $1", job_id)
    project_id = await db.pool.fetchval("select project_id from listingd.jobs where id = $1", job_id)
    views = Views(db)

    for user in ("me", None):
        job = await views.read_job(job_id, user)
        assert job is not None
        assert "broken" == json.loads(job.fields["error"])["code"]
        assert 1 == len(json.loads(job.fields["assets"]))
        pending = await views.read_job(waiting, user)
        assert pending is not None
        assert "0" == pending.fields["queue_position"]
        assert 2 == len((await views.list_jobs(JobFilter(user_id=user), limit=10)).jobs)
        assert 1 == len(
            (await views.list_jobs(JobFilter(user_id=user, project_id=project_id), limit=10)).jobs
        )
        assert [] == (await views.list_jobs(JobFilter(user_id=user, parent_id=job_id), limit=10)).jobs
        assert ([waiting], False) == await views.list_open(JobFilter(user_id=user), since=None, limit=10)
        assert await views.read_file(file_id, user) is not None
        assert [file_id] == [file.id for file in await views.list_files(job_id, user)]
        assert "{}" == await views.read_document(job_id, user)
        assert ("me", project_id, None) == await views.find_owner(job_id, user)
        project = await views.read_project(project_id, user)
        assert project is not None
        assert 1 == len(json.loads(project)["images"])
    assert db.confined


async def test_the_place_in_the_queue_counts_everybodys_jobs(db: Database) -> None:
    await db.pool.execute("select listingd.enqueue_job('image', user_id => 'somebody else')")
    mine = await db.pool.fetchval("select listingd.enqueue_job('image', user_id => 'me')")

    job = await Views(db).read_job(mine, "me")

    assert job is not None
    assert "1" == job.fields["queue_position"]


async def test_reads_of_two_users_at_once_do_not_mix(db: Database) -> None:
    jobs = {user: await store(db, user) for user in ("a", "b", "c")}
    with_statement(db, "everything", "select id from listingd.jobs")

    answers = await asyncio.gather(*(db.fetch_as(user, "everything") for user in list(jobs) * 20))

    assert [[jobs[user]] for user in list(jobs) * 20] == [[row["id"] for row in rows] for rows in answers]


async def test_every_table_is_walled(db: Database) -> None:
    """A careless `grant … on all tables` to a browser's role must show nothing."""
    rows = await db.pool.fetch(
        "select c.relname from pg_class as c where c.relnamespace = 'listingd'::regnamespace"
        " and c.relkind in ('r', 'p') and (not c.relrowsecurity or not exists ("
        " select from pg_policy as p where p.polrelid = c.oid and p.polname = 'listingd_daemon'))"
    )
    readable = await db.pool.fetch(
        "select c.relname, exists (select from pg_policy as p where p.polrelid = c.oid and p.polname = 'listingd_reader')"
        " from pg_class as c where c.relnamespace = 'listingd'::regnamespace and c.relkind in ('r', 'p')"
        " and has_table_privilege('listingd_reader', c.oid, 'select') order by 1"
    )

    assert [] == [row["relname"] for row in rows]
    assert [(name, True) for name in READER_TABLES] == [tuple(row) for row in readable]


async def test_the_daemons_policies_cost_nothing(db: Database) -> None:
    """`using (true)` leaves no filter in the plans of a login that is no owner."""
    async with db.acquire() as connection, connection.transaction():
        await connection.execute("set local role listingd_daemon")
        plan = await connection.fetch(
            "explain (costs off) update listingd.job_states set version = version where id = $1", new_id()
        )

    text = "\n".join(row[0] for row in plan)
    assert "current_setting" not in text
    assert "Filter" not in text


async def test_putting_up_the_walls_twice_changes_nothing(db: Database) -> None:
    query = "select polrelid::regclass::text, polname, polroles::text from pg_policy order by 1, 2"
    before = await db.pool.fetch(query)

    assert await db.pool.fetchval("select listingd.grant_roles()")
    assert before == await db.pool.fetch(query)


async def test_without_the_role_reads_go_on_and_say_so(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A database user that may not create roles still runs a daemon, with one wall."""
    mine = await store(db, "me")
    await store(db, "somebody else")
    db.sql = {
        **db.sql,
        "confine_reads": db.sql["confine_reads"].replace("listingd_reader", "listingd_no_such"),
    }

    jobs = await Views(db).read_jobs([mine], "me")

    assert [mine] == [job.id for job in jobs]
    assert not db.confined


async def test_a_user_without_any_right_is_told_so(database: str) -> None:
    """An app's login in LISTINGD_DATABASE_URL, say: serve, migrate and verify ended with a trace."""
    connection = await asyncpg.connect(database)
    login = f"ld_nobody_{new_id().hex}"
    await connection.execute(f"create role {login} login")
    try:
        await connection.execute(f"set session authorization {login}")
        with pytest.raises(Misconfigured, match="may not look into the schema listingd"):
            await check_schema(connection)
    finally:
        await connection.execute("reset session authorization")
        await connection.execute(f"drop role {login}")
        await connection.close()


async def test_a_user_without_the_right_is_told_who_may_migrate(
    new_database: NewDatabase,
) -> None:
    dsn = await new_database()
    connection = await asyncpg.connect(dsn)
    login = f"ld_nobody_{new_id().hex}"
    await connection.execute(f"create role {login} login")
    try:
        await connection.execute(f"set session authorization {login}")
        with pytest.raises(Misconfigured, match="may not apply") as caught:
            await migrate(connection)
        assert "migration_refused" == caught.value.code
    finally:
        await connection.execute("reset session authorization")
        await connection.execute(f"drop role {login}")
        await connection.close()
