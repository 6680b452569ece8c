"""Idempotency-Key for POSTs that make no job: the first answer is kept for 24 h and given again.

    POST --key taken?--> no: the call runs, its answer is kept     yes: the kept answer, 409 or 422

`with_keys` puts this around every POST of the table of routes, so that a new one cannot be without it. Jobs
and uploads do it themselves: a job's key is written in the job's own transaction (queue.py), an upload's body
is told by its hash. A process that dies during a call holds the key for a minute; then the call runs again,
which each of these calls bears.

An answer that shows a service key is kept sealed with the credentials that asked: at rest there is only the
hash of a key, here too. Webhook secrets and what signs read tokens stand in the database anyway.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from os import urandom
from typing import TYPE_CHECKING

from aiohttp import web

from daemon.api import models
from daemon.api.access import read_idempotency_key
from daemon.api.answers import json_answer
from daemon.api.bodies import BODY, read_bytes
from daemon.api.principal import PRINCIPAL
from daemon.api.routing import Answer, Handle, Route
from daemon.db import Database
from daemon.errors import Conflict, InvalidInput
from daemon.later import later
from daemon.settings import Http
from daemon.shield import settle

if TYPE_CHECKING:
    from cryptography import exceptions
    from cryptography.hazmat.primitives.ciphers import aead
else:
    exceptions = later("cryptography.exceptions")
    aead = later("cryptography.hazmat.primitives.ciphers.aead")

REPLAYED = {"Idempotency-Replayed": "`true` when an earlier request with the same key made it."}
_KEPT = ("Cache-Control", "ETag", "Location")
_NONCE_BYTES = 12


def with_keys(routes: Iterable[Route], db: Database, http: Http) -> tuple[Route, ...]:
    """The table, where every POST honours Idempotency-Key and says so in the document."""
    idempotency = Idempotency(db)
    return tuple(_with_key(route, idempotency, http) if route.method == "POST" else route for route in routes)


def _with_key(route: Route, idempotency: Idempotency, http: Http) -> Route:
    if route.keyed == "by_itself":
        return route

    async def handle(request: web.Request) -> web.StreamResponse:
        if "Idempotency-Key" not in request.headers:
            return await route.handle(request)
        body = await read_bytes(request, max_bytes=http.max_body_bytes, timeout_s=http.body_timeout_s)
        request[BODY] = body
        return await idempotency.once(
            request, route.handle, content=hashlib.sha256(body).hexdigest(), sealed=route.keyed == "sealed"
        )

    return replace(
        route,
        handle=handle,
        headers=models.IdempotencyHeaders,
        problems=tuple(sorted({*route.problems, 408, 409, 413, 422})),
        answers={status: _told(answer) for status, answer in route.answers.items()},
    )


def _told(answer: Answer) -> Answer:
    return replace(answer, headers={**answer.headers, **REPLAYED})


class Idempotency:
    """Runs a call once for each key of a principal."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def once(
        self, request: web.Request, call: Handle, *, content: str, sealed: bool = False
    ) -> web.StreamResponse:
        """The call's answer, or the one that an earlier request with this key got.

        content: what tells one body from another (a hash). sealed: keep the answer unreadable for others.
        Errors: those of the call; InvalidInput (idempotency_key_reused), Conflict (idempotency_in_flight,
        idempotency_sealed).
        """
        key = read_idempotency_key(request)
        if key is None:
            return await call(request)
        principal = request[PRINCIPAL].id
        fingerprint = hashlib.sha256(f"{request.method} {request.raw_path} {content}".encode()).hexdigest()
        taking = ("take_idempotency_key", principal, key, fingerprint)
        # No row: another took the key after this statement began. The next statement sees who has it.
        row = await self._db.fetchrow(*taking) or await self._db.fetchrow(*taking)
        if row is not None and row["fingerprint"] != fingerprint:
            raise InvalidInput(
                "This Idempotency-Key was used for another request.", code="idempotency_key_reused",
                hint="Use a new key for a new request.",
            )  # fmt: skip
        seal = _Seal(request) if sealed else None
        if row is None or not (row["taken"] or row["response"]):
            raise Conflict(
                "A request with the same Idempotency-Key is in flight.", code="idempotency_in_flight",
                data={"retry_after_s": 1},
            )  # fmt: skip
        if not row["taken"]:
            return _replay(row["response"], seal)
        # A caller that hangs up comes back with the same key: what was begun for it is finished and kept.
        return await settle(self._run_and_keep(request, call, principal, key, seal))

    async def _run_and_keep(
        self, request: web.Request, call: Handle, principal: str, key: str, seal: _Seal | None
    ) -> web.Response:
        return await self._keep(await self._run(request, call, principal, key), principal, key, seal)

    async def _run(self, request: web.Request, call: Handle, principal: str, key: str) -> web.Response:
        try:
            response = await call(request)
        except BaseException:  # nothing was done: the same key may try again
            await self._db.fetch("drop_idempotency_key", principal, key)
            raise
        assert isinstance(response, web.Response)  # these calls answer JSON or nothing
        return response

    async def _keep(
        self, response: web.Response, principal: str, key: str, seal: _Seal | None
    ) -> web.Response:
        body = response.body or b""
        assert isinstance(body, bytes)
        headers = {name: response.headers[name] for name in _KEPT if name in response.headers}
        kept = {
            "status": response.status,
            "headers": headers,
            "body": seal.close(body) if seal else body.decode(),
        }
        await self._db.fetch("keep_idempotent_answer", principal, key, json.dumps(kept))
        return response


class _Seal:
    """Encrypts with the bearer token of a request: who has it gets the answer, who has the database does not."""

    def __init__(self, request: web.Request) -> None:
        token = request.headers["Authorization"].partition(" ")[2].strip()
        self._cipher = aead.AESGCM(hashlib.sha256(f"listingd answer {token}".encode()).digest())

    def close(self, body: bytes) -> str:
        nonce = urandom(_NONCE_BYTES)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, body, None)).decode()

    def open(self, text: str) -> bytes:
        """Errors: Conflict idempotency_sealed with other credentials."""
        data = base64.b64decode(text)
        try:
            return self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None)
        except exceptions.InvalidTag as exc:
            raise Conflict(
                "The answer to this Idempotency-Key can be read only with the credentials that asked.",
                code="idempotency_sealed", hint="Use a new key.",
            ) from exc  # fmt: skip


def _replay(kept_text: str, seal: _Seal | None) -> web.Response:
    kept = json.loads(kept_text)
    headers = kept["headers"] | {"Idempotency-Replayed": "true"}
    body = seal.open(kept["body"]).decode() if seal else kept["body"]
    return (
        json_answer(body, kept["status"], headers)
        if body
        else web.Response(status=kept["status"], headers=headers)
    )
