"""The issuer's public keys (JWKS, RFC 7517), kept in memory.

    fresh 10 min ──▶ refetch, one request at a time ──error──▶ the old keys for up to a day, next try in 30 s
    unknown kid  ──▶ refetch at most every 30 s

The URL comes from a setting alone; nothing is ever read from where a token points (jku, x5u, jwk). Only
EC P-256 and RSA keys of 2048 to 8192 bits are taken: an `oct` key in a public document would let anybody sign.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from daemon.errors import Unavailable
from daemon.later import later

if TYPE_CHECKING:
    import jwt
    from cryptography.hazmat.primitives.asymmetric import rsa
else:
    jwt, rsa = later("jwt"), later("cryptography.hazmat.primitives.asymmetric.rsa")

TTL_S = 600.0
STALE_S = 86_400.0
COOLDOWN_S = 30.0
FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 256 * 1024
MAX_KEYS = 100

_ALGORITHM_OF = {"EC": "ES256", "RSA": "RS256"}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key and the one algorithm it is for: "ES256" or "RS256"."""

    algorithm: str
    key: Any


class KeySet:
    """The keys behind one JWKS URL."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._url = url
        self._clock = clock
        self._keys: dict[str, PublicKey] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """The key called `kid` if it is for `algorithm`; without a kid, the only key for it.

        Errors: Unavailable when no keys could be fetched yet.
        """
        key = self._pick(kid, algorithm)
        if not self._wants_fetch(found=key is not None):
            return self._known(key)
        if self._fetching.locked() and key is not None:
            return key  # somebody is refreshing: no reason to wait
        async with self._fetching:
            if self._wants_fetch(found=self._pick(kid, algorithm) is not None):
                await self._refresh()
        return self._known(self._pick(kid, algorithm))

    def _known(self, key: PublicKey | None) -> PublicKey | None:
        if self._clock() > self._fetched_at + STALE_S:
            raise Unavailable(
                "The sign-in service's keys cannot be read right now.",
                hint="Check LISTINGD_AUTH__JWKS_URL.",
                data={"retry_after_s": COOLDOWN_S},
            )
        return key

    def _pick(self, kid: str | None, algorithm: str) -> PublicKey | None:
        if kid is not None:
            key = self._keys.get(kid)
            return key if key is not None and key.algorithm == algorithm else None
        fitting = [key for key in self._keys.values() if key.algorithm == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def _wants_fetch(self, *, found: bool) -> bool:
        now = self._clock()
        if now < self._tried_at + COOLDOWN_S:
            return False
        return not found or now >= self._fetched_at + TTL_S

    async def _refresh(self) -> None:
        """New keys; on any failure the old ones stay."""
        try:
            keys = read_key_set(await self._fetch())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
            keys = {}
        self._tried_at = self._clock()  # only now: those who wait for the lock must not give up before
        if keys:
            self._keys, self._fetched_at = keys, self._clock()

    async def _fetch(self) -> bytes:
        async with (
            asyncio.timeout(FETCH_TIMEOUT_S),
            self._session.get(self._url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise ValueError(f"JWKS answered {answer.status}")
            body = bytearray()
            async for chunk in answer.content.iter_chunked(16 * 1024):
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError("JWKS is too large")
            return bytes(body)


def read_key_set(body: bytes) -> dict[str, PublicKey]:
    """Kid -> key of every usable key in a JWKS document; the others are passed over. Errors: ValueError."""
    document = json.loads(body)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("no JWKS document")  # noqa: TRY004 -- the document is wrong, not our call
    keys: dict[str, PublicKey] = {}
    for index, entry in enumerate(entries[:MAX_KEYS]):
        if isinstance(entry, dict) and (key := _read_key(entry)) is not None:
            kid = entry.get("kid")
            keys[kid if isinstance(kid, str) else f"\x00{index}"] = key
    return keys


def _read_key(entry: dict[str, Any]) -> PublicKey | None:
    algorithm = _ALGORITHM_OF.get(str(entry.get("kty")))
    if algorithm is None or entry.get("alg", algorithm) != algorithm or entry.get("use", "sig") != "sig":
        return None
    if algorithm == "ES256" and entry.get("crv") != "P-256":
        return None
    public = {name: value for name, value in entry.items() if name in {"kty", "crv", "x", "y", "n", "e"}}
    try:
        key = jwt.PyJWK.from_dict(public, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if isinstance(key, rsa.RSAPublicKey) and not 2048 <= key.key_size <= 8192:
        return None
    return PublicKey(algorithm, key)
