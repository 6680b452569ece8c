"""Webhook endpoints, their secrets and the log of deliveries over HTTP.

A user's endpoints hear of that user's jobs, a service key's (all of them share one set) of everybody's.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from aiohttp import web
from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter

from daemon.api import models
from daemon.api.access import path_id
from daemon.api.answers import json_answer
from daemon.api.bodies import read_json, read_optional_json, read_query, validate
from daemon.api.deps import ApiDeps
from daemon.api.principal import PRINCIPAL
from daemon.api.routing import Answer, Route
from daemon.errors import Forbidden
from daemon.views import write_time
from daemon.webhook_sending import check_url
from daemon.webhooks import Delivery, Endpoint, EventType, Webhooks

_NO_STORE = {"Cache-Control": "no-store"}


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be printable")
    return value


Url = Annotated[str, StringConstraints(min_length=8, max_length=2000), AfterValidator(_printable)]
Description = Annotated[str, StringConstraints(max_length=200), AfterValidator(_printable)]
Types = Annotated[tuple[EventType, ...], Field(max_length=6, description="Empty: everything.")]


class CreateEndpoint(models.Body):
    """A receiver. http and https; private addresses are refused unless the operator allows their network."""

    url: Url
    types: Types = ()
    description: Description = ""


class ChangeEndpoint(models.Body):
    """What is left out stays."""

    url: Url | None = None
    types: Types | None = None
    description: Description | None = None
    enabled: bool | None = None


class RotateSecret(models.Body):
    overlap_s: int = Field(
        86_400, ge=0, le=604_800, description="Seconds for which the old secret signs along."
    )


class DeliveryQuery(models.Query):
    endpoint_id: UUID | None = None
    state: models.StateName | None = None
    limit: int = Field(20, ge=1, le=100)
    cursor: UUID | None = Field(None, description="`next_cursor` of the page before.")


class EndpointAnswer(models.Answer):
    id: UUID
    url: str
    types: list[str]
    description: str
    created_at: datetime
    disabled_at: datetime | None
    disabled_why: str | None


class NewEndpoint(EndpointAnswer):
    secret: str


class Endpoints(models.Answer):
    data: list[EndpointAnswer]


class Secret(models.Answer):
    """Signs `webhook-id.webhook-timestamp.body` (Standard Webhooks 1.0.0)."""

    secret: str


class DeliveryAttempt(models.Answer):
    at: datetime
    code: str
    message: str | None
    status: int | None
    duration_s: float | None


class DeliveryAnswer(models.Answer):
    """One message to one receiver. attempts: those that were not accepted; result: the one that was."""

    id: UUID
    endpoint_id: UUID | None
    url: str | None
    message_id: str
    type: str
    job_id: UUID | None
    state: models.StateName
    created_at: datetime
    finished_at: datetime | None
    next_attempt_at: datetime | None
    result: dict[str, Any] | None
    attempts: list[DeliveryAttempt]


class Deliveries(models.Answer):
    data: list[DeliveryAnswer]
    next_cursor: str | None


class Queued(models.Answer):
    delivery_id: UUID
    state: Literal["pending"]


_CREATE: TypeAdapter[CreateEndpoint] = TypeAdapter(CreateEndpoint)
_CHANGE: TypeAdapter[ChangeEndpoint] = TypeAdapter(ChangeEndpoint)
_ROTATE: TypeAdapter[RotateSecret] = TypeAdapter(RotateSecret)


class WebhookCalls:
    """The handlers of one application."""

    def __init__(self, deps: ApiDeps) -> None:
        self._http = deps.settings.http
        self._allowed = [ipaddress.ip_network(net) for net in deps.settings.fetch.allowed_private_networks]
        self._webhooks = Webhooks(deps.db)

    async def create(self, request: web.Request) -> web.Response:
        owner = _owner(request)
        _, body = await read_json(request, self._http)
        asked = validate(_CREATE, body)
        check_url(asked.url, self._allowed)
        endpoint, secret = await self._webhooks.create(
            owner, url=asked.url, types=asked.types, description=asked.description
        )
        headers = {"Location": f"/v1/webhooks/{endpoint.id}", **_NO_STORE}
        return json_answer(_endpoint(endpoint) | {"secret": secret}, 201, headers)

    async def list_all(self, request: web.Request) -> web.Response:
        read_query(request, models.NoQuery)
        found = await self._webhooks.list_endpoints(_owner(request))
        return json_answer({"data": [_endpoint(endpoint) for endpoint in found]})

    async def read(self, request: web.Request) -> web.Response:
        return json_answer(_endpoint(await self._webhooks.read(_owner(request), path_id(request, "webhook"))))

    async def change(self, request: web.Request) -> web.Response:
        owner, endpoint_id = _owner(request), path_id(request, "webhook")
        asked = validate(_CHANGE, await read_optional_json(request, self._http))
        if asked.url is not None:
            check_url(asked.url, self._allowed)
        changed = await self._webhooks.update(
            owner, endpoint_id, url=asked.url, types=asked.types, description=asked.description,
            enabled=asked.enabled,
        )  # fmt: skip
        return json_answer(_endpoint(changed))

    async def delete(self, request: web.Request) -> web.Response:
        await self._webhooks.delete(_owner(request), path_id(request, "webhook"))
        return web.Response(status=204)

    async def test(self, request: web.Request) -> web.Response:
        return _queued(await self._webhooks.test(_owner(request), path_id(request, "webhook")))

    async def read_secret(self, request: web.Request) -> web.Response:
        secret = await self._webhooks.read_secret(_owner(request), path_id(request, "webhook"))
        return json_answer({"secret": secret}, headers=_NO_STORE)

    async def rotate_secret(self, request: web.Request) -> web.Response:
        return await self._rotate(request, path_id(request, "webhook"))

    async def read_job_secret(self, request: web.Request) -> web.Response:
        return json_answer(
            {"secret": await self._webhooks.read_secret(_owner(request), None)}, headers=_NO_STORE
        )

    async def rotate_job_secret(self, request: web.Request) -> web.Response:
        return await self._rotate(request, None)

    async def _rotate(self, request: web.Request, endpoint_id: UUID | None) -> web.Response:
        owner = _owner(request)
        asked = validate(_ROTATE, await read_optional_json(request, self._http))
        secret = await self._webhooks.rotate_secret(owner, endpoint_id, overlap_s=asked.overlap_s)
        return json_answer({"secret": secret}, headers=_NO_STORE)

    async def list_deliveries(self, request: web.Request) -> web.Response:
        owner = _owner(request)
        wanted = read_query(request, DeliveryQuery)
        found = await self._webhooks.list_deliveries(
            owner,
            endpoint_id=wanted.endpoint_id,
            state=wanted.state,
            before=wanted.cursor,
            limit=wanted.limit + 1,
        )
        page = found[: wanted.limit]
        cursor = str(page[-1].id) if len(found) > wanted.limit else None
        return json_answer({"data": [_delivery(delivery) for delivery in page], "next_cursor": cursor})

    async def redeliver(self, request: web.Request) -> web.Response:
        return _queued(await self._webhooks.redeliver(_owner(request), path_id(request, "webhook")))


def _owner(request: web.Request) -> str:
    """Whose endpoints: a user's own, or the service's (""). Errors: Forbidden for read tokens."""
    principal = request[PRINCIPAL]
    if principal.kind == "token":
        raise Forbidden("A read token has no webhooks.", hint="Use a service key or a user's JWT.")
    return principal.user_id or ""


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": str(endpoint.id),
        "url": endpoint.url,
        "types": list(endpoint.types),
        "description": endpoint.description,
        "created_at": write_time(endpoint.created_at),
        "disabled_at": _time(endpoint.disabled_at),
        "disabled_why": endpoint.disabled_why,
    }


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": str(delivery.id),
        "endpoint_id": None if delivery.endpoint_id is None else str(delivery.endpoint_id),
        "url": delivery.url,
        "message_id": delivery.message_id,
        "type": delivery.type,
        "job_id": None if delivery.job_id is None else str(delivery.job_id),
        "state": delivery.state,
        "created_at": write_time(delivery.created_at),
        "finished_at": _time(delivery.finished_at),
        "next_attempt_at": _time(delivery.next_attempt_at),
        "result": delivery.result,
        "attempts": list(delivery.attempts),
    }


def _queued(delivery_id: UUID) -> web.Response:
    return json_answer({"delivery_id": str(delivery_id), "state": "pending"}, 202)


def _time(value: datetime | None) -> str | None:
    return None if value is None else write_time(value)


def routes(deps: ApiDeps) -> list[Route]:
    """The routes of this topic."""
    calls = WebhookCalls(deps)
    topic, sent = "webhooks", (408, 413, 415, 422)
    queued = {202: Answer("Queued.", Queued)}
    secret = {200: Answer("The secret.", Secret, headers={"Cache-Control": "`no-store`"})}
    return [
        Route(
            "POST", "/v1/webhooks", calls.create, "Create a webhook endpoint", topic, "enqueue",
            description="It hears of the jobs created from now on and of those on their way. At most 20.",
            body=CreateEndpoint,
            answers={201: Answer("Created; the secret verifies its messages.", NewEndpoint,
                                 headers={"Location": "The endpoint's path.", "Cache-Control": "`no-store`"})},
            problems=(409, *sent),
        ),
        Route("GET", "/v1/webhooks", calls.list_all, "List webhook endpoints", topic, query=models.NoQuery,
              answers={200: Answer("All, newest first.", Endpoints)}, problems=(422,)),
        # Before /{id}: the router takes the first path that fits.
        Route("GET", "/v1/webhooks/deliveries", calls.list_deliveries, "List deliveries, newest first", topic,
              query=DeliveryQuery, answers={200: Answer("A page.", Deliveries)}, problems=(422,)),
        Route("POST", "/v1/webhooks/deliveries/{id}/redeliver", calls.redeliver, "Send a message once more", topic,
              "enqueue", answers=queued, problems=(404,)),
        Route("GET", "/v1/webhooks/job-secret", calls.read_job_secret, "Read the secret of jobs' own webhooks", topic,
              "enqueue", description="Signs the messages to the `webhook.url` that a job names.", answers=secret),
        Route("POST", "/v1/webhooks/job-secret/rotate", calls.rotate_job_secret, "Rotate that secret", topic,
              "enqueue", body=RotateSecret, answers=secret, problems=sent),
        Route("GET", "/v1/webhooks/{id}", calls.read, "Read a webhook endpoint", topic,
              answers={200: Answer("The endpoint.", EndpointAnswer)}, problems=(404,)),
        Route("PATCH", "/v1/webhooks/{id}", calls.change, "Change, enable or disable an endpoint", topic, "enqueue",
              body=ChangeEndpoint, answers={200: Answer("The endpoint.", EndpointAnswer)}, problems=(404, *sent)),
        Route("DELETE", "/v1/webhooks/{id}", calls.delete, "Delete an endpoint", topic, "enqueue",
              answers={204: Answer("Deleted.")}, problems=(404,)),
        Route("POST", "/v1/webhooks/{id}/test", calls.test, "Send a test message", topic, "enqueue",
              answers=queued, problems=(404,)),
        Route("GET", "/v1/webhooks/{id}/secret", calls.read_secret, "Read an endpoint's secret", topic, "enqueue",
              answers=secret, problems=(404,)),
        Route("POST", "/v1/webhooks/{id}/secret/rotate", calls.rotate_secret, "Rotate an endpoint's secret", topic,
              "enqueue", body=RotateSecret, answers=secret, problems=(404, *sent)),
    ]  # fmt: skip
