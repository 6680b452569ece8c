"""Event streams: snapshot first, every change in order, resume, the end, slow readers, strangers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest

from daemon.api import events as events_module
from daemon.api.principal import Principal
from daemon.http import FEED
from tests.api.application import IMAGE_JOB, Api, picture
from tests.support import eventually


class Reader:
    """Reads events of one open response."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> tuple[str, Any, str | None]:
        """(event, data, id) of the next one; ("end", None, None) when the stream is over."""
        name, data, last_id = "message", "", None
        async with asyncio.timeout(10):
            while True:
                line = (await self.response.content.readline()).decode()
                if not line:
                    return "end", None, None
                field, _, value = line.rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    data += value
                elif field == "id":
                    last_id = value
                elif not field and data:
                    return name, json.loads(data), last_id

    async def until(self, name: str) -> list[tuple[str, Any, str | None]]:
        seen: list[tuple[str, Any, str | None]] = []
        while not seen or seen[-1][0] not in (name, "end"):
            seen.append(await self.next())
        return seen


@asynccontextmanager
async def follow(api: Api, path: str, **headers: str) -> AsyncIterator[Reader]:
    async with api.client.get(api.url + path, headers=headers) as response:
        assert 200 == response.status, await response.text()
        assert "text/event-stream" == response.content_type
        assert "no-store" == response.headers["Cache-Control"]
        yield Reader(response)


async def test_stream_tells_a_whole_life_in_order(api: Api) -> None:
    job = await api.create()
    async with follow(api, f"/v1/jobs/{job['id']}/events") as reader:
        first = await reader.next()
        [(job_id, fence)] = await api.claim()
        started = await reader.next()
        await api.execute(
            'update listingd.job_states set progress = \'{"done": 1, "total": 2}\', version = version + 1 where id = $1',
            job_id,
        )
        moved = await reader.next()
        asset_id = await api.add_asset(job_id, picture())
        asset = await reader.next()
        await api.complete(fence)
        rest = await reader.until("end")

    assert ("snapshot", "pending", "1") == (first[0], first[1]["state"], first[2])
    assert ("job", "processing") == (started[0], started[1]["state"])
    assert ("progress", 1) == (moved[0], moved[1]["progress"]["done"])
    assert ("asset", str(asset_id)) == (asset[0], asset[1]["id"])
    assert ["job", "done", "end"] == [name for name, _, _ in rest[-3:]]
    ids = [int(e[2]) for e in (first, started, moved, *rest) if e[2]]
    assert sorted(ids) == ids


async def test_reconnect_after_the_end_is_a_204(api: Api) -> None:
    """EventSource would come back for ever after a normal close."""
    job = await api.create()
    await api.call("POST", f"/v1/jobs/{job['id']}/cancel")
    async with follow(api, f"/v1/jobs/{job['id']}/events") as reader:
        events = await reader.until("end")

    status, _, _ = await api.call(
        "GET", f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": events[-2][2] or ""}
    )

    assert ["snapshot", "done", "end"] == [name for name, _, _ in events]
    assert 204 == status


async def test_resume_in_the_middle_begins_with_what_was_missed(api: Api) -> None:
    job = await api.create()
    await api.claim()

    async with follow(api, f"/v1/jobs/{job['id']}/events?after=1") as reader:
        name, data, _ = await reader.next()

    assert ("snapshot", "processing") == (name, data["state"])


async def test_position_that_was_never_reached_is_gone(api: Api) -> None:
    job = await api.create()

    status, problem, _ = await api.call(
        "GET", f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "99"}
    )
    wide, _, _ = await api.call("GET", "/v1/events?after=1000")

    assert (410, "position_gone", 410) == (status, problem["code"], wide)


async def test_parents_stream_shows_its_children(api: Api) -> None:
    job = await api.create()
    [(parent, fence)] = await api.claim()
    child = uuid4()
    async with follow(api, f"/v1/jobs/{job['id']}/events") as reader:
        await reader.next()
        async with api.deps.db.acquire() as c:
            worker = await c.fetchval("select worker from listingd.job_states where id = $1", parent)
            await c.fetch(
                api.deps.db.sql["fan_out"], fence, worker,
                json.dumps([{"id": str(child), "kind": "ping", "slot": "main", "input": {}}]),
            )  # fmt: skip
        waiting = await reader.next()
        await api.execute(
            "update listingd.job_states set progress = '{\"done\": 3}', version = version + 1 where id = $1",
            child,
        )
        moved = await reader.next()
        await api.add_asset(child, picture())
        asset = await reader.next()

    assert ("job", "waiting", [str(child)]) == (
        waiting[0],
        waiting[1]["state"],
        [i["id"] for i in waiting[1]["items"]],
    )
    assert ("progress", 3) == (moved[0], moved[1]["items"][0]["progress"]["done"])
    assert ("asset", str(child)) == (asset[0], asset[1]["job_id"])
    _, shown, _ = await api.call("GET", f"/v1/jobs/{job['id']}")
    assert {"id": asset[1]["id"], "url": asset[1]["url"]} == shown["items"][0]["asset"]


async def test_erased_job_ends_its_stream(api: Api) -> None:
    job = await api.create()
    async with follow(api, f"/v1/jobs/{job['id']}/events") as reader:
        await reader.next()
        await api.execute("delete from listingd.jobs")
        await api.execute("delete from listingd.job_states")
        events = await reader.until("end")

    assert [("done", "gone")] == [(name, data["state"]) for name, data, _ in events[:-1]]


async def test_common_stream_shows_what_a_user_may_see_and_no_more(api: Api) -> None:
    old = await api.create(user="ann")
    async with follow(api, "/v1/events", Authorization="Bearer user:ann") as reader:
        snapshot = await reader.next()
        await api.create(user="bob")
        new = await api.create(user="ann")
        name, data, position = await reader.next()

    assert ("snapshot", [old["id"]]) == (snapshot[0], [j["id"] for j in snapshot[1]["jobs"]])
    assert ("job", new["id"]) == (name, data["id"])
    assert "input" not in data
    assert int(position or 0) >= int(snapshot[2] or 0)


async def test_common_stream_finds_jobs_of_other_processes(api: Api) -> None:
    """They are stored by SQL: nothing in this process hints at them."""
    for path in ("/v1/events", "/v1/events?kind=ping&user_id=ann"):
        async with follow(api, path) as reader:
            await reader.next()
            async with api.deps.db.acquire() as c:
                job_id = await c.fetchval("select listingd.enqueue_job('ping', '{}', 'ann')")
            name, data, _ = await reader.next()
            [(_, fence)] = await api.claim()
            await api.complete(fence)
            events = await reader.until("done")

        assert ("job", str(job_id)) == (name, data["id"])
        assert "completed" == events[-1][1]["state"]


async def test_common_stream_is_narrowed_by_project_tag_and_kind(api: Api) -> None:
    project = str(uuid4())
    wanted = await api.create(user="ann", project_id=project, tags=["spring"])
    await api.create(user="ann", tags=["autumn"])
    await api.create()

    for query in (f"project_id={project}", "tag=spring", "kind=image&tag=spring", "user_id=ann&tag=spring"):
        async with follow(api, f"/v1/events?{query}") as reader:
            _, snapshot, _ = await reader.next()
            assert [wanted["id"]] == [job["id"] for job in snapshot["jobs"]], query
            await api.create(user="ann", tags=["autumn"])
            new = await api.create(user="ann", project_id=project, tags=["spring"])
            _, data, _ = await reader.next()
            assert new["id"] == data["id"], query
        await api.call("POST", f"/v1/jobs/{new['id']}/cancel")


async def test_a_full_common_stream_lets_the_oldest_of_its_snapshot_go_first(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is let go is not polled any more: a change that another process makes would go unseen."""
    monkeypatch.setattr("daemon.api.feed.MAX_FOLLOWED", 2)
    monkeypatch.setattr(events_module, "MAX_FOLLOWED", 2)
    await api.create()
    newest = await api.create()
    await api.execute("update listingd.jobs set created_at = created_at - interval '1 hour'")
    async with follow(api, "/v1/events") as reader:
        await reader.next()
        await api.create()
        await reader.next()
        await api.execute(
            "update listingd.job_states set progress = '{\"done\": 1}', version = version + 1 where id = $1",
            UUID(newest["id"]),
        )
        name, data, _ = await reader.next()

    assert ("progress", newest["id"]) == (name, data["id"])


async def test_a_job_beyond_the_snapshot_that_ends_before_it_is_read_is_told_done(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is older than the stream, but its end is not."""
    monkeypatch.setattr(events_module, "MAX_FOLLOWED", 1)
    oldest = await api.create()
    await api.create()
    await api.execute("update listingd.jobs set created_at = created_at - interval '1 hour'")
    async with follow(api, "/v1/events") as reader:
        _, snapshot, _ = await reader.next()
        await api.call("POST", f"/v1/jobs/{oldest['id']}/cancel")
        events = await reader.until("done")

    assert oldest["id"] not in [job["id"] for job in snapshot["jobs"]]
    assert ("done", oldest["id"]) == (events[-1][0], events[-1][1]["id"])


async def test_a_job_that_is_not_followed_is_told_done_when_another_process_ends_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it was let go for a newer one, once it was beyond the snapshot. SQL ends it: nothing hints at it here."""
    monkeypatch.setattr("daemon.api.feed.MAX_FOLLOWED", 2)
    monkeypatch.setattr(events_module, "MAX_FOLLOWED", 2)
    beyond, let_go, _ = await api.create(), await api.create(), await api.create()
    # Their ids are old, too: what is new is looked for among the youngest ids.
    for table in ("jobs", "job_states"):
        await api.execute(
            f"update listingd.{table} set id = overlay(id::text placing '00000000' from 1 for 8)::uuid"
        )
    await api.execute("update listingd.jobs set created_at = created_at - interval '1 hour'")
    told = []
    async with follow(api, "/v1/events") as reader:
        await reader.next()
        await api.create()
        await reader.next()
        fences = {str(job_id)[8:]: fence for job_id, fence in await api.claim()}
        for job in (beyond, let_go):
            await api.complete(fences[job["id"][8:]])
            told.append((await reader.until("done"))[-1][1]["id"][8:])

    assert [beyond["id"][8:], let_go["id"][8:]] == told


async def test_idle_stream_is_pinged(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies cut what is silent for a minute."""
    monkeypatch.setattr("daemon.api.events.PING_S", 0.05)
    job = await api.create()

    async with follow(api, f"/v1/jobs/{job['id']}/events") as reader:
        await reader.next()
        async with asyncio.timeout(5):
            line = await reader.response.content.readline()

    assert line.startswith(b": ping")


async def test_common_stream_resumes_with_what_ended_meanwhile(api: Api) -> None:
    job = await api.create()
    async with follow(api, "/v1/events") as reader:
        _, _, position = await reader.next()
    await api.call("POST", f"/v1/jobs/{job['id']}/cancel")

    async with follow(api, "/v1/events", **{"Last-Event-ID": position or ""}) as reader:
        _, snapshot, _ = await reader.next()

    assert [(job["id"], "cancelled")] == [(j["id"], j["state"]) for j in snapshot["jobs"]]


async def test_read_token_opens_its_job_and_nothing_else(api: Api) -> None:
    _, job, _ = await api.call("POST", "/v1/jobs", json=IMAGE_JOB, user="ann")
    _, other, _ = await api.call("POST", "/v1/jobs", json=IMAGE_JOB, user="ann")
    scope = ("job", job["id"])
    api.keys.principals["read-token"] = Principal("token", "token:1", "ann", frozenset({"read"}), scope)  # type: ignore[arg-type]
    headers = {"Authorization": "Bearer read-token"}

    own, _, _ = await api.call("GET", f"/v1/jobs/{job['id']}", headers=headers)
    foreign, _, _ = await api.call("GET", f"/v1/jobs/{other['id']}", headers=headers)
    streamed, _, _ = await api.call(
        "GET", f"/v1/jobs/{other['id']}/events?token=read-token", headers={"Authorization": ""}
    )
    wide, _, _ = await api.call("GET", "/v1/events", headers=headers)
    listed, _, _ = await api.call("GET", "/v1/jobs", headers=headers)
    cancelled, _, _ = await api.call("POST", f"/v1/jobs/{job['id']}/cancel", headers=headers)

    assert (200, 404, 404, 404, 404, 403) == (own, foreign, streamed, wide, listed, cancelled)


async def test_revoked_credentials_end_an_open_stream(api: Api, monkeypatch: Any) -> None:
    monkeypatch.setattr(events_module, "RECHECK_S", 0.2)
    job = await api.create()
    api.keys.principals["second"] = api.keys.principals[next(iter(api.keys.principals))]
    async with follow(api, f"/v1/jobs/{job['id']}/events", Authorization="Bearer second") as reader:
        await reader.next()
        del api.keys.principals["second"]

        assert "end" == (await reader.next())[0]


async def test_stop_ends_every_stream(api: Api) -> None:
    job = await api.create()
    async with follow(api, f"/v1/jobs/{job['id']}/events") as one, follow(api, "/v1/events") as other:
        await one.next()
        await other.next()

        api.app[FEED].close()

        assert ("end", "end") == ((await one.next())[0], (await other.next())[0])


async def test_reader_that_reads_nothing_is_cut(api: Api, monkeypatch: Any) -> None:
    monkeypatch.setattr(events_module, "SEND_TIMEOUT_S", 0.3)
    job = await api.create()
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    key = next(iter(api.keys.principals))
    writer.write(
        f"GET /v1/jobs/{job['id']}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    big = json.dumps({"echo": "x" * 4_000_000})

    async def cut() -> bool:
        await api.execute(
            "update listingd.job_states set result = $2, attempt = (attempt + 1) % 9, version = version + 1 where id = $1",
            UUID(job["id"]), big,
        )  # fmt: skip
        return api.app[FEED]._watches == {}

    assert await eventually(cut, within_s=20)
    writer.close()


async def test_streams_beyond_the_limit_are_refused(configured: Any) -> None:
    async with configured(max_streams=1) as api:
        job = await api.create()
        async with follow(api, f"/v1/jobs/{job['id']}/events") as reader:
            await reader.next()
            status, problem, _ = await api.call("GET", "/v1/events")

    assert (429, "too_many_streams") == (status, problem["code"])


async def test_one_user_holds_a_tenth_of_the_streams_and_no_more(configured: Any) -> None:
    async with configured(max_streams=20) as api:
        of_ann = {"Authorization": "Bearer user:ann"}
        api.keys.principals["ann-too"] = Principal(
            "token", "token:1", "ann", frozenset({"read"}), ("user", "ann")
        )
        async with follow(api, "/v1/events", **of_ann) as one:
            async with follow(api, "/v1/events", Authorization="Bearer ann-too") as other:
                await one.next()
                await other.next()
                status, problem, _ = await api.call("GET", "/v1/events", user="ann")
                async with follow(api, "/v1/events", Authorization="Bearer user:bob") as bobs:
                    await bobs.next()

            async def is_free() -> bool:
                async with api.client.get(api.url + "/v1/events", headers=of_ann) as response:
                    return 200 == response.status

            assert await eventually(is_free, within_s=10)

    assert (429, "too_many_streams") == (status, problem["code"])


async def test_a_view_that_was_read_before_the_snapshot_is_not_told_after_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed reads it while the stream opens; a page would show the past until the next change."""
    job = await api.create()
    job_id = UUID(job["id"])
    read = api.deps.views.read_job

    async def read_late(*given: Any) -> Any:
        (old,) = await api.deps.views.read_jobs([job_id], None)
        for watch in api.app[FEED]._watches[job_id]:
            watch.put(job_id, old)
        await api.deps.db.pool.execute(
            "update listingd.job_states set version = version + 1, priority = 5 where id = $1", job_id
        )
        return await read(*given)

    monkeypatch.setattr(api.deps.views, "read_job", read_late)
    async with follow(api, f"/v1/jobs/{job_id}/events") as reader:
        name, _, position = await reader.next()
        monkeypatch.undo()
        await api.call("POST", f"/v1/jobs/{job_id}/cancel")
        positions = [int(at) for _, _, at in await reader.until("done") if at is not None]

    assert ("snapshot", "2") == (name, position)
    assert min(positions) > 2


SEED_OLD = """
with made as (
    insert into listingd.job_states (id, kind, state, finished_at)
    select overlay(gen_random_uuid()::text placing '0' from 1 for 1)::uuid, 'ping', 'completed', now() - interval '1 day'
    from generate_series(1, $1::int)
    returning id, kind
)
insert into listingd.jobs (id, kind, input, created_at)
select m.id, m.kind, '{}', now() - interval '1 day' from made as m
"""


@pytest.mark.parametrize(("older", "is_partial"), [(998, False), (999, True)])
async def test_a_snapshot_that_cannot_have_seen_every_end_says_so(
    api: Api, older: int, is_partial: bool
) -> None:
    """A reader that comes back holds jobs for open whose end nobody tells: it must ask for them."""
    async with follow(api, "/v1/events") as reader:
        _, first, position = await reader.next()
    await api.execute(SEED_OLD, older)
    await api.create()

    async with follow(api, "/v1/events", **{"Last-Event-ID": position or ""}) as reader:
        _, again, _ = await reader.next()

    assert (False, is_partial) == (first["is_partial"], again["is_partial"])
    assert 1 == len(again["jobs"])


async def test_a_snapshot_that_leaves_jobs_out_says_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MAX_FOLLOWED", 1)
    await api.create()
    await api.create()

    async with follow(api, "/v1/events") as reader:
        _, snapshot, _ = await reader.next()

    assert (1, True) == (len(snapshot["jobs"]), snapshot["is_partial"])
