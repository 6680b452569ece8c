"""The application with every route and the real authenticator, on a real socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import jwt

from daemon.api.admission import Admission
from daemon.api.auth import BearerAuthenticator
from daemon.api.deps import ApiDeps, Readiness
from daemon.changes import Changes
from daemon.creator import Creator
from daemon.db import Database
from daemon.durations import Durations
from daemon.explain import Explainer
from daemon.http import build_app, list_operator_routes, serve
from daemon.ledger import Ledger
from daemon.providers.factory import build_providers
from daemon.queue import Queue
from daemon.read_tokens import ReadTokens
from daemon.scheduler import Scheduler
from daemon.settings import Auth, Http, Settings
from daemon.storage import open_storage
from daemon.tokens import ServiceKeys
from daemon.user_tokens import UserTokens
from daemon.views import Views
from tests.api.application import nothing

FIRST = "first-key-of-at-least-32-characters!"
SECRET = "a-shared-secret-of-more-than-32-characters"
AUTH = Auth(jwt_issuer="https://id.example", audience="authenticated", jwt_secret=SECRET)


@dataclass
class Operated:
    """A running application and a client without credentials."""

    url: str
    client: aiohttp.ClientSession
    db: Database

    async def call(
        self, method: str, path: str, token: str | None = FIRST, **kw: Any
    ) -> tuple[int, Any, Any]:
        """(status, JSON or bytes, headers)."""
        headers = {**kw.pop("headers", {}), **({} if token is None else {"Authorization": f"Bearer {token}"})}
        async with self.client.request(method, self.url + path, headers=headers, **kw) as answer:
            is_json = answer.content_type.endswith("json") and answer.status != 204
            body = await answer.json(content_type=None) if is_json else await answer.read()
            return answer.status, body, answer.headers


def user_token(user_id: str) -> str:
    """A JWT of the test issuer."""
    claims = {"iss": AUTH.jwt_issuer, "aud": AUTH.audience, "sub": user_id, "exp": int(time.time()) + 600}
    return jwt.encode(claims, SECRET, algorithm="HS256")


@asynccontextmanager
async def operated(settings: Settings, db: Database) -> AsyncIterator[Operated]:
    """The application on a free port."""
    settings = settings.model_copy(update={"http": Http(port=0)})
    keys = ServiceKeys(db, first_key=FIRST)
    providers = build_providers(settings)

    async def readiness() -> Readiness:
        return Readiness(True, {})

    queue = Queue(db)
    deps = ApiDeps(
        settings=settings, db=db, queue=queue, creator=Creator(queue), views=Views(db), changes=Changes(),
        storage=await open_storage(settings),
        admission=Admission(
            db, Ledger(db, settings.budgets), providers, open_jobs_per_user=settings.limits.open_jobs_per_user
        ),
        authenticator=BearerAuthenticator(
            keys=keys, users=UserTokens(AUTH, None), read_tokens=ReadTokens(db), failed_logins_per_minute=1000
        ),
        steer=nothing, explainer=Explainer(db, Scheduler(["ping", "image"]), Durations(), free_slots=lambda: 4),
        readiness=readiness, is_draining=lambda: False,
    )  # fmt: skip
    app = build_app(deps, list_operator_routes(deps, keys, providers))
    creator = asyncio.create_task(deps.creator.run())
    try:
        async with aiohttp.ClientSession() as client, serve(app, settings) as url:
            yield Operated(url, client, db)
    finally:
        creator.cancel()
        await asyncio.gather(creator, return_exceptions=True)
