"""A daemon is killed in the middle of a pack: the next one ends the pack and makes nothing twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import asyncpg

from daemon.client import Target, open_client
from tests.conftest import REPOSITORY
from tests.fleet import KEY, Daemon
from tests.support import eventually

SLOTS = ("main", "angle", "detail", "dimensions")


async def test_finished_pictures_are_not_made_again(sql: asyncpg.Pool, daemon: Callable[..., Daemon]):
    # Two at once, so that some are done and some are not begun when it dies.
    one = await daemon("one", workers__concurrency=2, lease_s=20, heartbeat_s=5).start()
    async with open_client(Target(one.url, KEY)) as client:
        pack_id = await _create_pack(client)
        await eventually(lambda: one.find("job.completed", kind="image"), within_s=60)
    one.kill()  # what the log calls completed is completed: the line comes after the commit
    before = await _read_children(sql)

    await one.start()
    async with open_client(Target(one.url, KEY)) as client:
        async with asyncio.timeout(90):
            pack = [job async for job in client.watch_job(pack_id)][-1]
        items = [await client.read_job(item["id"]) for item in pack["items"]]

    after = await _read_children(sql)
    finished = {slot: child for slot, child in before.items() if child["state"] == "completed"}
    assert 1 <= len(finished) < len(SLOTS), before
    assert "completed" == pack["state"], pack["error"]
    assert list(SLOTS) == [item["slot"] for item in pack["result"]["items"]]
    assert list(SLOTS) == [item["slot"] for item in pack["items"]]
    assert finished.items() <= after.items(), "a finished picture was touched"
    assert all(1 == len([a for a in item["assets"] if a["role"] == "image"]) for item in items)
    assert {1} == {child["attempt"] for child in after.values()}, "a crash is no attempt"
    assert 1 == await sql.fetchval("select count(*) from listingd.steps where name = 'cutout'")


async def _create_pack(client: Any) -> str:
    examples = REPOSITORY / "examples"
    upload_id = await client.upload((examples / "sample_photo.jpg").read_bytes())
    product = json.loads((examples / "sample_product.json").read_text())
    job: Mapping[str, Any] = await client.create_job(
        "pack", {"photo": {"upload_id": upload_id}, "product": product, "slots": list(SLOTS)}
    )
    return str(job["id"])


async def _read_children(sql: asyncpg.Pool) -> dict[str, dict[str, Any]]:
    rows = await sql.fetch(
        "select j.slot, s.state, s.attempt, s.fence, s.finished_at, s.result::text"
        " from listingd.jobs as j join listingd.job_states as s using (id) where j.parent_id is not null"
    )
    return {row["slot"]: dict(row) for row in rows}
