"""Who is calling: a service key, a user's JWT or a minted read token becomes a Principal.

    Authorization: Bearer ld_live_…  service key      any user, the key's scopes
                          ld_read_…  read token       what it names, read only
                          eyJ…       user's JWT       that user
    ?token=ld_read_…                 read token, on event streams alone (EventSource sends no headers)

Refusals are counted by address. An address that is refused too often gets 429 for credentials that this
process has not accepted lately: guessing is slowed down, while its honest neighbours behind the same proxy
go on. An expired token with a good signature is no guess and is not counted.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from aiohttp import web

from daemon.api.principal import Principal
from daemon.errors import TooManyRequests, Unauthenticated
from daemon.read_tokens import PREFIX as READ_PREFIX
from daemon.read_tokens import ReadTokens
from daemon.tokens import ServiceKeys
from daemon.user_tokens import UserTokens

WINDOW_S = 60.0
REMEMBERED = 10_000

_CHALLENGE = 'Bearer realm="listingd"'  # RFC 6750 section 3
_USER_SCOPES = frozenset({"enqueue", "read"})
_READ_SCOPES = frozenset({"read"})


class BearerAuthenticator:
    """Checks bearer credentials; see the module's drawing."""

    def __init__(
        self,
        *,
        keys: ServiceKeys,
        users: UserTokens,
        read_tokens: ReadTokens,
        failed_logins_per_minute: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._users = users
        self._read_tokens = read_tokens
        self._refusals = RefusalLimit(failed_logins_per_minute, clock=clock)
        self._accepted: OrderedDict[bytes, None] = OrderedDict()

    async def authenticate(self, request: web.Request) -> Principal:
        """The caller. Cheap to ask again: streams do, every 25 s.

        Errors: Unauthenticated, with `data["challenge"]` for WWW-Authenticate; TooManyRequests after too
        many refusals from one address; Unavailable without Postgres or the issuer's keys.
        """
        token = _find_token(request)
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        if digest not in self._accepted:
            self._refusals.check(request.remote or "")
        try:
            principal = await self._verify(token)
        except Unauthenticated as exc:
            self._accepted.pop(digest, None)
            if exc.code != "token_expired":
                self._refusals.count(request.remote or "")
            exc.data["challenge"] = f'{_CHALLENGE}, error="invalid_token", error_description="{exc.message}"'
            raise
        self._accepted[digest] = None
        self._accepted.move_to_end(digest)
        if len(self._accepted) > REMEMBERED:
            self._accepted.popitem(last=False)
        return principal

    async def _verify(self, token: str) -> Principal:
        if token.startswith(READ_PREFIX):
            return await self._verify_read_token(token)
        key = await self._keys.verify(token)
        if key is not None:
            return _act_as(key.id, key.scopes)
        user = await self._users.verify(token)
        if user.user_id is None:
            return Principal("service", "supabase:service_role", None, _USER_SCOPES)
        return Principal("user", f"user:{user.user_id}", user.user_id, _USER_SCOPES)

    async def _verify_read_token(self, token: str) -> Principal:
        grant = await self._read_tokens.verify(token)
        if grant is None or (grant.minted_by and not await self._keys.is_live(grant.minted_by)):
            raise Unauthenticated("The token is not valid.", code="token_invalid")
        scope = (grant.subject, grant.value)
        return Principal("token", f"token:{grant.subject}:{grant.value}", grant.user_id, _READ_SCOPES, scope)


class RefusalLimit:
    """Refusals of one address in a sliding window of a minute, for the last 10 000 addresses."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> level, at

    def check(self, address: str) -> None:
        """Nothing, or TooManyRequests too_many_refusals."""
        excess = self._level(_network(address)) - (self._per_minute - 1)
        if excess > 0:
            wait_s = excess * WINDOW_S / self._per_minute
            raise TooManyRequests(
                "Too many refused credentials from this address.",
                code="too_many_refusals",
                hint="Check the key or sign in again.",
                data={"retry_after_s": max(1, round(wait_s))},
            )

    def count(self, address: str) -> None:
        """Note one refusal."""
        network = _network(address)
        self._levels[network] = (self._level(network) + 1, self._clock())
        self._levels.move_to_end(network)
        if len(self._levels) > REMEMBERED:
            self._levels.popitem(last=False)

    def _level(self, network: str) -> float:
        """A leaky bucket: it empties within a minute."""
        level, at = self._levels.get(network, (0.0, 0.0))
        return max(0.0, level - (self._clock() - at) * self._per_minute / WINDOW_S)


def _network(address: str) -> str:
    """The address, or the /64 of an IPv6 one: a household owns that many."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 6 and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


@functools.lru_cache(maxsize=1024)
def _act_as(key_id: str, scopes: frozenset[str]) -> Principal:
    """The caller behind a service key that was checked."""
    return Principal("service", f"key:{key_id}", None, scopes)


def _find_token(request: web.Request) -> str:
    """The bearer token of a request. Errors: Unauthenticated when there is none or more than one."""
    given = request.headers.getall("Authorization", [])
    if len(given) == 1:
        scheme, _, token = given[0].partition(" ")
        if scheme.lower() == "bearer" and (token := token.strip()):
            return token
    elif not given and request.method == "GET" and request.path.endswith("/events"):
        token = request.query.get("token", "")
        if token.startswith(READ_PREFIX):
            return token
    raise Unauthenticated(
        "This call needs a bearer token.",
        hint="Send `Authorization: Bearer <service key, JWT or read token>`.",
        data={"challenge": _CHALLENGE},
    )
