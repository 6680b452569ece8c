"""Who is calling, once the credential has been checked. Words only: daemon/api/auth.py does the checking."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from aiohttp import web

from daemon.errors import Forbidden

Scope = Literal["enqueue", "read", "admin"]
SCOPES: frozenset[str] = frozenset({"enqueue", "read", "admin"})


@dataclass(frozen=True, slots=True)
class Principal:
    """One caller.

    kind: "service" (a key that acts for any user), "user" (a JWT), "token" (a minted read token);
    id: names the caller in idempotency keys, rate limits and logs, for example "key:3f9c" or "user:42";
    user_id: None may act for any user; else every statement is confined to this one;
    read_scope: what a minted token may read: ("job", id), ("project", id) or ("user", id).
    """

    kind: Literal["service", "user", "token"]
    id: str
    user_id: str | None = None
    scopes: frozenset[str] = field(default_factory=frozenset)
    read_scope: tuple[Literal["job", "project", "user"], str] | None = None

    def require(self, scope: str) -> None:
        """Nothing, or Forbidden code scope_missing."""
        if scope not in self.scopes:
            raise Forbidden(
                f"These credentials lack the scope `{scope}`.",
                code="scope_missing",
                hint="Use a key that has it.",
                data={"scope": scope},
            )


PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)
"""`request[PRINCIPAL]`: set before any handler that asks for a scope runs."""


class Authenticator(Protocol):
    """Turns a request's credentials into a principal."""

    async def authenticate(self, request: web.Request) -> Principal:
        """The caller. A read token in `?token=` counts only on routes that allow it (event streams).

        Called once a request, and again every 25 s on an open stream, so that a revoked key ends it.
        Errors: Unauthenticated; TooManyRequests after too many refusals from one address.
        """
        ...
