"""Webhooks from the state change to the receiver, verified by the independent `standardwebhooks` library."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from daemon import outcomes
from daemon.db import Database
from daemon.errors import Conflict, InvalidInput, ListingdError, NotFound
from daemon.handlers.context import JobContext
from daemon.handlers.webhook import SCHEDULE_S, WebhookHandler
from daemon.jobs import ClaimedJob
from daemon.payloads import WebhookInput
from daemon.queue import Queue
from daemon.settings import Settings
from daemon.views import Views
from daemon.webhook_sending import check_url, send
from daemon.webhooks import MAX_ENDPOINTS, Delivery, Endpoint, Webhooks


@dataclass
class Receiver:
    """A server that keeps what it got and answers as told."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: asyncio.Event | None = None
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.got.append(({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        if self.hang is not None:
            await self.hang.wait()
        return web.Response(status=self.status, headers=self.headers)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    app.router.add_route("*", "/other", receiver.take)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield receiver
    if receiver.hang is not None:
        receiver.hang.set()
    await runner.cleanup()


@dataclass
class Attempt:
    """What the handler reads of its context."""

    job_id: UUID
    user_id: str
    attempt: int
    input: WebhookInput


class House:
    """A database with its queue, one worker and the webhook handler."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self.db = db
        self.settings = settings
        self.webhooks = Webhooks(db)
        self.handler = WebhookHandler(self.webhooks, settings)
        self.queue = Queue(db)

    async def enqueue(self, user_id: str = "u1", **columns: Any) -> UUID:
        """A ping job, marked as create_jobs marks it."""
        job_id = await self.db.pool.fetchval("select listingd.enqueue_job('ping', '{}', $1)", user_id)
        if columns:
            await self.db.pool.execute(
                "update listingd.jobs set webhook = $2, parent_id = $3, slot = 'main' where id = $1",
                job_id, json.dumps(columns.get("webhook")), columns.get("parent_id"),
            )  # fmt: skip
        await self.db.pool.execute(
            "update listingd.job_states set wants_webhook = true, parent_id = $2 where id = $1",
            job_id, columns.get("parent_id"),
        )  # fmt: skip
        return cast("UUID", job_id)

    async def claim(self, job_id: UUID) -> int:
        rows = await self.db.pool.fetch(
            "select fence from listingd.mark_jobs_processing('test',"
            " (select array_agg(fence) from listingd.job_states where id = $1))",
            job_id,
        )
        return int(rows[0]["fence"])

    async def complete(self, job_id: UUID) -> None:
        fence = await self.claim(job_id)
        done = json.dumps([{"fence": fence, "result": {"ok": True}}])
        await self.db.pool.fetch("select listingd.mark_jobs_completed($1)", done)

    async def queued(self) -> list[Any]:
        rows = await self.db.pool.fetch(
            "select j.id, j.user_id, j.input ->> 'type' as type, j.input ->> 'body' as body"
            " from listingd.jobs as j where j.kind = 'webhook' order by j.id"
        )
        return list(rows)

    async def deliver(self) -> list[float]:
        """Run every delivery that is pending once, due or not; the delays of those that are tried again."""
        worker = await self.db.fetchval("start_worker", f"w{uuid4().hex}", 60.0, ["webhook"], 16, "{}")
        pending = await self.db.pool.fetch(
            "update listingd.job_states set run_at = null where kind = 'webhook' and state = 'pending' returning fence"
        )
        async with self.db.acquire() as connection:
            flushed = await self.queue.flush(connection, [], worker, [row["fence"] for row in pending])
            ended = [await self._attempt(job) for job in flushed.claimed]
            await self.queue.flush(connection, ended, worker, [])
        return [e.delay_s for e in ended]

    async def _attempt(self, job: ClaimedJob) -> Any:
        given = WebhookInput.model_validate_json(job.input_text)
        try:
            context = cast("JobContext", Attempt(job.id, job.user_id, job.attempt, given))
            return outcomes.completed(job, await self.handler(context))
        except ListingdError as exc:
            return outcomes.failed(job, exc, self.settings.retry)

    async def log(self, user_id: str = "") -> list[Delivery]:
        return await self.webhooks.list_deliveries(user_id)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "fetch": settings.fetch.model_copy(update={"allowed_private_networks": ("127.0.0.0/8",)}),
            "webhooks": settings.webhooks.model_copy(update={"timeout_s": 1.5}),
        }
    )


@pytest.fixture
def house(db: Database, settings: Settings) -> House:
    return House(db, settings)


@pytest.fixture
async def endpoint(house: House, receiver: Receiver) -> tuple[Endpoint, str]:
    return await house.webhooks.create("", url=receiver.url, types=["job.completed", "job.failed"])


async def test_delivery_verifies_with_the_standard_library(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    job_id = await house.enqueue()
    await house.complete(job_id)

    await house.deliver()

    headers, body = receiver.got[0]
    event = Webhook(endpoint[1]).verify(body, headers)
    assert "job.completed" == event["type"]
    assert str(job_id) == event["data"]["job"]["id"]
    assert {"ok": True} == event["data"]["job"]["result"]
    assert "input" not in event["data"]["job"]
    assert ["completed"] == [d.state for d in await house.log()]
    with pytest.raises(WebhookVerificationError):
        Webhook(endpoint[1]).verify(body.replace(b"completed", b"cancelled"), headers)


@pytest.mark.usefixtures("endpoint")
async def test_webhook_of_a_parent_has_the_version_and_start_that_the_api_shows(house: House) -> None:
    """A receiver drops what is older than what it has read."""
    parent = await house.enqueue()
    child = await house.enqueue(parent_id=parent)
    await house.complete(child)
    await house.complete(parent)

    told = next(json.loads(row["body"]) for row in await house.queued() if row["type"] == "job.completed")[
        "data"
    ]["job"]
    shown = await Views(house.db).read_job(parent, None)

    assert shown is not None
    assert str(parent) == told["id"]
    assert shown.version == told["version"]
    assert shown.fields["started_at"] == f'"{told["started_at"]}"'


async def test_delivery_is_stored_with_the_state_or_not_at_all(
    house: House, endpoint: tuple[Endpoint, str]
) -> None:
    """The outbox: what rolls back was never told."""
    job_id = await house.enqueue()
    fence = await house.claim(job_id)
    done = json.dumps([{"fence": fence}])

    async with house.db.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.fetch("select listingd.mark_jobs_completed($1)", done)
        assert 1 == await connection.fetchval("select count(*) from listingd.jobs where kind = 'webhook'")
        await transaction.rollback()

    assert [] == await house.queued()


async def test_job_without_listeners_stores_nothing(house: House) -> None:
    await house.complete(await house.enqueue())

    assert [] == await house.queued()


async def test_endpoint_hears_only_its_types(house: House, receiver: Receiver) -> None:
    await house.webhooks.create("", url=receiver.url, types=["job.started"])
    await house.complete(await house.enqueue())

    assert ["job.started"] == [row["type"] for row in await house.queued()]


async def test_user_hears_only_of_own_jobs(house: House, receiver: Receiver) -> None:
    await house.webhooks.create("u1", url=receiver.url, types=["job.completed"])

    await house.complete(await house.enqueue("u2"))
    await house.complete(await house.enqueue("u1"))

    rows = await house.queued()
    assert ["u1"] == [row["user_id"] for row in rows]
    assert "u1" == json.loads(rows[0]["body"])["data"]["job"]["user_id"]


async def test_finished_child_is_an_item_of_its_parent(house: House, receiver: Receiver) -> None:
    """A pack of six tells of six items and one end, not of seven ends."""
    await house.webhooks.create("", url=receiver.url)
    parent = await house.enqueue()
    child = await house.enqueue(parent_id=parent)

    await house.complete(child)

    assert ["job.item_completed"] == [row["type"] for row in await house.queued()]


async def test_cancel_and_failure_are_told(house: House, receiver: Receiver) -> None:
    await house.webhooks.create("", url=receiver.url)
    await house.queue.cancel(await house.enqueue())
    failing = await house.claim(await house.enqueue())
    await house.db.pool.execute("select listingd.mark_job_failed($1, 'bad', 'No.', false)", failing)

    assert ["job.cancelled", "job.started", "job.failed"] == [row["type"] for row in await house.queued()]


async def test_retried_attempt_is_no_event(house: House, receiver: Receiver) -> None:
    await house.webhooks.create("", url=receiver.url)
    job_id = await house.enqueue()
    fence = await house.claim(job_id)
    await house.db.pool.execute("select listingd.mark_job_failed($1, 'bad', 'No.', true, 0)", fence)
    await house.claim(job_id)

    assert ["job.started"] == [row["type"] for row in await house.queued()]


async def test_webhook_of_a_job_is_signed_with_its_owners_secret(house: House, receiver: Receiver) -> None:
    await house.complete(await house.enqueue(webhook={"url": receiver.url, "owner": "u1"}))

    await house.deliver()

    headers, body = receiver.got[0]
    assert 1 == len(receiver.got)  # started is not among the default events
    assert (
        "job.completed" == Webhook(await house.webhooks.read_secret("u1", None)).verify(body, headers)["type"]
    )


@pytest.mark.parametrize(
    "webhook", ["text", 7, [], {"url": None}, {"url": {}}, {"events": 1}, {"events": {"a": 1}}]
)
async def test_odd_webhook_never_stops_its_job(house: House, webhook: Any) -> None:
    """jobs.webhook could be anything before migration 0011: whatever stands there, the state must change."""
    await house.db.pool.execute("alter table listingd.jobs drop constraint jobs_webhook_check")
    job_id = await house.enqueue(webhook=webhook)

    await house.complete(job_id)

    assert "completed" == await house.db.pool.fetchval(
        "select state from listingd.job_states where id = $1", job_id
    )


async def test_large_job_stays_below_20_kb(house: House, endpoint: tuple[Endpoint, str]) -> None:
    job_id = await house.enqueue()
    await house.db.pool.execute(
        "update listingd.jobs set metadata = jsonb_build_object('x', repeat('ü', 9000)),"
        " tags = array_fill(repeat('t', 60), array[100]) where id = $1",
        job_id,
    )
    await house.db.pool.execute(
        "insert into listingd.assets (id, job_id, role, content_type, size_bytes, sha256, version)"
        " select listingd.new_id(), $1, 'image', 'image/jpeg', 1, repeat('a', 64), 1 from generate_series(1, 60)",
        job_id,
    )
    fence = await house.claim(job_id)
    done = json.dumps([{"fence": fence, "result": {"long": "x" * 50_000}}])
    await house.db.pool.fetch("select listingd.mark_jobs_completed($1)", done)

    body = (await house.queued())[0]["body"]

    assert len(body.encode()) < 20_000
    assert ["result", "metadata", "tags"] == json.loads(body)["data"]["job"]["too_large"]


@pytest.mark.parametrize("of_jobs", [False, True])
async def test_rotations_at_once_all_give_secrets_that_sign(
    house: House, endpoint: tuple[Endpoint, str], of_jobs: bool
) -> None:
    endpoint_id = None if of_jobs else endpoint[0].id
    await house.webhooks.read_secret("", endpoint_id)

    made = await asyncio.gather(
        *(house.webhooks.rotate_secret("", endpoint_id, overlap_s=3600) for _ in range(8))
    )

    target = await house.webhooks.find_target("", endpoint_id, "https://hooks.example/x")
    assert target is not None
    assert set(made) <= set(target.keys)
    assert target.keys[0] == await house.webhooks.read_secret("", endpoint_id)


async def test_rotation_signs_with_both_secrets(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    new = await house.webhooks.rotate_secret("", endpoint[0].id, overlap_s=3600)
    await house.complete(await house.enqueue())

    await house.deliver()

    headers, body = receiver.got[0]
    Webhook(endpoint[1]).verify(body, headers)
    Webhook(new).verify(body, headers)
    assert 2 == len(headers["webhook-signature"].split())


async def test_rotation_without_overlap_ends_the_old_secret(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    await house.webhooks.rotate_secret("", endpoint[0].id, overlap_s=0)
    await house.complete(await house.enqueue())

    await house.deliver()

    headers, body = receiver.got[0]
    with pytest.raises(WebhookVerificationError):
        Webhook(endpoint[1]).verify(body, headers)


async def test_failing_receiver_is_tried_ten_times_over_75_hours(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    """Each attempt is in the log, sends the same bytes under the same id, and waits at least its step."""
    receiver.status = 500
    await house.complete(await house.enqueue())

    delays = [delay for _ in range(11) for delay in await house.deliver()]

    assert 10 == len(receiver.got)
    assert 1 == len({(headers["webhook-id"], body) for headers, body in receiver.got})
    assert all(step <= delay <= step + 600 for step, delay in zip(SCHEDULE_S, delays, strict=False))
    assert 75 == sum(SCHEDULE_S) // 3600
    delivery = (await house.log())[0]
    assert "failed" == delivery.state
    assert [500] * 10 == [attempt["status"] for attempt in delivery.attempts]


async def test_receiver_that_comes_back_gets_the_message(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    receiver.status = 503
    await house.complete(await house.enqueue())
    await house.deliver()
    receiver.status = 204

    await house.deliver()

    delivery = (await house.log())[0]
    assert ("completed", 204) == (delivery.state, delivery.result["status"])
    assert [503] == [attempt["status"] for attempt in delivery.attempts]


async def test_retry_after_is_honoured(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    receiver.status, receiver.headers = 429, {"Retry-After": "120"}
    await house.complete(await house.enqueue())

    assert (await house.deliver())[0] >= 120


async def test_redirect_is_not_followed(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    receiver.status, receiver.headers = 301, {"Location": receiver.url.replace("/hook", "/other")}
    await house.complete(await house.enqueue())

    await house.deliver()

    assert 1 == len(receiver.got)
    assert [301] == [attempt["status"] for attempt in (await house.log())[0].attempts]


async def test_gone_receiver_disables_its_endpoint(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    receiver.status = 410
    await house.complete(await house.enqueue())

    await house.deliver()
    await house.complete(await house.enqueue())

    read = await house.webhooks.read("", endpoint[0].id)
    assert read.disabled_at is not None
    assert read.disabled_why == "the receiver answered 410 Gone"
    assert [("failed", "webhook_gone")] == [(d.state, d.attempts[0]["code"]) for d in await house.log()]


async def test_slow_receiver_times_out(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    receiver.hang = asyncio.Event()
    await house.complete(await house.enqueue())

    await house.deliver()

    assert ["webhook_timed_out"] == [attempt["code"] for attempt in (await house.log())[0].attempts]


async def test_receiver_that_is_down_is_tried_again(house: House) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/hook"
    await house.webhooks.create("", url=url, types=["job.completed"])
    await house.complete(await house.enqueue())

    await house.deliver()

    delivery = (await house.log())[0]
    assert "pending" == delivery.state
    assert delivery.next_attempt_at is not None
    assert ["webhook_unreachable"] == [attempt["code"] for attempt in delivery.attempts]


@pytest.mark.parametrize("how", ["deleted", "disabled"])
async def test_endpoint_that_is_deleted_or_disabled_meanwhile_gets_nothing(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str], how: str
) -> None:
    await house.complete(await house.enqueue())
    if how == "deleted":
        await house.webhooks.delete("", endpoint[0].id)
    else:
        await house.webhooks.update("", endpoint[0].id, enabled=False)

    await house.deliver()

    assert [] == receiver.got
    assert ["webhook_disabled"] == [attempt["code"] for attempt in (await house.log())[0].attempts]


async def test_redelivery_is_the_same_message(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    await house.complete(await house.enqueue())
    await house.deliver()

    again = await house.webhooks.redeliver("", (await house.log())[0].id)
    await house.deliver()

    assert again == (await house.log())[0].id
    assert receiver.got[0][0]["webhook-id"] == receiver.got[1][0]["webhook-id"]
    assert receiver.got[0][1] == receiver.got[1][1]


async def test_test_message_arrives(house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]) -> None:
    await house.webhooks.test("", endpoint[0].id)

    await house.deliver()

    headers, body = receiver.got[0]
    assert "webhook.test" == Webhook(endpoint[1]).verify(body, headers)["type"]


async def test_endpoint_hears_of_jobs_that_are_on_their_way(house: House, receiver: Receiver) -> None:
    """Who adds an endpoint while a job runs expects to hear of its end."""
    job_id = await house.db.pool.fetchval("select listingd.enqueue_job('ping', '{}', 'u1')")
    other = await house.db.pool.fetchval("select listingd.enqueue_job('ping', '{}', 'u2')")

    await house.webhooks.create("u1", url=receiver.url, types=["job.completed"])

    wanted = await house.db.pool.fetch("select id from listingd.job_states where wants_webhook")
    assert [job_id] == [row["id"] for row in wanted]
    assert other is not None


async def test_nobody_touches_anothers_endpoint(
    house: House, receiver: Receiver, endpoint: tuple[Endpoint, str]
) -> None:
    await house.complete(await house.enqueue())
    delivery = (await house.log())[0]
    theirs = endpoint[0].id

    for call in (
        house.webhooks.read("u1", theirs),
        house.webhooks.update("u1", theirs, enabled=False),
        house.webhooks.delete("u1", theirs),
        house.webhooks.read_secret("u1", theirs),
        house.webhooks.rotate_secret("u1", theirs, overlap_s=0),
        house.webhooks.test("u1", theirs),
        house.webhooks.redeliver("u1", delivery.id),
    ):
        with pytest.raises(NotFound):
            await call
    assert [] == await house.log("u1")
    assert [] == await house.webhooks.list_endpoints("u1")


async def test_endpoints_of_one_user_are_bounded(house: House, receiver: Receiver) -> None:
    for _ in range(MAX_ENDPOINTS):
        await house.webhooks.create("u1", url=receiver.url)

    with pytest.raises(Conflict):
        await house.webhooks.create("u1", url=receiver.url)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "0x7f000001", "2130706433", "0177.0.0.1", "127.1", "①②⑦.⓪.⓪.①", "127。0。0。1",
     "[::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0"],
)  # fmt: skip
async def test_private_addresses_are_never_connected(receiver: Receiver, host: str) -> None:
    """The canary is our own receiver: it must see nothing."""
    url = receiver.url.replace("127.0.0.1", host)

    receipt = await send(url, message_id="m", body=b"{}", keys=[], timeout_s=2)

    assert receipt.status is None
    assert receipt.problem in {"forbidden", "malformed", "unreachable"}
    assert [] == receiver.got


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com/", "http://", "http:///x", "https://user:pw@example.com/", "https://exa mple.com/",
     "http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/latest", "http://[", "http://example.com:99999/",
     "http://10.1.2.3:8080/hook", "javascript:alert(1)", "http://example.com:0/"],
)  # fmt: skip
def test_unusable_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidInput):
        check_url(url)


def test_usable_url_is_taken() -> None:
    check_url("https://hooks.example.com:8443/a?b=c")
