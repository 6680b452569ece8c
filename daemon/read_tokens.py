"""Read tokens: short-lived, signed, for a browser that must see one job, one project or one user's jobs.

    ld_read_<JWT>       HS256 with a secret of this installation; kid names the secret's row

The token names who minted it: when that service key is revoked, its read tokens end too. It reads, it never
writes. Anyone who holds Postgres holds the secret; nobody else does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, get_args
from uuid import UUID

from daemon.db import Database
from daemon.errors import InvalidInput, NotFound, Unauthenticated
from daemon.later import later

if TYPE_CHECKING:
    import jwt
else:
    jwt = later("jwt")

PREFIX = "ld_read_"
DEFAULT_TTL_S = 15 * 60
MAX_TTL_S = 24 * 3600
CACHE_S = 30.0

_AUDIENCE = "listingd:read"

Subject = Literal["job", "project", "user"]


@dataclass(frozen=True, slots=True)
class ReadGrant:
    """What a token lets its holder read.

    subject, value: ("job", id), ("project", id) or ("user", id); user_id: whose things, None for a service's
    token about things of any user; minted_by: the service key's id, "" when a user minted it.
    """

    subject: Subject
    value: str
    user_id: str | None
    minted_by: str


@dataclass(frozen=True, slots=True)
class ReadToken:
    """A token, shown this once, and when it ends."""

    token: str
    expires_at: datetime

    def __repr__(self) -> str:
        return f"ReadToken(expires_at={self.expires_at!r})"


class ReadTokens:
    """Mints and checks read tokens."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._secrets: dict[int, bytes] = {}
        self._read_at = float("-inf")

    async def mint(self, scope: str, *, user_id: str | None, minted_by: str, ttl_s: int) -> ReadToken:
        """A token for `job:<id>`, `project:<id>` or `user:<id>`.

        user_id: the minting user, None for a service key, which may mint for anybody's things.
        Errors: InvalidInput for a scope that cannot be read, NotFound for what does not exist or is
        another's, Unavailable.
        """
        grant = await self._grant(scope, user_id, minted_by)
        secrets = await self._load()
        kid = max(secrets)
        expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=ttl_s)
        claims = {
            "aud": _AUDIENCE, "exp": expires_at, "scope": f"{grant.subject}:{grant.value}",
            "user": grant.user_id, "by": grant.minted_by,
        }  # fmt: skip
        signed = jwt.encode(claims, secrets[kid], algorithm="HS256", headers={"kid": str(kid)})
        return ReadToken(PREFIX + signed, expires_at)

    async def verify(self, token: str) -> ReadGrant | None:
        """What the token grants, or None when it is not ours.

        Errors: Unauthenticated token_expired (its signature was good), Unavailable.
        """
        if not token.startswith(PREFIX) or not token.isascii() or len(token) > 4096:
            return None
        signed = token.removeprefix(PREFIX)
        try:
            kid = int(jwt.get_unverified_header(signed).get("kid", ""))
            secret = (await self._load()).get(kid)
            if secret is None:
                return None
            claims = jwt.decode(
                signed, secret, algorithms=["HS256"], audience=_AUDIENCE, options={"require": ["exp", "aud"]}
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired.", code="token_expired") from None
        except (jwt.InvalidTokenError, ValueError, TypeError):
            return None
        subject, value = _split(claims["scope"])
        return ReadGrant(subject, value, claims["user"], claims["by"])

    async def _grant(self, scope: str, user_id: str | None, minted_by: str) -> ReadGrant:
        subject, value = _split(scope)
        if subject == "user":
            if user_id is not None and value != user_id:
                raise NotFound("There is no such user.")
            return ReadGrant(subject, value, value, minted_by)
        row = await self._database.fetchrow(
            "find_token_subject",
            UUID(value) if subject == "job" else None,
            UUID(value) if subject == "project" else None,
            user_id,
        )
        if row is None:
            raise NotFound(f"There is no such {subject}.")
        return ReadGrant(subject, value, row["user_id"], minted_by)

    async def _load(self) -> dict[int, bytes]:
        now = self._clock()
        if not self._secrets or now >= self._read_at + CACHE_S:
            rows = await self._database.fetch("read_signing_secrets")
            if not rows:  # another process has made the first one at this moment
                rows = await self._database.fetch("read_signing_secrets")
            self._secrets = {row["id"]: row["secret"] for row in rows}
            self._read_at = now
        return self._secrets


def _split(scope: str) -> tuple[Subject, str]:
    subject, _, value = scope.partition(":")
    for known in get_args(Subject):
        if subject != known or not value or len(value) > 255 or "\x00" in value:
            continue
        if known == "user":
            return known, value
        try:
            return known, str(UUID(value))
        except ValueError:
            break
    raise InvalidInput("A read token is for job:<id>, project:<id> or user:<id>.")
