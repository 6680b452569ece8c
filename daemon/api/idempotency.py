"""Idempotency-Key for POSTs that make no job: the first answer is kept for 24 h and given again.

Jobs need nothing of this: their key is written in the job's own transaction (queue.py). Here the key is
taken first, and a process that dies in between holds it for a minute; then the call runs again, which each of
these calls bears. Not for answers that show a secret once: they would be kept in readable form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from daemon.api.access import read_idempotency_key
from daemon.api.answers import json_answer
from daemon.api.principal import PRINCIPAL
from daemon.db import Database
from daemon.errors import Conflict, InvalidInput

_KEPT = ("ETag", "Location")


class Idempotency:
    """Runs a call once for each key of a principal."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def once(
        self, request: web.Request, call: Callable[[], Awaitable[web.Response]], *, content: str = ""
    ) -> web.Response:
        """The call's answer, or the one that an earlier request with this key got.

        content: what tells one body from another (a hash), "" for calls without a body.
        Errors: those of the call; InvalidInput (idempotency_key_reused), Conflict (idempotency_in_flight).
        """
        key = read_idempotency_key(request)
        if key is None:
            return await call()
        principal = request[PRINCIPAL].id
        fingerprint = hashlib.sha256(f"{request.method} {request.raw_path} {content}".encode()).hexdigest()
        row = await self._db.fetchrow("take_idempotency_key", principal, key, fingerprint)
        if row is None or row["fingerprint"] != fingerprint:
            raise InvalidInput(
                "This Idempotency-Key was used for another request.", code="idempotency_key_reused",
                hint="Use a new key for a new request.",
            )  # fmt: skip
        if not row["taken"]:
            if row["response"] is None:
                raise Conflict(
                    "A request with the same Idempotency-Key is in flight.", code="idempotency_in_flight",
                    data={"retry_after_s": 1},
                )  # fmt: skip
            kept = json.loads(row["response"])
            return json_answer(
                kept["body"], kept["status"], kept["headers"] | {"Idempotency-Replayed": "true"}
            )
        try:
            response = await call()
        except BaseException:  # nothing was done: the same key may try again
            await self._db.fetch("drop_idempotency_key", principal, key)
            raise
        body = response.body
        assert isinstance(body, bytes)  # these calls answer JSON
        headers = {name: response.headers[name] for name in _KEPT if name in response.headers}
        kept = {"status": response.status, "headers": headers, "body": body.decode()}
        await self._db.fetch("keep_idempotent_answer", principal, key, json.dumps(kept))
        return response
