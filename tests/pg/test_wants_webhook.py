"""A job that somebody wants to hear of is marked when it is stored, by every door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from daemon.creator import Creator
from daemon.db import Database
from daemon.jobs import NewJob, new_id
from daemon.queue import Queue

Door = Callable[[Database, str, Mapping[str, Any] | None], Awaitable[UUID]]


async def by_http(db: Database, user_id: str, webhook: Mapping[str, Any] | None) -> UUID:
    """What the API does: create_jobs."""
    creator = Creator(Queue(db))
    running = asyncio.ensure_future(creator.run())
    (made,) = await creator.create([NewJob("ping", {}, user_id=user_id, webhook=webhook)])
    running.cancel()
    await asyncio.wait([running])
    return made.id


async def by_sql(db: Database, user_id: str, webhook: Mapping[str, Any] | None) -> UUID:
    job_id: UUID = await db.pool.fetchval(
        "select listingd.enqueue_job('ping', user_id => $1, webhook => $2::jsonb)",
        user_id, None if webhook is None else json.dumps(webhook),
    )  # fmt: skip
    return job_id


async def by_sql_in_bulk(db: Database, user_id: str, webhook: Mapping[str, Any] | None) -> UUID:
    """The second of two; the first is nobody's, so that marking all of them is not right."""
    job = {"kind": "ping", "user_id": user_id, "webhook": webhook}
    rows = await db.pool.fetch(
        "select listingd.enqueue_jobs($1::jsonb) as id",
        json.dumps([{"kind": "ping", "user_id": "nobody"}, job]),
    )
    job_id: UUID = rows[1]["id"]
    return job_id


DOORS = [by_http, by_sql, by_sql_in_bulk]


@pytest.fixture
async def connection(db: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await db.dedicated_connection("test")
    yield connection
    connection.terminate()


async def add_endpoint(connection: asyncpg.Connection, user_id: str, *, disabled: bool = False) -> None:
    await connection.execute(
        "insert into listingd.webhook_endpoints (id, user_id, url, disabled_at)"
        " values ($1, $2, 'https://example.com/hook', case when $3 then now() end)",
        new_id(), user_id, disabled,
    )  # fmt: skip


async def is_marked(connection: asyncpg.Connection, job_id: UUID) -> bool:
    marked: bool = await connection.fetchval(
        "select wants_webhook from listingd.job_states where id = $1", job_id
    )
    return marked


async def run(connection: asyncpg.Connection, job_id: UUID) -> None:
    """Claims and completes by the SQL functions."""
    claimed = await connection.fetchrow(
        "select fence from listingd.mark_jobs_processing("
        " 'w', array(select fence from listingd.job_states where id = $1))",
        job_id,
    )
    await connection.execute(
        "select listingd.mark_jobs_completed($1::jsonb)", json.dumps([{"fence": claimed["fence"]}])
    )


async def read_deliveries(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    rows = await connection.fetch(
        "select j.user_id, j.input::text from listingd.jobs as j where j.kind = 'webhook' order by j.id"
    )
    return [{"of": row["user_id"]} | json.loads(row["input"]) for row in rows]


@pytest.mark.parametrize("enqueue", DOORS)
async def test_a_job_of_a_user_with_an_endpoint_speaks(
    db: Database, connection: asyncpg.Connection, enqueue: Door
) -> None:
    await add_endpoint(connection, "u1")

    job_id = await enqueue(db, "u1", None)
    other = await enqueue(db, "u2", None)
    await run(connection, job_id)
    await run(connection, other)

    assert (True, False) == (await is_marked(connection, job_id), await is_marked(connection, other))
    told = [
        (d["of"], d["type"], json.loads(d["body"])["data"]["job"]["id"])
        for d in await read_deliveries(connection)
    ]
    assert [("u1", "job.started", str(job_id)), ("u1", "job.completed", str(job_id))] == told


@pytest.mark.parametrize("enqueue", DOORS)
async def test_the_services_endpoint_hears_of_everybody(
    db: Database, connection: asyncpg.Connection, enqueue: Door
) -> None:
    await add_endpoint(connection, "")

    job_id = await enqueue(db, "u1", None)
    await run(connection, job_id)

    assert ["job.started", "job.completed"] == [d["type"] for d in await read_deliveries(connection)]


@pytest.mark.parametrize("enqueue", DOORS)
async def test_a_job_with_its_own_webhook_speaks_to_it(
    db: Database, connection: asyncpg.Connection, enqueue: Door
) -> None:
    job_id = await enqueue(db, "u1", {"url": "https://example.com/mine"})
    await run(connection, job_id)

    (delivery,) = await read_deliveries(connection)
    assert ("https://example.com/mine", "job.completed") == (delivery["url"], delivery["type"])


@pytest.mark.parametrize("enqueue", [by_sql, by_sql_in_bulk])
async def test_its_own_webhook_is_signed_with_its_users_secret(
    db: Database, connection: asyncpg.Connection, enqueue: Door
) -> None:
    """A delivery belongs to whoever the job belongs to: another's secret would tell them of it."""
    await run(
        connection, await enqueue(db, "u1", {"url": "https://example.com/mine", "owner": "somebody else"})
    )

    assert ["u1"] == [d["of"] for d in await read_deliveries(connection)]


@pytest.mark.parametrize("enqueue", DOORS)
async def test_a_job_that_nobody_wants_to_hear_of_is_silent(
    db: Database, connection: asyncpg.Connection, enqueue: Door
) -> None:
    await add_endpoint(connection, "u1", disabled=True)

    job_id = await enqueue(db, "u1", None)
    await run(connection, job_id)

    assert not await is_marked(connection, job_id)
    assert [] == await read_deliveries(connection)


async def test_children_inherit_the_mark(db: Database, connection: asyncpg.Connection) -> None:
    """An item of a pack is told to the webhook of its pack."""
    parent = await by_sql(db, "u1", {"url": "https://example.com/mine", "events": ["job.item_completed"]})
    claimed = await connection.fetchrow(
        "select fence from listingd.mark_jobs_processing("
        " 'w', array(select fence from listingd.job_states where id = $1))",
        parent,
    )
    child = new_id()
    await connection.fetch(
        "select listingd.fan_out($1, (select worker from listingd.job_states where id = $2), $3::jsonb)",
        claimed["fence"], parent, json.dumps([{"id": str(child), "kind": "image", "slot": "main", "input": {}}]),
    )  # fmt: skip
    await run(connection, child)

    (delivery,) = await read_deliveries(connection)
    assert ("job.item_completed", str(child)) == (
        delivery["type"],
        json.loads(delivery["body"])["data"]["job"]["id"],
    )
