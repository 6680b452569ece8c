"""Users' JWTs: what a token of the configured issuer says, or why it is refused.

    refused early: non-ASCII, over 8 kB, not three base64url parts
    algorithm:     ES256, RS256 by the issuer's JWKS; HS256 only with a configured secret; one key, one algorithm
    claims:        exp, iss, aud, sub required; exp - iat within LISTINGD_AUTH__MAX_TOKEN_LIFETIME_S

Nothing is read from jku, x5u, jwk or x5c. `sub` is the user. Supabase: users carry role `authenticated`;
`anon` is nobody; its `service_role` JWT is taken only by flag, while an app moves to service keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from daemon.errors import Misconfigured, Unauthenticated
from daemon.jwks import KeySet
from daemon.later import later
from daemon.settings import Auth

if TYPE_CHECKING:
    import jwt
else:
    jwt = later("jwt")

MAX_BYTES = 8192
LEEWAY_S = 10

_SHAPE = re.compile(r"[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]{2,}", re.ASCII)
_SUPABASE_ISSUER = "supabase"  # of the legacy anon and service_role keys; they carry no aud and no sub


@dataclass(frozen=True, slots=True)
class TokenUser:
    """Who a JWT speaks for. user_id: its `sub`; None for Supabase's service_role."""

    user_id: str | None


class UserTokens:
    """Checks the JWTs of one issuer."""

    def __init__(self, settings: Auth, keys: KeySet | None) -> None:
        """Errors: Misconfigured when a key source is set without issuer and audience."""
        self._settings = settings
        self._keys = keys
        self._secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
        self.is_enabled = keys is not None or self._secret is not None
        if self.is_enabled and (settings.jwt_issuer is None or settings.audience is None):
            raise Misconfigured(
                "Users' JWTs need an issuer and an audience.",
                hint="Set LISTINGD_AUTH__JWT_ISSUER and LISTINGD_AUTH__AUDIENCE.",
            )

    async def verify(self, token: str) -> TokenUser:
        """Who the token speaks for.

        Errors: Unauthenticated with code token_invalid or token_expired (its signature was good);
        Unavailable while no keys could be fetched.
        """
        if not self.is_enabled or len(token) > MAX_BYTES or not _SHAPE.fullmatch(token):
            raise _refuse()
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key = await self._find_key(header)
            return self._read(self._decode(token, key, algorithm), algorithm)
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired.", code="token_expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise _refuse() from None  # the cause may quote the token

    async def _find_key(self, header: dict[str, Any]) -> tuple[str, Any]:
        algorithm, kid = header.get("alg"), header.get("kid")
        if "crit" in header or "b64" in header:
            raise _refuse()
        if algorithm == "HS256" and self._secret is not None:
            return algorithm, self._secret
        if algorithm not in {"ES256", "RS256"} or self._keys is None:
            raise _refuse()
        if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= 256):
            raise _refuse()
        found = await self._keys.find(kid, algorithm)
        if found is None:
            raise _refuse()
        return algorithm, found.key

    def _decode(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        settings = self._settings
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            leeway=LEEWAY_S,
            options={"require": ["exp", "iss"], "verify_aud": False, "verify_iss": False},
        )
        if self._is_service_role(claims, algorithm):
            return claims
        issued_at = claims.get("iat", datetime.now(UTC).timestamp())
        if claims["exp"] - issued_at > settings.max_token_lifetime_s + LEEWAY_S:
            raise _refuse()
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if claims["iss"] != settings.jwt_issuer or settings.audience not in audiences:
            raise _refuse()
        return claims

    def _is_service_role(self, claims: dict[str, Any], algorithm: str) -> bool:
        return (
            self._settings.allow_supabase_service_role
            and algorithm == "HS256"
            and claims.get("role") == "service_role"
            and claims["iss"] in {_SUPABASE_ISSUER, self._settings.jwt_issuer}
        )

    def _read(self, claims: dict[str, Any], algorithm: str) -> TokenUser:
        if self._is_service_role(claims, algorithm):
            return TokenUser(None)
        user_id = claims.get("sub")
        if claims.get("role") in {"anon", "service_role"}:
            raise _refuse()
        # Postgres text holds no NUL, and '' is the service itself.
        if not isinstance(user_id, str) or not 0 < len(user_id) <= 255 or not user_id.isprintable():
            raise _refuse()
        return TokenUser(user_id)


def _refuse() -> Unauthenticated:
    """One answer for every defect: a forger learns nothing from it."""
    return Unauthenticated("The token is not valid.", code="token_invalid")
