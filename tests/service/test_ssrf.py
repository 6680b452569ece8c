"""URLs that strangers give a whole daemon: none of them makes it connect to a private address.

The canaries listen on both loopbacks; what is public here is 127.0.0.2, which the operator allows. The guard
itself, rebinding names included, is in tests/work/test_guard.py; URLs in providers' answers in
tests/work/test_openai_images.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from daemon.service import Service, run_service
from daemon.settings import Fetch, Http, Settings, Webhooks
from tests.support import eventually
from tests.work.test_guard import PRIVATE_HOSTS, Canary


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    listening = Canary()
    await listening.start()
    yield listening
    for server in listening.servers:
        server.close()
        await server.wait_closed()


@pytest.fixture
async def moved(canary: Canary) -> AsyncIterator[str]:
    """A URL at 127.0.0.2 that redirects GET and POST to the canary."""

    async def redirect(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"http://127.0.0.1:{canary.port}/"})

    app = web.Application()
    app.router.add_route("*", "/", redirect)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.2", 0).start()
    yield f"http://127.0.0.2:{runner.addresses[0][1]}/"
    await runner.cleanup()


@pytest.fixture
async def service(settings: Settings, database: str) -> AsyncIterator[Service]:
    own = settings.model_copy(
        update={
            "database_url": SecretStr(database), "http": Http(port=0), "poll_s": 0.5,
            "fetch": Fetch(allowed_private_networks=("127.0.0.2/32",), timeout_s=5),
            "webhooks": Webhooks(timeout_s=5),
        }
    )  # fmt: skip
    async with run_service(own) as running:
        yield running


@pytest.fixture
async def client(service: Service) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {service.service_key}"}
    async with aiohttp.ClientSession(service.url, headers=headers) as session:
        yield session


async def _post(client: aiohttp.ClientSession, path: str, body: Any = None) -> tuple[int, Any]:
    async with client.post(path, json=body) as answer:
        return answer.status, await answer.json()


async def test_photo_urls_reach_no_private_address(
    client: aiohttp.ClientSession, canary: Canary, moved: str
) -> None:
    urls = [f"http://{host}:{canary.port}/photo.jpg" for host in PRIVATE_HOSTS] + [moved]
    ids = []
    for url in urls:
        given = {"photo": {"url": url}, "slot": "main", "product": {"title": "Oak chair"}}
        status, job = await _post(client, "/v1/jobs", {"kind": "image", "input": given, "max_attempts": 1})
        assert status in {201, 422}, (url, job)
        ids += [job["id"]] if status == 201 else []

    async def ended() -> list[str] | None:
        async with client.get("/v1/jobs?limit=100&fields=id,state") as answer:
            states = {job["id"]: job["state"] for job in (await answer.json())["data"]}
        return [states[i] for i in ids] if {states[i] for i in ids} <= {"failed", "completed"} else None

    assert ["failed"] * len(ids) == await eventually(ended, within_s=60)
    assert len(ids) > 20
    assert 0 == canary.touched


async def test_webhook_urls_reach_no_private_address(
    client: aiohttp.ClientSession, canary: Canary, moved: str
) -> None:
    urls = [f"http://{host}:{canary.port}/hook" for host in PRIVATE_HOSTS] + [moved]
    sent = 0
    for url in urls:
        ping = {"kind": "ping", "input": {}, "webhook": {"url": url}}
        status, told = await _post(client, "/v1/jobs", ping)
        assert status in {201, 422}, (url, told)
        sent += status == 201

    async def all_tried() -> list[Any] | None:
        async with client.get("/v1/webhooks/deliveries?limit=100") as answer:
            log = (await answer.json())["data"]
        return log if len(log) == sent and all(d["attempts"] for d in log) else None

    log = await eventually(all_tried, within_s=60) or []
    assert not [d for d in log if d["state"] == "completed"]
    assert [307] == [d["attempts"][0]["status"] for d in log if d["url"] == moved]
    assert 0 == canary.touched
