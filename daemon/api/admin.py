"""What operators see and steer: queues, providers, workers, keys, budgets. Scope `admin` throughout."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from aiohttp import web
from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationInfo

from daemon.api import models
from daemon.api.access import no_such
from daemon.api.answers import json_answer
from daemon.api.bodies import read_json, read_optional_json, read_query, validate
from daemon.api.deps import ApiDeps
from daemon.api.routing import Answer, Route
from daemon.lanes import Lanes
from daemon.ledger import Budget, Ledger
from daemon.tokens import Scope, ServiceKey, ServiceKeys
from daemon.views import dump, write_time

KINDS = ("image", "pack", "aplus", "ping", "webhook")


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be printable")
    return value


def _subject(value: str, info: ValidationInfo) -> str:
    """As the books write it: a budget under another name would limit nothing."""
    scope = info.data.get("scope")
    if scope == "total" and value:
        raise ValueError("must be empty for the total")
    if scope == "project":
        try:
            return str(UUID(value))
        except ValueError as exc:
            raise ValueError("must be the id of a project") from exc
    return value


Words = Annotated[str, StringConstraints(max_length=200), AfterValidator(_printable)]
Subject = Annotated[Words, AfterValidator(_subject)]
BudgetScope = Literal["total", "user", "project"]
Period = Literal["day", "month"]
Limit = Annotated[Decimal, Field(ge=0, le=10_000_000, max_digits=14, decimal_places=6)]


class ChangeQueue(models.Body):
    """What is left out stays. paused: nothing of the kind is started. concurrency: of all daemons together."""

    paused: bool | None = None
    why: Words = ""
    concurrency: int | None = Field(None, ge=0, le=10_000, description="null: no limit.")


class QueueAnswer(models.Answer):
    """is_estimate: very many jobs wait, so that pending is reckoned from samples."""

    kind: str
    paused: bool
    paused_why: str | None
    concurrency: int | None
    pending: int
    processing: int
    oldest_pending_s: float | None
    is_estimate: bool


class Queues(models.Answer):
    data: list[QueueAnswer]


class ProviderAnswer(models.Answer):
    """A provider's lane over all daemons. allowed: calls in flight it allows now."""

    name: str
    provider: str
    allowed: int
    max_in_flight: int
    in_flight: int
    is_paused: bool
    paused_s: float
    pause_code: str | None
    pause_why: str | None
    is_probing: bool
    wait_s: float


class ProviderList(models.Answer):
    data: list[ProviderAnswer]


class WorkerAnswer(models.Answer):
    id: int
    instance: str
    kinds: list[str]
    concurrency: int
    running: int
    draining: bool
    started_at: datetime
    seen_at: datetime
    info: dict[str, Any]


class WorkerList(models.Answer):
    data: list[WorkerAnswer]


class CreateKey(models.Body):
    name: Annotated[Words, StringConstraints(min_length=1)]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=3)] = ("enqueue", "read")
    expires_at: models.Time | None = None


class RotateKey(models.Body):
    overlap_s: int = Field(86_400, ge=0, le=2_592_000, description="Seconds for which the old key goes on.")


class KeyAnswer(models.Answer):
    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


class NewKeyAnswer(KeyAnswer):
    """The token is shown this once."""

    token: str


class KeyList(models.Answer):
    data: list[KeyAnswer]


class SetBudget(models.Body):
    """subject: the user or project id, empty for the total. limit_usd null: no limit at all."""

    scope: BudgetScope
    subject: Subject = Field("", validate_default=True)
    period: Period
    limit_usd: Limit | None


class BudgetQuery(models.Query):
    scope: BudgetScope | None = None
    subject: Subject | None = None


class OneBudget(models.Query):
    scope: BudgetScope
    subject: Subject = Field("", validate_default=True)
    period: Period


class BudgetAnswer(models.Answer):
    """is_set: false shows the default of the settings."""

    scope: BudgetScope
    subject: str
    period: Period
    is_set: bool
    limit_usd: Decimal | None
    reserved_usd: Decimal
    spent_usd: Decimal


class BudgetList(models.Answer):
    data: list[BudgetAnswer]


_CHANGE_QUEUE: TypeAdapter[ChangeQueue] = TypeAdapter(ChangeQueue)
_CREATE_KEY: TypeAdapter[CreateKey] = TypeAdapter(CreateKey)
_ROTATE_KEY: TypeAdapter[RotateKey] = TypeAdapter(RotateKey)
_SET_BUDGET: TypeAdapter[SetBudget] = TypeAdapter(SetBudget)


class Admin:
    """The handlers of one application."""

    def __init__(self, deps: ApiDeps, keys: ServiceKeys) -> None:
        self._db = deps.db
        self._http = deps.settings.http
        self._steer = deps.steer
        self._keys = keys
        self._lanes = Lanes(deps.db, {}, lambda: None)
        self._ledger = Ledger(deps.db, deps.settings.budgets)

    async def list_queues(self, request: web.Request) -> web.Response:
        read_query(request, models.NoQuery)
        return json_answer({"data": await self._read_queues(KINDS)})

    async def change_queue(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        if kind not in KINDS:
            raise no_such("queue")
        asked = validate(_CHANGE_QUEUE, await read_optional_json(request, self._http))
        await self._db.fetchrow(
            "set_queue",
            kind,
            asked.paused,
            asked.why,
            "concurrency" in asked.model_fields_set,
            asked.concurrency,
        )
        if asked.concurrency is not None:
            await self._db.fetch("hold_running_places", kind)
        await self._steer()
        return json_answer((await self._read_queues((kind,)))[0])

    async def _read_queues(self, kinds: Sequence[str]) -> list[dict[str, Any]]:
        rows = {row["kind"]: row for row in await self._db.fetch("read_queues")}
        loads = {(row["kind"], row["state"]): row for row in await self._db.fetch("read_queue_loads")}
        is_estimate = any(row["is_estimate"] for row in loads.values())
        answer = []
        for kind in kinds:
            row: Mapping[str, Any] = rows.get(
                kind, {"paused": False, "paused_why": None, "concurrency": None}
            )
            pending, processing = loads.get((kind, "pending")), loads.get((kind, "processing"))
            answer.append({
                "kind": kind,
                "paused": row["paused"],
                "paused_why": row["paused_why"],
                "concurrency": row["concurrency"],
                "pending": pending["jobs"] if pending else 0,
                "processing": processing["jobs"] if processing else 0,
                "oldest_pending_s": round(max(pending["oldest_s"], 0.0), 3) if pending else None,
                "is_estimate": is_estimate,
            })  # fmt: skip
        return answer

    async def list_providers(self, request: web.Request) -> web.Response:
        read_query(request, models.NoQuery)
        states = await self._lanes.read()
        names = ProviderAnswer.model_fields
        return json_answer({"data": [{name: getattr(state, name) for name in names} for state in states]})

    async def resume_provider(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        found = next((state for state in await self._lanes.read() if state.name == name), None)
        if found is None:
            raise no_such("provider")
        await self._lanes.resume(name)
        await self._steer()
        return web.Response(status=204)

    async def list_workers(self, request: web.Request) -> web.Response:
        read_query(request, models.NoQuery)
        rows = await self._db.fetch("read_live_workers")
        data = [
            {
                "id": row["id"],
                "instance": row["instance"],
                "kinds": list(row["kinds"] or ()),
                "concurrency": row["concurrency"],
                "running": row["running"],
                "draining": row["draining"],
                "started_at": write_time(row["started_at"]),
                "seen_at": write_time(row["seen_at"]),
                "info": json.loads(row["info_text"]),
            }
            for row in rows
        ]
        return json_answer({"data": data})

    async def list_keys(self, request: web.Request) -> web.Response:
        read_query(request, models.NoQuery)
        keys = await self._keys.list_keys()
        # In a thread, and one by one, since the encoder lets nobody else run: 60 000 keys held the loop for a second.
        shown = await asyncio.to_thread(lambda: ",".join(dump(_key(key)) for key in keys))
        return json_answer(f'{{"data":[{shown}]}}')

    async def create_key(self, request: web.Request) -> web.Response:
        _, body = await read_json(request, self._http)
        asked = validate(_CREATE_KEY, body)
        new = await self._keys.create(name=asked.name, scopes=asked.scopes, expires_at=asked.expires_at)
        return json_answer(_key(new.key) | {"token": new.token}, 201, {"Cache-Control": "no-store"})

    async def rotate_key(self, request: web.Request) -> web.Response:
        asked = validate(_ROTATE_KEY, await read_optional_json(request, self._http))
        new = await self._keys.rotate(_key_id(request), overlap_s=asked.overlap_s)
        return json_answer(_key(new.key) | {"token": new.token}, 201, {"Cache-Control": "no-store"})

    async def revoke_key(self, request: web.Request) -> web.Response:
        return json_answer(_key(await self._keys.revoke(_key_id(request))))

    async def list_budgets(self, request: web.Request) -> web.Response:
        wanted = read_query(request, BudgetQuery)
        budgets = await self._ledger.read_budgets(wanted.scope, wanted.subject)
        return json_answer({"data": [_budget(budget) for budget in budgets]})

    async def set_budget(self, request: web.Request) -> web.Response:
        _, body = await read_json(request, self._http)
        asked = validate(_SET_BUDGET, body)
        await self._ledger.set_budget(asked.scope, asked.subject, asked.period, asked.limit_usd)
        budgets = await self._ledger.read_budgets(asked.scope, asked.subject)
        return json_answer({"data": [_budget(b) for b in budgets if b.period == asked.period]})

    async def drop_budget(self, request: web.Request) -> web.Response:
        wanted = read_query(request, OneBudget)
        await self._ledger.drop_budget(wanted.scope, wanted.subject, wanted.period)
        return web.Response(status=204)


def _key_id(request: web.Request) -> str:
    key_id = request.match_info["key_id"]
    if not key_id.isascii() or not key_id.isalnum():
        raise no_such("key")
    return key_id


def _key(key: ServiceKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created_at": write_time(key.created_at),
        "last_used_at": _time(key.last_used_at),
        "expires_at": _time(key.expires_at),
        "revoked_at": _time(key.revoked_at),
    }


def _budget(budget: Budget) -> dict[str, Any]:
    return {
        "scope": budget.scope,
        "subject": budget.subject,
        "period": budget.period,
        "is_set": budget.is_set,
        "limit_usd": None if budget.limit_usd is None else f"{budget.limit_usd:f}",
        "reserved_usd": f"{budget.reserved_usd:f}",
        "spent_usd": f"{budget.spent_usd:f}",
    }


def _time(value: datetime | None) -> str | None:
    return None if value is None else write_time(value)


def routes(deps: ApiDeps, keys: ServiceKeys) -> list[Route]:
    """keys: the authenticator's own, so that a revoked key ends here at once."""
    admin = Admin(deps, keys)
    topic, scope, sent = "admin", "admin", (408, 413, 415, 422)
    new_key = {
        201: Answer("The token is shown this once.", NewKeyAnswer, headers={"Cache-Control": "`no-store`"})
    }
    return [
        Route("GET", "/v1/admin/queues", admin.list_queues, "List the queues", topic, scope, query=models.NoQuery,
              answers={200: Answer("One a kind.", Queues)}, problems=(422,)),
        Route("PATCH", "/v1/admin/queues/{kind}", admin.change_queue, "Pause, resume or limit a queue", topic, scope,
              body=ChangeQueue, answers={200: Answer("The queue.", QueueAnswer)}, problems=(404, *sent)),
        Route("GET", "/v1/admin/providers", admin.list_providers, "List the providers' lanes", topic, scope,
              query=models.NoQuery, answers={200: Answer("Lanes that were used.", ProviderList)}, problems=(422,)),
        Route("POST", "/v1/admin/providers/{name}/resume", admin.resume_provider, "Open a paused lane", topic, scope,
              answers={204: Answer("It is open.")}, problems=(404,)),
        Route("GET", "/v1/admin/workers", admin.list_workers, "List the live processes", topic, scope,
              query=models.NoQuery, answers={200: Answer("Those with a lease.", WorkerList)}, problems=(422,)),
        Route("GET", "/v1/admin/keys", admin.list_keys, "List service keys", topic, scope, query=models.NoQuery,
              answers={200: Answer("All, newest first.", KeyList)}, problems=(422,)),
        Route("POST", "/v1/admin/keys", admin.create_key, "Create a service key", topic, scope, body=CreateKey,
              answers=new_key, problems=sent, keyed="sealed"),
        Route("POST", "/v1/admin/keys/{key_id}/rotate", admin.rotate_key, "Replace a service key", topic, scope,
              body=RotateKey, answers=new_key, problems=(404, 409, *sent), keyed="sealed"),
        Route("DELETE", "/v1/admin/keys/{key_id}", admin.revoke_key, "Revoke a service key", topic, scope,
              description="Its requests end at once, its open streams within a minute.",
              answers={200: Answer("The key.", KeyAnswer)}, problems=(404,)),
        Route("GET", "/v1/admin/budgets", admin.list_budgets, "List budgets and what is spent", topic, scope,
              query=BudgetQuery, answers={200: Answer("Set ones, and those with spending.", BudgetList)},
              problems=(422,)),
        Route("PUT", "/v1/admin/budgets", admin.set_budget, "Set a budget", topic, scope, body=SetBudget,
              answers={200: Answer("The budget.", BudgetList)}, problems=sent),
        Route("DELETE", "/v1/admin/budgets", admin.drop_budget, "Go back to the settings' default", topic, scope,
              query=OneBudget, answers={204: Answer("Done.")}, problems=(422,)),
    ]  # fmt: skip
