"""Who hears of jobs: webhook endpoints, their secrets, and the log of deliveries.

    state change ──trigger, same transaction──▶ job of kind `webhook` ──lane──▶ handlers/webhook.py ──▶ receiver

The queue is the outbox: what is committed is delivered, and a delivery's attempts are its job's attempts.
An endpoint belongs to one user and hears of their jobs; the service's own (user_id "") hears of everybody's.
A job may name a webhook of its own; that is signed with its owner's job secret.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import asyncpg

from daemon.db import Database
from daemon.errors import Conflict, NotFound
from daemon.jobs import new_id
from daemon.webhook_sending import new_secret

EventType = Literal[
    "job.completed", "job.failed", "job.cancelled", "job.started", "job.item_completed", "budget.exhausted"
]
MAX_ENDPOINTS = 20  # of one user


@dataclass(frozen=True, slots=True)
class Endpoint:
    """types: what it hears of, empty for everything."""

    id: UUID
    user_id: str
    url: str
    types: tuple[str, ...]
    description: str
    created_at: datetime
    disabled_at: datetime | None
    disabled_why: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a delivery goes. keys: valid signing secrets, the newest first."""

    url: str
    keys: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Target(url={self.url!r})"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one receiver. attempts: JSON objects {at, code, message, status, duration_s} of those that
    did not succeed; result: {status, duration_s} of the one that did.
    """

    id: UUID
    endpoint_id: UUID | None
    url: str | None
    message_id: str
    type: str
    job_id: UUID | None
    state: str
    created_at: datetime
    finished_at: datetime | None
    next_attempt_at: datetime | None
    result: Any
    attempts: Sequence[Any]


class Webhooks:
    """The endpoints and deliveries of one installation. Every method is confined to one user ("" = service)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, user_id: str, *, url: str, types: Sequence[str] = (), description: str = ""
    ) -> tuple[Endpoint, str]:
        """A new endpoint and its secret. Errors: Conflict at MAX_ENDPOINTS, Unavailable."""
        secret = new_secret()
        row = await self._database.fetchrow(
            "create_webhook_endpoint", new_id(), user_id, url, list(types), description, secret, MAX_ENDPOINTS
        )
        if row is None:
            raise Conflict(f"There are {MAX_ENDPOINTS} webhook endpoints already.", hint="Delete one first.")
        await self._database.fetch("mark_webhook_jobs", user_id)
        return _endpoint(row), secret

    async def list_endpoints(self, user_id: str) -> list[Endpoint]:
        """Newest first. Errors: Unavailable."""
        return [_endpoint(row) for row in await self._database.fetch("list_webhook_endpoints", user_id, None)]

    async def read(self, user_id: str, endpoint_id: UUID) -> Endpoint:
        """Errors: NotFound, Unavailable."""
        return _endpoint(
            _found(await self._database.fetchrow("list_webhook_endpoints", user_id, endpoint_id))
        )

    async def update(
        self,
        user_id: str,
        endpoint_id: UUID,
        *,
        url: str | None = None,
        types: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Endpoint:
        """Change what is given. Errors: NotFound, Unavailable."""
        row = await self._database.fetchrow(
            "update_webhook_endpoint", endpoint_id, user_id, url,
            None if types is None else list(types), description, enabled,
        )  # fmt: skip
        if enabled and row is not None:
            await self._database.fetch("mark_webhook_jobs", user_id)
        return _endpoint(_found(row))

    async def delete(self, user_id: str, endpoint_id: UUID) -> None:
        """Deliveries on their way fail as webhook_disabled. Errors: NotFound, Unavailable."""
        _found(await self._database.fetchrow("delete_webhook_endpoint", endpoint_id, user_id))

    async def disable(self, endpoint_id: UUID, why: str) -> None:
        """Stop sending; the owner may enable it again. Errors: Unavailable."""
        await self._database.fetch("disable_webhook_endpoint", endpoint_id, why)

    async def read_secret(self, user_id: str, endpoint_id: UUID | None) -> str:
        """The current secret; without an endpoint that of the user's jobs, made when there is none.

        Errors: NotFound, Unavailable.
        """
        if endpoint_id is None:
            await self._database.fetch("ensure_job_webhook_secret", user_id, new_secret())
        row = _found(await self._database.fetchrow("read_webhook_secret", endpoint_id, user_id))
        return str(row["secret"])

    async def rotate_secret(self, user_id: str, endpoint_id: UUID | None, *, overlap_s: float) -> str:
        """A new secret; the old one signs along for `overlap_s` seconds. Errors: NotFound, Unavailable."""
        secret = new_secret()
        rotating = ("rotate_webhook_secret", endpoint_id, user_id, secret, overlap_s)
        while True:
            try:
                _found(await self._database.fetchrow(*rotating))
            except asyncpg.UniqueViolationError:  # of several at once one wins each round
                continue
            return secret

    async def find_target(self, user_id: str, endpoint_id: UUID | None, url: str | None) -> Target | None:
        """Where a delivery goes now; None when its endpoint is gone or disabled. Errors: Unavailable."""
        row = await self._database.fetchrow("find_webhook_target", endpoint_id, user_id)
        if row is None and endpoint_id is None:
            await self.read_secret(user_id, None)
            row = await self._database.fetchrow("find_webhook_target", None, user_id)
        if row is None:
            return None
        goes_to = url if endpoint_id is None else row["url"]
        return None if goes_to is None else Target(goes_to, tuple(row["secrets"]))

    async def test(self, user_id: str, endpoint_id: UUID) -> UUID:
        """Queue a `webhook.test` message, tried once; the delivery's id. Errors: NotFound, Unavailable."""
        row = await self._database.fetchrow("queue_webhook_test", new_id(), endpoint_id, user_id)
        return UUID(str(_found(row)["id"]))

    async def redeliver(self, user_id: str, delivery_id: UUID) -> UUID:
        """Queue the same message once more; the new delivery's id. Errors: NotFound, Unavailable."""
        row = await self._database.fetchrow("redeliver_webhook", new_id(), delivery_id, user_id)
        return UUID(str(_found(row)["id"]))

    async def list_deliveries(
        self,
        user_id: str,
        *,
        endpoint_id: UUID | None = None,
        delivery_id: UUID | None = None,
        state: str | None = None,
        before: UUID | None = None,
        limit: int = 20,
    ) -> list[Delivery]:
        """Newest first. Errors: Unavailable."""
        rows = await self._database.fetch(
            "list_webhook_deliveries", user_id, endpoint_id, delivery_id, state, before, limit
        )
        return [_delivery(row) for row in rows]


def _found(row: Any) -> Any:
    if row is None:
        raise NotFound("There is no such webhook.")
    return row


def _endpoint(row: Any) -> Endpoint:
    return Endpoint(
        row["id"], row["user_id"], row["url"], tuple(row["types"]), row["description"],
        row["created_at"], row["disabled_at"], row["disabled_why"],
    )  # fmt: skip


def _delivery(row: Any) -> Delivery:
    return Delivery(
        id=row["id"],
        endpoint_id=UUID(row["endpoint_id"]) if row["endpoint_id"] else None,
        url=row["url"],
        message_id=row["message_id"],
        type=row["type"],
        job_id=UUID(row["job_id"]) if row["job_id"] else None,
        state=row["state"],
        created_at=row["created_at"],
        finished_at=row["finished_at"],
        next_attempt_at=row["next_attempt_at"],
        result=json.loads(row["result_text"]) if row["result_text"] else None,
        attempts=json.loads(row["attempts_text"]) if row["attempts_text"] else [],
    )
