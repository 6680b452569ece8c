"""Service keys: made, checked, rotated and revoked.

    ld_live_<id>_<secret>      id: 12 letters and digits, public; secret: 43, about 256 bits

Only the SHA-256 of the secret is kept; a fast hash is enough for a secret that nobody can guess. A check
is remembered for at most 30 s, so that a revoked key ends requests, and streams that ask again every 25 s,
within a minute. The first service key (a setting, or generated at the first start) is no row: it is
compared in memory, has all scopes and works while Postgres is away.

A token never gets into a log, an error or a repr.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from daemon.db import Database
from daemon.errors import Conflict, NotFound

Scope = Literal["enqueue", "read", "admin"]
SCOPES: frozenset[str] = frozenset(get_args(Scope))

PREFIX = "ld_live_"
FIRST_KEY_ID = "first"
CACHE_S = 30.0
CACHE_SIZE = 10_000
PAGE_SIZE = 1000
"""Keys that are read at once: 60 000 would hold the loop for 0.2 s."""

_ALPHABET = string.ascii_letters + string.digits
_TOKEN = re.compile(r"ld_live_([A-Za-z0-9]{12})_([A-Za-z0-9]{43})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A service key as an admin may see it: everything but the secret."""

    id: str
    name: str
    scopes: frozenset[str]
    created_at: datetime
    last_used_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key with its token, which is shown this once."""

    key: ServiceKey
    token: str

    def __repr__(self) -> str:
        return f"NewKey(key={self.key!r})"


@dataclass(frozen=True, slots=True)
class _Checked:
    key: ServiceKey | None  # None: unknown, revoked or expired
    digest: bytes
    until: float


class ServiceKeys:
    """The service keys of one installation."""

    def __init__(
        self, database: Database, *, first_key: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._first_digest = _digest(first_key) if first_key is not None else None
        self._first = ServiceKey(FIRST_KEY_ID, "first service key", SCOPES, datetime.now(UTC))
        self._clock = clock
        self._checked: dict[str, _Checked] = {}

    async def create(self, *, name: str, scopes: Iterable[str], expires_at: datetime | None = None) -> NewKey:
        """A new key and its token. Errors: Unavailable."""
        key_id, secret = _draw(12), _draw(43)
        row = await self._database.fetchrow(
            "create_service_key", key_id, _digest(secret), name, sorted(set(scopes)), expires_at
        )
        return NewKey(_read(row), f"{PREFIX}{key_id}_{secret}")

    async def list_keys(self) -> list[ServiceKey]:
        """All keys, newest first, revoked ones too; without the first service key. Errors: Unavailable."""
        keys: list[ServiceKey] = []
        after: tuple[datetime | None, str | None] = (None, None)
        while rows := await self._database.fetch("list_service_keys", *after, PAGE_SIZE):
            keys += map(_read, rows)
            after = (keys[-1].created_at, keys[-1].id)
        return keys

    async def revoke(self, key_id: str) -> ServiceKey:
        """End a key; every process has forgotten it 30 s later. Errors: NotFound, Unavailable."""
        row = await self._database.fetchrow("revoke_service_key", key_id)
        self._checked.pop(key_id, None)
        if row is None:
            raise NotFound("There is no such key.")
        return _read(row)

    async def rotate(self, key_id: str, *, overlap_s: float) -> NewKey:
        """A new key with the old one's name and scopes; the old one works for `overlap_s` more seconds.

        Errors: NotFound for an unknown key, Conflict for one that has ended, Unavailable.
        """
        new_id, secret = _draw(12), _draw(43)
        row = await self._database.fetchrow("rotate_service_key", key_id, new_id, _digest(secret), overlap_s)
        self._checked.pop(key_id, None)
        if row is None:
            if await self._database.fetchrow("find_service_key", key_id) is None:
                raise NotFound("There is no such key.")
            raise Conflict("The key has ended.", hint="Create a new one.")
        return NewKey(_read(row), f"{PREFIX}{new_id}_{secret}")

    async def verify(self, token: str) -> ServiceKey | None:
        """The key behind a token, or None. Asks Postgres at most every 30 s a key. Errors: Unavailable."""
        if not token.isascii() or len(token) > 512:
            return None
        if self._first_digest is not None and hmac.compare_digest(_digest(token), self._first_digest):
            return self._first
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        checked = await self._check(match[1])
        return checked.key if hmac.compare_digest(_digest(match[2]), checked.digest) else None

    async def is_live(self, key_id: str) -> bool:
        """Whether a key that was verified before still works, for streams and minted tokens.

        Errors: Unavailable.
        """
        if key_id == FIRST_KEY_ID:
            return self._first_digest is not None
        return (await self._check(key_id)).key is not None

    async def _check(self, key_id: str) -> _Checked:
        now = self._clock()
        known = self._checked.get(key_id)
        if known is not None and now < known.until:
            return known
        row = await self._database.fetchrow("find_service_key", key_id)
        if row is None:
            # Strangers' ids are not kept: they would push the real ones out.
            self._checked.pop(key_id, None)
            return _Checked(None, b"", now)
        checked = _Checked(_read(row) if row["is_live"] else None, row["secret_sha256"], now + CACHE_S)
        if checked.key is not None and checked.key.expires_at is not None:
            left_s = (checked.key.expires_at - datetime.now(UTC)).total_seconds()
            checked = _Checked(checked.key, checked.digest, now + min(CACHE_S, max(0.0, left_s)))
        while len(self._checked) >= CACHE_SIZE:
            del self._checked[next(iter(self._checked))]
        self._checked[key_id] = checked
        return checked


def _draw(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _read(row: Any) -> ServiceKey:
    return ServiceKey(
        row["id"], row["name"], frozenset(row["scopes"]), row["created_at"],
        row["last_used_at"], row["expires_at"], row["revoked_at"],
    )  # fmt: skip
