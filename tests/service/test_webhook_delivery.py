"""Webhooks through a whole daemon: a job over HTTP at one end, a receiver with the standard library at the other."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook
from structlog.testing import capture_logs

from daemon.service import run_service
from daemon.settings import Fetch, Http, Settings, Webhooks
from tests.support import eventually

Call = Callable[..., Awaitable[Any]]


@dataclass
class Receiver:
    """One path for each way to answer: /200, /301, /410, /500, /slow. `got`: (path, headers, body)."""

    url: str = ""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.append((request.path, headers, await request.read()))
        if request.path == "/slow":
            await self.closing.wait()
        status = int(request.path[1:]) if request.path[1:].isdigit() else 200
        return web.Response(status=status, headers={"Location": self.url + "/200"} if status == 301 else {})

    def types(self, path: str = "/200") -> list[str]:
        return [json.loads(body)["type"] for at, _, body in self.got if at == path]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{path}", receiver.take)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield receiver
    receiver.closing.set()
    await runner.cleanup()


@pytest.fixture
async def call(settings: Settings, database: str) -> AsyncIterator[Call]:
    """`await call("GET", path)`: the JSON answer of a daemon that may deliver to loopback."""
    own = settings.model_copy(
        update={
            "database_url": SecretStr(database), "http": Http(port=0), "poll_s": 0.5,
            "fetch": Fetch(allowed_private_networks=("127.0.0.0/8",)), "webhooks": Webhooks(timeout_s=1.5),
        }
    )  # fmt: skip
    async with run_service(own) as service, aiohttp.ClientSession() as client:
        headers = {"Authorization": f"Bearer {service.service_key}"}

        async def ask(method: str, path: str, body: Any = None) -> Any:
            async with client.request(method, service.url + path, json=body, headers=headers) as answer:
                told = await answer.json(content_type=None) if answer.status != 204 else None
                assert answer.ok, told
                return told

        yield ask


async def _deliveries(call: Call, **wanted: Any) -> list[Any]:
    log = (await call("GET", "/v1/webhooks/deliveries?limit=100"))["data"]
    return [d for d in log if all(d[name] == value for name, value in wanted.items())]


PING = {"kind": "ping", "input": {"echo": "x"}}


async def test_endpoint_hears_of_a_job_from_birth_to_end(call: Call, receiver: Receiver) -> None:
    hook = await call("POST", "/v1/webhooks", {"url": receiver.url + "/200"})

    job = await call("POST", "/v1/jobs", PING)

    await eventually(lambda: sorted(receiver.types()) == ["job.completed", "job.started"], within_s=10)
    for _, headers, body in receiver.got:
        event = Webhook(hook["secret"]).verify(body, headers)
        assert job["id"] == event["data"]["job"]["id"]
        assert "input" not in event["data"]["job"]

    async def both() -> list[Any] | None:
        found = await _deliveries(call, state="completed", job_id=job["id"])
        return found if len(found) == 2 else None

    delivered = await eventually(both, within_s=10) or []
    assert [200, 200] == [delivery["result"]["status"] for delivery in delivered]
    assert [job["id"]] == [one["id"] for one in (await call("GET", "/v1/jobs"))["data"]]


async def test_webhook_of_a_job_is_delivered_and_signed(call: Call, receiver: Receiver) -> None:
    await call("POST", "/v1/jobs", PING | {"webhook": {"url": receiver.url + "/200"}})

    await eventually(lambda: receiver.types() == ["job.completed"], within_s=10)

    secret = (await call("GET", "/v1/webhooks/job-secret"))["secret"]
    Webhook(secret).verify(receiver.got[0][2], receiver.got[0][1])


async def test_every_bad_receiver_stands_in_the_log(call: Call, receiver: Receiver) -> None:
    """Down, slow, moved, gone, broken: tried again later, save the one that is gone."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    urls = {name: f"{receiver.url}/{name}" for name in ("301", "410", "500", "slow")} | {"down": down}
    hooks = {}
    for name, url in urls.items():
        hooks[name] = await call("POST", "/v1/webhooks", {"url": url, "types": ["job.completed"]})

    async def all_tried() -> dict[str, Any]:
        log = await _deliveries(call)
        found = {name: d for name, hook in hooks.items() for d in log if d["endpoint_id"] == hook["id"]}
        return found if len(found) == 5 and all(d["attempts"] for d in found.values()) else {}

    with capture_logs() as lines:
        await call("POST", "/v1/jobs", PING)
        tried = await eventually(all_tried, within_s=10)

    codes = {
        name: (d["state"], d["attempts"][0]["code"], d["attempts"][0]["status"]) for name, d in tried.items()
    }
    assert {
        "301": ("pending", "webhook_refused", 301),
        "410": ("failed", "webhook_gone", 410),
        "500": ("pending", "webhook_refused", 500),
        "slow": ("pending", "webhook_timed_out", None),
        "down": ("pending", "webhook_unreachable", None),
    } == codes
    assert all(d["next_attempt_at"] for name, d in tried.items() if name != "410")
    assert [] == receiver.types("/200")  # the redirect was not followed
    gone = await call("GET", f"/v1/webhooks/{hooks['410']['id']}")
    assert "the receiver answered 410 Gone" == gone["disabled_why"]
    told = [line["endpoint_id"] for line in lines if line["event"] == "webhook.disabled"]
    assert [hooks["410"]["id"]] == told


async def test_test_redeliver_and_rotation(call: Call, receiver: Receiver) -> None:
    hook = await call("POST", "/v1/webhooks", {"url": receiver.url + "/200", "types": ["job.completed"]})
    path = f"/v1/webhooks/{hook['id']}"
    await call("POST", f"{path}/test")
    await eventually(lambda: receiver.types() == ["webhook.test"], within_s=10)
    first = receiver.got[0]

    new = await call("POST", f"{path}/secret/rotate", {"overlap_s": 60})
    delivery = (await _deliveries(call))[0]
    await call("POST", f"/v1/webhooks/deliveries/{delivery['id']}/redeliver")
    await eventually(lambda: len(receiver.got) == 2, within_s=10)

    again = receiver.got[1]
    assert first[1]["webhook-id"] == again[1]["webhook-id"]
    assert first[2] == again[2]
    for secret in (hook["secret"], new["secret"]):
        Webhook(secret).verify(again[2], again[1])
