"""What operators hold back and let go: users and providers' lanes. Scope `admin` throughout.

A change counts at once in the process that answers, and in the others as soon as they are notified.
"""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import Field, TypeAdapter

from daemon.api import models
from daemon.api.access import no_such
from daemon.api.admin import Words
from daemon.api.answers import json_answer
from daemon.api.bodies import read_optional_json, read_query, validate
from daemon.api.deps import ApiDeps
from daemon.api.routing import Answer, Route
from daemon.errors import InvalidInput
from daemon.lanes import Lanes

MAX_PAUSE_S = 7 * 86_400.0


class ChangeShare(models.Body):
    """What is left out stays. paused: nothing of the user is started. weight: their share of the turns."""

    paused: bool | None = None
    why: Words = ""
    weight: Annotated[float, Field(ge=0.001, le=1000)] | None = None


class Share(models.Answer):
    user_id: str
    weight: float
    paused: bool
    paused_why: str | None


class ShareList(models.Answer):
    data: list[Share]


class ShareQuery(models.Query):
    user_id: models.UserId | None = None


class PauseLane(models.Body):
    """No call is made for so many seconds; then one call tries whether the provider works."""

    for_s: Annotated[float, Field(gt=0, le=MAX_PAUSE_S)] = 3600.0
    why: Words = "An operator paused it."


_CHANGE_SHARE: TypeAdapter[ChangeShare] = TypeAdapter(ChangeShare)
_PAUSE_LANE: TypeAdapter[PauseLane] = TypeAdapter(PauseLane)


class SteeringCalls:
    """The handlers of one application."""

    def __init__(self, deps: ApiDeps) -> None:
        self._db = deps.db
        self._http = deps.settings.http
        self._steer = deps.steer
        self._lanes = Lanes(deps.db, {}, lambda: None)

    async def list_users(self, request: web.Request) -> web.Response:
        wanted = read_query(request, ShareQuery)
        rows = await self._db.fetch("list_user_shares", wanted.user_id)
        return json_answer({"data": [_share(row) for row in rows]})

    async def change_user(self, request: web.Request) -> web.Response:
        user_id = request.match_info["user_id"]
        if len(user_id) > 255 or not user_id.isprintable():
            raise no_such("user")
        asked = validate(_CHANGE_SHARE, await read_optional_json(request, self._http))
        if asked.paused is None and asked.weight is None:
            raise InvalidInput("Say what to change: paused, weight.", code="nothing_to_change")
        row = await self._db.fetchrow("set_user_share", user_id, asked.weight, asked.paused, asked.why)
        await self._steer()
        return json_answer(_share(row))

    async def pause_lane(self, request: web.Request) -> web.Response:
        asked = validate(_PAUSE_LANE, await read_optional_json(request, self._http))
        name = request.match_info["name"]
        if not name.isprintable() or not await self._lanes.pause(name, for_s=asked.for_s, why=asked.why):
            raise no_such("provider")
        return web.Response(status=204)


def _share(row: Any) -> dict[str, Any]:
    return {name: row[name] for name in Share.model_fields}


def routes(deps: ApiDeps) -> list[Route]:
    """The routes of this topic."""
    calls = SteeringCalls(deps)
    topic, scope, sent = "admin", "admin", (404, 408, 413, 415, 422)
    return [
        Route("GET", "/v1/admin/users", calls.list_users, "List users with a share of their own", topic, scope,
              query=ShareQuery, answers={200: Answer("Those that were set.", ShareList)}, problems=(422,)),
        Route("PATCH", "/v1/admin/users/{user_id}", calls.change_user, "Hold a user's jobs, or weigh their turns",
              topic, scope, body=ChangeShare, answers={200: Answer("The share.", Share)}, problems=sent),
        Route("POST", "/v1/admin/providers/{name}/pause", calls.pause_lane, "Close a provider's lane", topic, scope,
              body=PauseLane, answers={204: Answer("It is closed.")}, problems=sent),
    ]  # fmt: skip
