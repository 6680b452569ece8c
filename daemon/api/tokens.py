"""POST /v1/tokens: a short-lived read token for a browser that must see one job, one project or one user."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from aiohttp import web
from pydantic import Field, StringConstraints, TypeAdapter

from daemon.api import models
from daemon.api.answers import json_answer
from daemon.api.bodies import read_json, validate
from daemon.api.deps import ApiDeps
from daemon.api.principal import PRINCIPAL
from daemon.api.routing import Answer, Route
from daemon.errors import Forbidden
from daemon.read_tokens import DEFAULT_TTL_S, MAX_TTL_S, ReadTokens
from daemon.views import write_time

_SCOPE = r"^(job:[0-9a-fA-F-]{36}|project:[0-9a-fA-F-]{36}|user:.{1,250})$"


class CreateToken(models.Body):
    """What the token may read, and how long it lives."""

    scope: Annotated[str, StringConstraints(pattern=_SCOPE)] = Field(
        description="`job:<id>`, `project:<id>` or `user:<id>`."
    )
    ttl_s: int = Field(DEFAULT_TTL_S, ge=10, le=MAX_TTL_S, description="Seconds until it ends.")


class Token(models.Answer):
    """A read token; it is shown this once."""

    token: str
    scope: str
    expires_at: datetime


_CREATE: TypeAdapter[CreateToken] = TypeAdapter(CreateToken)


class Tokens:
    """The handlers of one application."""

    def __init__(self, deps: ApiDeps) -> None:
        self._http = deps.settings.http
        self._tokens = ReadTokens(deps.db)

    async def create(self, request: web.Request) -> web.Response:
        principal = request[PRINCIPAL]
        if principal.kind == "token":
            raise Forbidden("A read token cannot mint another.", hint="Use a service key or a user's JWT.")
        _, body = await read_json(request, self._http)
        asked = validate(_CREATE, body)
        by, _, key_id = principal.id.partition(":")
        minted = await self._tokens.mint(
            asked.scope, user_id=principal.user_id, minted_by=key_id if by == "key" else "", ttl_s=asked.ttl_s
        )
        return json_answer(
            {"token": minted.token, "scope": asked.scope, "expires_at": write_time(minted.expires_at)},
            201,
            {"Cache-Control": "no-store"},
        )


def routes(deps: ApiDeps) -> list[Route]:
    """The routes of this topic."""
    tokens = Tokens(deps)
    return [
        Route(
            "POST", "/v1/tokens", tokens.create, "Mint a read token for a browser", "tokens", "read",
            description="It reads what its scope names and nothing else, and ends with the key that minted it. "
            "On event streams it may come as `?token=`.",
            body=CreateToken,
            answers={201: Answer("Minted.", Token, headers={"Cache-Control": "`no-store`"})},
            problems=(404, 408, 413, 415, 422),
        )
    ]  # fmt: skip
