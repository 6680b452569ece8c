"""Users' JWTs against a real JWKS server, with the table of abuses."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from daemon.api.auth import BearerAuthenticator
from daemon.errors import Misconfigured, Unauthenticated, Unavailable
from daemon.jwks import KeySet, read_key_set
from daemon.read_tokens import ReadTokens
from daemon.settings import Auth
from daemon.tokens import ServiceKeys
from daemon.user_tokens import UserTokens
from tests.api.application import Api

ISSUER = "https://id.example/auth/v1"
AUDIENCE = "authenticated"
SECRET = "a-shared-secret-of-more-than-32-characters"

EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)


def public_jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    algorithm = (
        jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    )
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


def public_pem(key: Any) -> bytes:
    encoding, shape = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(encoding, shape))


@dataclass
class Issuer:
    """A JWKS server whose answer a test may change. calls: how often it was asked."""

    url: str = ""
    calls: int = 0
    status: int = 200
    keys: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, _: web.Request) -> web.Response:
        self.calls += 1
        return web.json_response({"keys": self.keys}, status=self.status)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer(keys=[public_jwk(EC_KEY, "ec1", alg="ES256", use="sig"), public_jwk(RSA_KEY, "rsa1")])
    app = web.Application()
    app.router.add_get("/jwks", issuer.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    yield issuer
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def auth(**more: Any) -> Auth:
    return Auth(**{"jwt_issuer": ISSUER, "audience": AUDIENCE, **more})


@pytest.fixture
def users(session: aiohttp.ClientSession, issuer: Issuer) -> UserTokens:
    return UserTokens(auth(), KeySet(session, issuer.url))


def claims(**changes: Any) -> dict[str, Any]:
    """A good user's claims; a change to None leaves the claim out."""
    now = int(time.time())
    all_claims = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "user-1", "role": "authenticated", "iat": now, "exp": now + 3600,
        **changes,
    }  # fmt: skip
    return {name: value for name, value in all_claims.items() if value is not None}


def sign(
    key: Any = EC_KEY,
    algorithm: str = "ES256",
    *,
    kid: str | None = "ec1",
    header: Any = None,
    **changes: Any,
) -> str:
    headers = {**({"kid": kid} if kid is not None else {}), **(header or {})}
    payload = json.dumps(claims(**changes)).encode()  # jwt.encode would refuse the bad ones itself
    return jwt.api_jws.encode(payload, key, algorithm=algorithm, headers=headers)


def raw(header: Any, payload: Any, signature: bytes = b"x" * 64) -> str:
    """A token of any bytes, as no library would make it."""

    def part(value: Any) -> str:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    return ".".join([part(header), part(payload), part(signature)])


def hs_with_public_key() -> str:
    """The classic confusion: HS256 with the public key's PEM as the secret."""
    import hashlib
    import hmac

    head = raw({"alg": "HS256", "typ": "JWT", "kid": "rsa1"}, claims()).rsplit(".", 1)[0]
    mac = hmac.new(public_pem(RSA_KEY), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


async def test_es256_user_is_known(users: UserTokens) -> None:
    assert (await users.verify(sign())).user_id == "user-1"


async def test_rs256_user_is_known(users: UserTokens) -> None:
    assert (await users.verify(sign(RSA_KEY, "RS256", kid="rsa1"))).user_id == "user-1"


async def test_audience_may_be_a_list(users: UserTokens) -> None:
    assert (await users.verify(sign(aud=["other", AUDIENCE]))).user_id == "user-1"


async def test_token_without_kid_uses_the_only_fitting_key(users: UserTokens) -> None:
    assert (await users.verify(sign(kid=None))).user_id == "user-1"


NOW = int(time.time())

ABUSES: dict[str, Callable[[], str]] = {
    "alg none": lambda: jwt.encode(claims(), "", algorithm="none"),
    "alg none, kid": lambda: raw({"alg": "none", "kid": "ec1"}, claims(), b""),
    "alg nOnE": lambda: raw({"alg": "nOnE", "kid": "ec1"}, claims()),
    "alg missing": lambda: raw({"typ": "JWT"}, claims()),
    "alg a list": lambda: raw({"alg": ["ES256"], "kid": "ec1"}, claims()),
    "HS256 with the public key": hs_with_public_key,
    "HS256 without a configured secret": lambda: sign(SECRET, "HS256"),
    "RS256 header, EC key's kid": lambda: sign(RSA_KEY, "RS256", kid="ec1"),
    "another's key": lambda: sign(OTHER_EC_KEY),
    "no exp": lambda: sign(exp=None),
    "exp a string": lambda: sign(exp=str(NOW + 3600)),
    "exp infinite": lambda: sign(exp=float("inf")),
    "exp not a number": lambda: sign(exp="soon"),
    "far exp": lambda: sign(exp=NOW + 10 * 365 * 86_400),
    "far exp, no iat": lambda: sign(exp=NOW + 10 * 365 * 86_400, iat=None),
    "far exp, iat far ahead": lambda: sign(exp=NOW + 2 * 365 * 86_400, iat=NOW + 2 * 365 * 86_400 - 60),
    "not yet valid": lambda: sign(nbf=NOW + 3600),
    "wrong iss": lambda: sign(iss="https://evil.example"),
    "iss a prefix": lambda: sign(iss=ISSUER + "/"),
    "iss a list": lambda: sign(iss=[ISSUER]),
    "no iss": lambda: sign(iss=None),
    "wrong aud": lambda: sign(aud="other"),
    "no aud": lambda: sign(aud=None),
    "aud an object": lambda: sign(aud={"x": AUDIENCE}),
    "no sub": lambda: sign(sub=None),
    "empty sub": lambda: sign(sub=""),
    "sub with NUL": lambda: sign(sub="a\x00b"),
    "sub with a lone surrogate": lambda: sign(sub="a\ud800"),
    "sub a number": lambda: sign(sub=7),
    "sub of 300 characters": lambda: sign(sub="a" * 300),
    "anon": lambda: sign(role="anon"),
    "service_role without the flag": lambda: sign(role="service_role"),
    "role a list": lambda: sign(role=["authenticated"]),
    "kid unknown": lambda: sign(kid="ec2"),
    "kid a path": lambda: sign(kid="../../../../dev/null"),
    "kid SQL": lambda: sign(kid="' or 1=1 --"),
    "kid NUL": lambda: raw({"alg": "ES256", "kid": "ec1\x00"}, claims()),
    "kid a number": lambda: raw({"alg": "ES256", "kid": 1}, claims()),
    "kid a list": lambda: raw({"alg": "ES256", "kid": ["ec1"]}, claims()),
    "jwk in the header": lambda: sign(OTHER_EC_KEY, header={"jwk": public_jwk(OTHER_EC_KEY, "ec1")}),
    "crit": lambda: sign(header={"crit": ["b64"], "b64": False}),
    "payload no object": lambda: raw({"alg": "ES256", "kid": "ec1"}, [1, 2]),
    "header no object": lambda: raw([1], claims()),
    "header no JSON": lambda: raw(b"{nope", claims()),
    "payload nested deep": lambda: raw({"alg": "ES256", "kid": "ec1"}, b"[" * 4000),
    "header nested deep": lambda: raw(b"[" * 4000, claims()),
    "signature empty": lambda: sign().rsplit(".", 1)[0] + ".",
    "signature cut": lambda: sign()[:-8],
    "two parts": lambda: "eyJhbGciOiJFUzI1NiJ9.e30",
    "four parts": lambda: sign() + ".xxxx",
    "non-ASCII": lambda: sign() + "ü",
    "fullwidth letters": lambda: "\uff45\uff59\uff2a.\uff45\uff59\uff2a.\uff45\uff59\uff2a",
    "lone surrogate": lambda: "eyJ.\udc80.abc",
    "1 MB": lambda: sign(padding="x" * 1_000_000),
    "1 MB of dots": lambda: "." * 1_000_000,
    "empty": lambda: "",
}  # fmt: skip


@pytest.mark.parametrize("make", ABUSES.values(), ids=ABUSES.keys())
async def test_abused_token_is_refused(users: UserTokens, make: Callable[[], str]) -> None:
    """Every defect gets the same answer, and none is an error of ours."""
    with pytest.raises(Unauthenticated) as refused:
        await users.verify(make())

    assert refused.value.code == "token_invalid"
    assert refused.value.__cause__ is None


async def test_abused_token_is_a_401_over_the_wire(
    api: Api, users: UserTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same table against the server. What does not fit a header is refused before anybody looks at it."""
    db = api.deps.db
    authenticator = BearerAuthenticator(
        keys=ServiceKeys(db, first_key=None), users=users, read_tokens=ReadTokens(db), failed_logins_per_minute=10_000
    )  # fmt: skip
    monkeypatch.setattr(api.keys, "authenticate", authenticator.authenticate)
    good = await _status(api.url, sign())

    found = {name: await _status(api.url, make()) for name, make in ABUSES.items()}

    assert 200 == good
    assert {name: 400 if name.startswith("1 MB") else 401 for name in ABUSES} == found


async def _status(url: str, token: str) -> int:
    """The status of a list of jobs with this token; any bytes may stand in it."""
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    head = b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer "
    writer.write(head + token.encode("utf-8", "surrogateescape") + b"\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


async def test_key_urls_in_a_token_are_never_asked(
    session: aiohttp.ClientSession, issuer: Issuer, users: UserTokens
) -> None:
    """jku and x5u would let the forger bring his own keys."""
    mine = Issuer(keys=[public_jwk(OTHER_EC_KEY, "ec1")])
    app = web.Application()
    app.router.add_get("/jwks", mine.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"

    with pytest.raises(Unauthenticated):
        await users.verify(sign(OTHER_EC_KEY, header={"jku": url, "x5u": url}))

    assert mine.calls == 0
    await runner.cleanup()


async def test_expired_token_says_so(users: UserTokens) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await users.verify(sign(exp=NOW - 60, iat=NOW - 600))

    assert refused.value.code == "token_expired"


async def test_hs256_works_with_a_configured_secret() -> None:
    users = UserTokens(auth(jwt_secret=SECRET), None)

    assert (await users.verify(sign(SECRET, "HS256", kid=None))).user_id == "user-1"


async def test_supabase_service_role_needs_its_flag() -> None:
    """The legacy key: issuer "supabase", ten years, no aud, no sub."""
    token = jwt.encode(
        {"iss": "supabase", "ref": "abc", "role": "service_role", "iat": NOW, "exp": NOW + 315_360_000},
        SECRET,
        algorithm="HS256",
    )

    allowed = await UserTokens(auth(jwt_secret=SECRET, allow_supabase_service_role=True), None).verify(token)
    assert allowed.user_id is None
    with pytest.raises(Unauthenticated):
        await UserTokens(auth(jwt_secret=SECRET), None).verify(token)


def test_keys_without_issuer_or_audience_are_misconfigured() -> None:
    with pytest.raises(Misconfigured):
        UserTokens(Auth(jwt_secret=SECRET), None)


async def test_keys_are_fetched_once_for_a_crowd(users: UserTokens, issuer: Issuer) -> None:
    token = sign()

    await asyncio.gather(*(users.verify(token) for _ in range(50)))

    assert issuer.calls == 1


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_unknown_kid_refetches_only_after_the_cooldown(
    session: aiohttp.ClientSession, issuer: Issuer
) -> None:
    """A rotated key is found; a flood of invented kids is no flood at the issuer."""
    clock = Clock()
    keys = KeySet(session, issuer.url, clock=clock)
    assert await keys.find("ec1", "ES256") is not None
    issuer.keys.append(public_jwk(OTHER_EC_KEY, "ec2"))

    for n in range(20):
        assert await keys.find(f"invented-{n}", "ES256") is None
    assert issuer.calls == 1
    clock.now += 31

    assert await keys.find("ec2", "ES256") is not None
    assert issuer.calls == 2


async def test_old_keys_serve_while_the_issuer_is_down(
    session: aiohttp.ClientSession, issuer: Issuer
) -> None:
    clock = Clock()
    keys = KeySet(session, issuer.url, clock=clock)
    await keys.find("ec1", "ES256")
    issuer.status = 500
    clock.now += 700

    assert await keys.find("ec1", "ES256") is not None
    assert await keys.find("ec1", "ES256") is not None
    assert issuer.calls == 2  # the failure is remembered for the cooldown


async def test_removed_key_ends_with_the_next_fetch(session: aiohttp.ClientSession, issuer: Issuer) -> None:
    clock = Clock()
    keys = KeySet(session, issuer.url, clock=clock)
    await keys.find("ec1", "ES256")
    issuer.keys = [public_jwk(RSA_KEY, "rsa1")]
    clock.now += 700

    assert await keys.find("ec1", "ES256") is None


async def test_without_any_keys_the_answer_is_unavailable(
    session: aiohttp.ClientSession, issuer: Issuer
) -> None:
    """The caller's token may be good: 503, not 401."""
    issuer.status = 500

    with pytest.raises(Unavailable):
        await UserTokens(auth(), KeySet(session, issuer.url)).verify(sign())


def test_only_public_keys_of_our_kinds_are_read() -> None:
    """An `oct` key in a public document would let anybody sign; a P-384 key is for another algorithm."""
    small = rsa.generate_private_key(65537, 1024)
    document = {
        "keys": [
            {"kty": "oct", "kid": "oct", "k": "AAAA"},
            public_jwk(ec.generate_private_key(ec.SECP384R1()), "p384"),
            public_jwk(small, "small"),
            public_jwk(EC_KEY, "enc", use="enc"),
            public_jwk(EC_KEY, "wrong", alg="RS256"),
            {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "broken"},
            "no object",
            public_jwk(EC_KEY, "good"),
        ]
    }

    assert set(read_key_set(json.dumps(document).encode())) == {"good"}
