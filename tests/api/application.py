"""The whole application on a real socket, a real Postgres and a real directory of files.

Jobs are moved by the SQL functions that other languages use, so that a test says when each thing happens.
"""

from __future__ import annotations

import asyncio
import hmac
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp
from aiohttp import web
from PIL import Image

from daemon.api.admission import Admission
from daemon.api.deps import ApiDeps, Readiness
from daemon.api.principal import SCOPES, Principal
from daemon.changes import Changes
from daemon.creator import Creator
from daemon.db import Database
from daemon.durations import Durations
from daemon.errors import Unauthenticated
from daemon.explain import Explainer
from daemon.http import build_app, list_operator_routes, serve
from daemon.ledger import Ledger
from daemon.providers.factory import build_providers
from daemon.queue import Queue
from daemon.scheduler import Scheduler
from daemon.settings import Settings
from daemon.storage import Storage
from daemon.tokens import ServiceKeys
from daemon.views import Views


async def nothing() -> None:
    """No workers run beside the application that could be steered."""


SERVICE_KEY = "service-key-of-the-tests-0123456789"


class FixedKeys:
    """An authenticator for one service key, users `user:<name>` and read tokens given as principals."""

    def __init__(self) -> None:
        self.principals: dict[str, Principal] = {SERVICE_KEY: Principal("service", "key:test", None, SCOPES)}

    async def authenticate(self, request: web.Request) -> Principal:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not token and request.path.endswith("/events"):
            scheme, token = "Bearer", request.query.get("token", "")
        if scheme == "Bearer" and token.startswith("user:"):
            return Principal("user", token, token[5:], frozenset({"enqueue", "read"}))
        for key, principal in self.principals.items():
            if scheme == "Bearer" and hmac.compare_digest(token.encode(), key.encode()):
                return principal
        raise Unauthenticated("These credentials are not known.")


@dataclass
class Api:
    """A running application and a client of it with the service key."""

    url: str
    client: aiohttp.ClientSession
    app: web.Application
    deps: ApiDeps
    keys: FixedKeys
    draining: list[bool]

    async def call(
        self, method: str, path: str, *, user: str | None = None, **kw: Any
    ) -> tuple[int, Any, aiohttp.ClientResponse]:
        """(status, JSON or bytes, response)."""
        headers = dict(kw.pop("headers", {}))
        if user is not None:
            headers["Authorization"] = f"Bearer user:{user}"
        async with self.client.request(
            method, self.url + path, headers=headers, allow_redirects=False, **kw
        ) as r:
            body = await r.read()
            is_json = r.content_type in ("application/json", "application/problem+json") and body
            return r.status, (await r.json(content_type=None)) if is_json else body, r

    async def create(self, *, user: str | None = None, **fields: Any) -> dict[str, Any]:
        """A ping job of the service, or an image job of a user."""
        body = {"kind": "ping", "input": {"echo": 1}} if user is None else IMAGE_JOB
        status, job, _ = await self.call("POST", "/v1/jobs", user=user, json=body | fields)
        assert status == 201, job
        return dict(job)

    async def claim(self) -> list[tuple[UUID, int]]:
        """Claim everything that is ready: (id, fence)."""
        async with self.deps.db.acquire() as c:
            rows = await c.fetch(
                "select fence from listingd.job_states where state = 'pending' order by fence"
            )
            got = await c.fetch(
                "select id, fence from listingd.mark_jobs_processing('test', $1)", [r["fence"] for r in rows]
            )
        return [(row["id"], row["fence"]) for row in got]

    async def execute(self, statement: str, *args: Any) -> None:
        async with self.deps.db.acquire() as c:
            await c.execute(statement, *args)

    async def complete(self, fence: int, result: str = "{}") -> None:
        await self.execute(
            "select listingd.mark_jobs_completed(jsonb_build_array(jsonb_build_object("
            "'fence', $1::bigint, 'result', $2::jsonb)))", fence, result,
        )  # fmt: skip

    async def add_asset(self, job_id: UUID, data: bytes, *, slot: str = "main", user_id: str = "") -> UUID:
        """A finished picture of a job, in storage and in the table."""
        sha256 = await self.deps.storage.put(data, "image/jpeg")
        async with self.deps.db.acquire() as c:
            found: UUID = await c.fetchval(
                "with v as (update listingd.job_states set version = version + 1 where id = $1 returning version) "
                "insert into listingd.assets (id, job_id, user_id, slot, role, content_type, size_bytes, width_px, "
                "height_px, sha256, version) select listingd.new_id(), $1, $2, $3, 'image', 'image/jpeg', $4, 60, 40, "
                "$5, v.version from v returning id", job_id, user_id, slot, len(data), sha256,
            )  # fmt: skip
        return found


IMAGE_JOB: dict[str, Any] = {
    "kind": "image",
    "input": {
        "photo": {"upload_id": "0190c2e4-9b1a-7cc3-8b3f-0a3c7b1f9d11"}, "slot": "main",
        "product": {"title": "Oak chair"},
    },
}  # fmt: skip


def picture(width: int = 60, height: int = 40, image_format: str = "JPEG") -> bytes:
    """A small encoded picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 120, 40)).save(buffer, image_format)
    return buffer.getvalue()


@asynccontextmanager
async def running_api(settings: Settings, db: Database, storage: Storage) -> AsyncIterator[Api]:
    """The application of these settings, on a free port."""
    draining: list[bool] = []
    keys = FixedKeys()
    views = Views(db, base_url=settings.http.public_url or "")

    async def readiness() -> Readiness:
        return Readiness(not draining, {"database": "ok"})

    providers = build_providers(settings)
    queue = Queue(db)
    deps = ApiDeps(
        settings=settings, db=db, queue=queue, creator=Creator(queue), views=views, changes=Changes(), storage=storage,
        admission=Admission(
            db, Ledger(db, settings.budgets), providers, open_jobs_per_user=settings.limits.open_jobs_per_user
        ),
        authenticator=keys, steer=nothing, explainer=Explainer(db, Scheduler(["ping", "image"]), Durations(), free_slots=lambda: 4),
        readiness=readiness, is_draining=lambda: bool(draining),
    )  # fmt: skip
    keys_of_all = ServiceKeys(db, first_key=SERVICE_KEY)
    app = build_app(deps, list_operator_routes(deps, keys_of_all, providers))
    creator = asyncio.create_task(deps.creator.run())
    headers = {"Authorization": f"Bearer {SERVICE_KEY}"}
    try:
        async with aiohttp.ClientSession(headers=headers) as client, serve(app, settings) as url:
            yield Api(url, client, app, deps, keys, draining)
    finally:
        creator.cancel()
        await asyncio.gather(creator, return_exceptions=True)
