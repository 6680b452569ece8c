"""The JobContext as handlers get it: own photos only, fenced writes, inputs that nobody has looked at."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from daemon.attempt import Attempt, Services, read_input, with_children
from daemon.db import Database
from daemon.errors import InvalidInput, Lost, ProviderError, Reject
from daemon.handlers.context import JobContext
from daemon.jobs import ClaimedJob, State, new_id
from daemon.payloads import PhotoRef, PingInput, WebhookInput
from daemon.pixels import PixelPool
from daemon.providers.protocols import Providers
from daemon.queue import Queue
from daemon.settings import Fetch, Settings
from daemon.storage import Storage, open_storage
from tests.pg.money_support import (
    PRICE,
    Daemon,
    Provider,
    claim_again,
    claim_job,
    end_attempt,
    kill,
    start_daemon,
)


def make_photo() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (400, 300), "teal").save(out, "PNG")
    return out.getvalue()


@dataclass
class Desk:
    """A process that runs attempts."""

    daemon: Daemon
    storage: Storage
    services: Services
    reports: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    async def claim(self, user_id: str = "ada", kind: str = "ping", input_text: str = "{}") -> Attempt:
        return self.open(await claim_job(self.daemon, user_id=user_id, kind=kind, input_text=input_text))

    def open(self, job: ClaimedJob) -> Attempt:
        return Attempt(job, self.services)


@pytest.fixture
async def desk(db: Database, settings: Settings) -> AsyncIterator[Desk]:
    settings = settings.model_copy(update={"fetch": Fetch(allowed_private_networks=("127.0.0.0/8",))})
    storage = await open_storage(settings)
    daemon = await start_daemon(db, storage)
    reports: dict[int, Mapping[str, Any]] = {}
    with closing(PixelPool(1)) as pixels:
        services = Services(
            db=db,
            queue=Queue(db),
            storage=storage,
            steps=daemon.steps,
            providers=Providers(None, None, None),  # type: ignore[arg-type]  # nothing here calls one
            settings=settings,
            pixels=pixels,
            worker_id=lambda: daemon.worker,
            report_progress=reports.__setitem__,
        )
        yield Desk(daemon, storage, services, reports)


async def upload(desk: Desk, data: bytes, user_id: str = "ada") -> UUID:
    sha256 = await desk.storage.put(data, "image/png")
    upload_id = new_id()
    await desk.daemon.db.pool.execute(
        "insert into listingd.uploads (id, user_id, sha256, content_type, size_bytes, width_px, height_px) "
        "values ($1, $2, $3, 'image/png', $4, 400, 300)",
        upload_id, user_id, sha256, len(data),
    )  # fmt: skip
    return upload_id


async def test_the_job_is_told_as_it_is(desk: Desk) -> None:
    attempt = await desk.claim(input_text='{"echo": [1], "sleep_s": 0.5}')

    assert ("ping", "ada", 1, None, None) == (
        attempt.kind, attempt.user_id, attempt.attempt, attempt.project_id, attempt.children,
    )  # fmt: skip
    assert PingInput(echo=[1], sleep_s=0.5) == attempt.input


async def test_an_attempt_is_a_job_context(desk: Desk) -> None:
    context: JobContext = await desk.claim()

    assert isinstance(context.job_id, UUID)


async def test_own_uploads_are_loaded(desk: Desk) -> None:
    photo = make_photo()
    upload_id = await upload(desk, photo)

    assert photo == await (await desk.claim()).load_photo(PhotoRef(upload_id=upload_id))


async def test_a_foreign_upload_is_missing_like_one_that_never_was(desk: Desk) -> None:
    upload_id = await upload(desk, make_photo(), user_id="bob")
    attempt = await desk.claim(user_id="ada")

    problems = []
    for unknown in (upload_id, new_id()):
        with pytest.raises(Reject) as caught:
            await attempt.load_photo(PhotoRef(upload_id=unknown))
        problems.append((caught.value.code, caught.value.message, caught.value.hint, caught.value.data))

    assert "photo_missing" == problems[0][0]
    assert problems[0] == problems[1]


async def test_an_upload_whose_file_is_gone_is_missing(desk: Desk) -> None:
    upload_id = await upload(desk, make_photo())
    async for file in desk.storage.list_older_than(-1):
        await desk.storage.delete(file.sha256)

    with pytest.raises(Reject, match="not there"):
        await (await desk.claim()).load_photo(PhotoRef(upload_id=upload_id))


async def test_a_picture_of_an_earlier_job_can_be_the_photo_of_the_next(desk: Desk) -> None:
    photo = make_photo()
    asset = await (await desk.claim()).save_asset(photo, role="image", content_type="image/png")

    assert photo == await (await desk.claim()).load_photo(PhotoRef(asset_id=asset.id))
    with pytest.raises(Reject):
        await (await desk.claim(user_id="bob")).load_photo(PhotoRef(asset_id=asset.id))


async def test_bytes_that_are_no_picture_are_rejected(desk: Desk) -> None:
    upload_id = await upload(desk, b"%PDF-1.4 not a picture")

    with pytest.raises(Reject) as caught:
        await (await desk.claim()).load_photo(PhotoRef(upload_id=upload_id))

    assert "photo_unusable" == caught.value.code


async def test_a_photo_is_fetched_by_its_url(desk: Desk) -> None:
    photo = make_photo()

    async def serve(request: web.Request) -> web.Response:
        status = int(request.query.get("status", 200))
        return web.Response(body=photo, status=status)

    app = web.Application()
    app.router.add_get("/photo.png", serve)
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}/photo.png"
        attempt = await desk.claim()

        assert photo == await attempt.load_photo(PhotoRef(url=url))
        with pytest.raises(Reject) as gone:
            await attempt.load_photo(PhotoRef(url=f"{url}?status=404"))
        with pytest.raises(ProviderError) as passing:
            await attempt.load_photo(PhotoRef(url=f"{url}?status=503"))

    assert "photo_unusable" == gone.value.code
    assert "retry" == passing.value.fate


async def test_a_saved_file_is_found_by_the_next_attempt(desk: Desk) -> None:
    job = await claim_job(desk.daemon)
    first = desk.open(job)
    asset = await first.save_asset(
        b"bytes", role="image", content_type="image/jpeg", slot="main", width_px=2000, height_px=2000,
        checks=[{"rule": "white", "outcome": "pass", "measured": float("nan")}], generated=True, provider="offline",
    )  # fmt: skip
    await end_attempt(desk.daemon, job)

    second = desk.open(await claim_again(desk.daemon, job.id))

    assert first.took is not None
    assert len(b"bytes") == first.took.bytes
    assert asset == await second.find_asset("image", "main")
    assert await second.find_asset("image", "angle") is None
    assert await second.find_asset("preview", "main") is None


async def test_a_stale_attempt_attaches_nothing(desk: Desk) -> None:
    other = await start_daemon(desk.daemon.db, desk.storage, instance="two")
    attempt = await desk.claim()
    await kill(desk.daemon, other)

    with pytest.raises(Lost):
        await attempt.save_asset(b"bytes", role="image", content_type="image/jpeg")
    with pytest.raises(Lost):
        await attempt.save_document("en-US", {"name": "x"})

    assert 0 == await other.db.pool.fetchval("select count(*) from listingd.assets")
    assert 0 == await other.db.pool.fetchval("select count(*) from listingd.aplus_contents")


async def test_a_document_is_kept_once_a_job(desk: Desk) -> None:
    attempt = await desk.claim()
    await attempt.save_document("en-US", {"name": "first"})
    await attempt.save_document("de-DE", {"name": "second"})

    rows = await desk.daemon.db.pool.fetch("select locale, document::text from listingd.aplus_contents")

    assert [("de-DE", '{"name": "second"}')] == [tuple(row) for row in rows]


async def test_a_step_goes_through_the_ledger(desk: Desk) -> None:
    attempt, provider = await desk.claim(), Provider()
    words = {"provider": "painter", "identity": ["x"], "estimate_usd": PRICE, "call": provider.call}

    first = await attempt.step("paint", **words)  # type: ignore[arg-type]
    second = await attempt.step("paint", **words)  # type: ignore[arg-type]

    assert (1, False, True) == (provider.calls, first.reused, second.reused)
    assert attempt.took is not None
    assert PRICE == attempt.took.cost_usd


async def test_work_on_pixels_runs_in_the_pool(desk: Desk) -> None:
    attempt = await desk.claim()

    def work(number: int, *, plus: int) -> tuple[int, str]:
        return number + plus, threading.current_thread().name

    result, thread = await attempt.in_thread(work, 2, plus=3)

    assert 5 == result
    assert thread.startswith("pixels")


async def test_a_photo_is_loaded_while_all_pixel_threads_draw(desk: Desk) -> None:
    photo, go_on = make_photo(), threading.Event()
    upload_id = await upload(desk, photo)
    attempt = await desk.claim()
    drawing = asyncio.ensure_future(attempt.in_thread(go_on.wait, 30))

    try:
        assert photo == await attempt.load_photo(PhotoRef(upload_id=upload_id))
        assert not drawing.done()
    finally:
        go_on.set()
        await drawing


async def test_progress_is_reported_under_the_fence(desk: Desk) -> None:
    job = await claim_job(desk.daemon)

    desk.open(job).progress(1, 6, "painting", "angle")

    assert {job.fence: {"done": 1, "total": 6, "stage": "painting", "message": "angle"}} == desk.reports


async def test_a_parent_sees_its_children_when_it_runs_again(desk: Desk) -> None:
    job = await claim_job(desk.daemon)
    seen = []

    async def handle(ctx: JobContext) -> None:
        seen.append(ctx.children)

    await with_children(handle)(desk.open(job))
    children: list[dict[str, Any]] = [
        {"id": str(new_id()), "kind": "ping", "slot": slot, "input": {}} for slot in ("main", "angle")
    ]
    await Queue(desk.daemon.db).fan_out(job.fence, desk.daemon.worker, children)
    await with_children(handle)(desk.open(job))

    assert seen[0] is None
    # In any order: ids made within one millisecond have none.
    assert {("main", State.PENDING), ("angle", State.PENDING)} == {(c.slot, c.state) for c in seen[1] or ()}


@pytest.mark.parametrize(
    ("kind", "text", "pointer"),
    [
        ("ping", '{"sleep_s": -1}', "/sleep_s"),
        ("ping", '{"unknown": 1}', "/unknown"),
        ("image", "{}", "/photo"),
        ("ping", "[]", "/"),
    ],
)
def test_an_input_that_does_not_fit_names_the_field(kind: str, text: str, pointer: str) -> None:
    """A job enqueued by SQL: nobody has validated it before."""
    with pytest.raises(InvalidInput) as caught:
        read_input(kind, text)

    assert pointer in [problem.pointer for problem in caught.value.errors]


@pytest.mark.parametrize("text", ['{"echo": ' + "9" * 5000 + "}", "[" * 100_000 + "]" * 100_000])
def test_an_input_that_python_cannot_read_is_invalid(text: str) -> None:
    """jsonb stores both; one such row must fail alone."""
    with pytest.raises(InvalidInput):
        read_input("ping", text)


def test_the_daemons_own_kinds_are_read_too() -> None:
    """No caller may ask for a webhook delivery, yet it is a job like any other."""
    asked = read_input("webhook", '{"message_id": "msg_1", "type": "job.completed", "body": "{}"}')

    assert isinstance(asked, WebhookInput)


def test_an_unknown_kind_is_invalid() -> None:
    with pytest.raises(InvalidInput, match="no input"):
        read_input("poem", "{}")


async def test_sleep_ends_with_the_job(desk: Desk) -> None:
    attempt = await desk.claim()
    task = asyncio.create_task(attempt.sleep(3600))
    await asyncio.sleep(0)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
