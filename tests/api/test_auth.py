"""Service keys, read tokens and the authenticator that tells them apart."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest
from aiohttp import hdrs, web
from aiohttp.test_utils import make_mocked_request

from daemon import tokens
from daemon.api.auth import BearerAuthenticator, RefusalLimit
from daemon.api.limits import RequestLimit
from daemon.api.principal import Principal
from daemon.db import Database
from daemon.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from daemon.read_tokens import ReadTokens
from daemon.settings import Auth
from daemon.tokens import CACHE_S, SCOPES, ServiceKeys
from daemon.user_tokens import UserTokens

FIRST = "first-key-of-at-least-32-characters!"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(db: Database, clock: Clock) -> ServiceKeys:
    return ServiceKeys(db, first_key=FIRST, clock=clock)


@pytest.fixture
def read_tokens(db: Database) -> ReadTokens:
    return ReadTokens(db)


@pytest.fixture
def authenticator(keys: ServiceKeys, read_tokens: ReadTokens, clock: Clock) -> BearerAuthenticator:
    return BearerAuthenticator(
        keys=keys,
        users=UserTokens(Auth(), None),
        read_tokens=read_tokens,
        failed_logins_per_minute=5,
        clock=clock,
    )


def request(token: str | None, path: str = "/v1/jobs", scheme: str = "Bearer") -> web.Request:
    headers = {} if token is None else {hdrs.AUTHORIZATION: f"{scheme} {token}"}
    return make_mocked_request("GET", path, headers=headers)


async def new_job(dsn: str, user_id: str = "") -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval("select listingd.enqueue_job('ping', '{}', $1)", user_id))
    finally:
        await connection.close()


async def test_new_key_is_accepted_with_its_scopes(
    keys: ServiceKeys, authenticator: BearerAuthenticator
) -> None:
    new = await keys.create(name="app", scopes=["read"])

    principal = await authenticator.authenticate(request(new.token))

    assert Principal("service", f"key:{new.key.id}", None, frozenset({"read"})) == principal


async def test_only_the_hash_of_a_secret_is_stored(keys: ServiceKeys, db: Database) -> None:
    new = await keys.create(name="app", scopes=["read"])

    stored = await db.pool.fetchval("select k::text from listingd.service_keys as k")

    assert new.token.rsplit("_", 1)[1] not in stored
    assert new.token not in repr(new)


async def test_first_key_has_all_scopes_without_the_database(
    keys: ServiceKeys, authenticator: BearerAuthenticator, db: Database
) -> None:
    """An operator can still look while Postgres is away."""
    await db.close()

    assert (await authenticator.authenticate(request(FIRST))).scopes == SCOPES


async def test_unreachable_database_is_no_refusal(authenticator: BearerAuthenticator, db: Database) -> None:
    await db.close()

    with pytest.raises(Unavailable):
        await authenticator.authenticate(request("ld_live_" + "a" * 12 + "_" + "b" * 43))


async def test_revoked_key_is_refused_everywhere_within_30_s(db: Database, clock: Clock) -> None:
    """Another process learns of it when its memory of the check ends."""
    here, there = (ServiceKeys(db, first_key=None, clock=clock) for _ in range(2))
    new = await here.create(name="app", scopes=["read"])
    assert await there.verify(new.token) is not None

    await here.revoke(new.key.id)

    assert await here.verify(new.token) is None
    clock.now += 30
    assert await there.verify(new.token) is None
    assert not await there.is_live(new.key.id)


async def test_check_is_remembered(keys: ServiceKeys, db: Database) -> None:
    """The hot path asks Postgres once in 30 s."""
    new = await keys.create(name="app", scopes=["read"])
    await keys.verify(new.token)

    await db.close()

    assert await keys.verify(new.token) is not None


async def test_wrong_secret_of_a_known_key_is_refused(keys: ServiceKeys) -> None:
    new = await keys.create(name="app", scopes=["read"])
    await keys.verify(new.token)

    assert await keys.verify(new.token[:-1] + ("a" if new.token[-1] != "a" else "b")) is None


async def test_expired_key_is_refused(keys: ServiceKeys) -> None:
    new = await keys.create(name="app", scopes=["read"], expires_at=datetime.now(UTC) - timedelta(seconds=1))

    assert await keys.verify(new.token) is None


async def test_memory_of_a_check_ends_with_the_key(keys: ServiceKeys, clock: Clock, db: Database) -> None:
    new = await keys.create(
        name="a", scopes=["read"], expires_at=datetime.now(UTC) + timedelta(seconds=CACHE_S / 2)
    )
    assert await keys.verify(new.token) is not None

    clock.now += CACHE_S / 2
    await db.pool.execute("update listingd.service_keys set expires_at = now()")  # the database's clock too

    assert await keys.verify(new.token) is None


async def test_rotation_keeps_the_old_key_for_the_overlap(keys: ServiceKeys) -> None:
    old = await keys.create(name="app", scopes=["read", "enqueue"])

    new = await keys.rotate(old.key.id, overlap_s=3600)

    assert old.key.scopes == new.key.scopes
    assert await keys.verify(old.token) is not None
    assert await keys.verify(new.token) is not None
    assert {key.id: key.expires_at is None for key in await keys.list_keys()} == {
        old.key.id: False,
        new.key.id: True,
    }


async def test_rotation_without_overlap_ends_the_old_key(keys: ServiceKeys) -> None:
    old = await keys.create(name="app", scopes=["read"])

    await keys.rotate(old.key.id, overlap_s=0)

    assert await keys.verify(old.token) is None
    with pytest.raises(Conflict):
        await keys.rotate(old.key.id, overlap_s=0)


async def test_keys_are_listed_in_pieces_each_once(
    keys: ServiceKeys, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 000 read at once held the loop. Those of one moment must not be lost where a piece ends."""
    monkeypatch.setattr(tokens, "PAGE_SIZE", 2)
    made = [(await keys.create(name=f"key {n}", scopes=["read"])).key for n in range(7)]
    await db.pool.execute("update listingd.service_keys set created_at = '2026-01-01Z' where name <> 'key 6'")

    listed = [key.id for key in await keys.list_keys()]

    assert [made[6].id, *sorted(key.id for key in made[:6])] == listed


async def test_unknown_key_cannot_be_revoked_or_rotated(keys: ServiceKeys) -> None:
    with pytest.raises(NotFound):
        await keys.revoke("nobody")
    with pytest.raises(NotFound):
        await keys.rotate("nobody", overlap_s=0)


async def test_last_use_is_written_once_a_minute(keys: ServiceKeys, db: Database, clock: Clock) -> None:
    new = await keys.create(name="app", scopes=["read"])
    await keys.verify(new.token)
    first = (await keys.list_keys())[0].last_used_at
    clock.now += 31

    await keys.verify(new.token)

    assert first is not None
    assert first == (await keys.list_keys())[0].last_used_at
    await db.pool.execute(
        "update listingd.service_keys set last_used_at = last_used_at - interval '2 minutes'"
    )
    clock.now += 31
    await keys.verify(new.token)
    assert first <= ((await keys.list_keys())[0].last_used_at or first)


@pytest.mark.parametrize(
    "token",
    ["", "x", "ld_live_", "ld_live_a_b", "ld_live_" + "ü" * 12, "é" * 100, "a" * 1_000_000, "ld_read_x.y.z",
     "ld_read_eyJhbGciOiJub25lIn0.e30.", FIRST + "x", FIRST[:-1], "ld_live_" + "a" * 12 + "_" + "b" * 43],
)  # fmt: skip
async def test_garbage_is_unauthenticated(authenticator: BearerAuthenticator, token: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await authenticator.authenticate(request(token))

    assert refused.value.data["challenge"].startswith("Bearer ")


@pytest.mark.parametrize("scheme", ["Basic", "Token", ""])
async def test_other_schemes_are_unauthenticated(authenticator: BearerAuthenticator, scheme: str) -> None:
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(request(FIRST, scheme=scheme))


async def test_scheme_is_case_insensitive(authenticator: BearerAuthenticator) -> None:
    """RFC 9110 §11.1."""
    assert (await authenticator.authenticate(request(FIRST, scheme="bearer"))).kind == "service"


async def test_key_in_the_query_is_never_read(authenticator: BearerAuthenticator) -> None:
    """URLs end up in logs and histories."""
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(request(None, f"/v1/events?token={FIRST}"))


async def test_refused_address_is_slowed_down(authenticator: BearerAuthenticator, clock: Clock) -> None:
    for n in range(5):
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(request(f"guess-{n}"))

    with pytest.raises(TooManyRequests) as refused:
        await authenticator.authenticate(request("guess-6"))
    assert refused.value.data["retry_after_s"] > 0
    assert "too_many_refusals" == refused.value.code
    clock.now += 60
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(request("guess-7"))


async def test_known_caller_goes_on_behind_a_refused_address(authenticator: BearerAuthenticator) -> None:
    """One broken client behind a shared proxy must not lock the others out."""
    await authenticator.authenticate(request(FIRST))
    for n in range(5):
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(request(f"guess-{n}"))

    assert (await authenticator.authenticate(request(FIRST))).kind == "service"


def test_ipv6_neighbours_share_a_limit() -> None:
    limit = RefusalLimit(1)
    limit.count("2001:db8::1")

    with pytest.raises(TooManyRequests):
        limit.check("2001:db8::2")
    limit.check("2001:db8:0:1::1")


def test_requests_that_were_not_made_are_not_saved_up(clock: Clock) -> None:
    limit, ann = RequestLimit(60, clock=clock), Principal("user", "user:ann", "ann", frozenset())
    limit.take(ann)
    clock.now += 86_400

    for _ in range(60):
        limit.take(ann)
    with pytest.raises(TooManyRequests):
        limit.take(ann)


async def test_read_token_reads_one_job_on_its_stream(
    authenticator: BearerAuthenticator, read_tokens: ReadTokens, database: str
) -> None:
    job = await new_job(database, "u1")

    minted = await read_tokens.mint(f"job:{job}", user_id="u1", minted_by="", ttl_s=900)
    principal = await authenticator.authenticate(request(None, f"/v1/jobs/{job}/events?token={minted.token}"))

    assert Principal("token", f"token:job:{job}", "u1", frozenset({"read"}), ("job", job)) == principal
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(request(None, f"/v1/jobs/{job}?token={minted.token}"))


async def test_read_token_of_a_service_is_confined_to_the_owner(
    authenticator: BearerAuthenticator, read_tokens: ReadTokens, database: str
) -> None:
    """Minted by a service key for any user, it still shows that user's things alone."""
    job = await new_job(database, "u1")

    minted = await read_tokens.mint(f"job:{job}", user_id=None, minted_by="first", ttl_s=900)

    assert (await authenticator.authenticate(request(minted.token))).user_id == "u1"


@pytest.mark.parametrize("scope", ["job:{other}", f"job:{uuid4()}", f"project:{uuid4()}", "user:u2"])
async def test_nobody_mints_for_what_is_not_theirs(
    read_tokens: ReadTokens, database: str, scope: str
) -> None:
    other = await new_job(database, "u2")

    with pytest.raises(NotFound):
        await read_tokens.mint(scope.format(other=other), user_id="u1", minted_by="", ttl_s=900)


@pytest.mark.parametrize(
    "scope", ["", "job", "job:", "job:1", "admin:1", "user:", "user:a\x00", "job:" + "x" * 300]
)
async def test_unreadable_scope_is_invalid(read_tokens: ReadTokens, scope: str) -> None:
    with pytest.raises(InvalidInput):
        await read_tokens.mint(scope, user_id=None, minted_by="", ttl_s=900)


async def test_a_read_token_ends_at_its_time_and_is_no_guess(
    authenticator: BearerAuthenticator, read_tokens: ReadTokens
) -> None:
    """A page left open asks again and again: its address must not be locked out for it."""
    minted = await read_tokens.mint("user:u1", user_id="u1", minted_by="", ttl_s=-1)

    for _ in range(10):
        with pytest.raises(Unauthenticated) as refused:
            await authenticator.authenticate(request(minted.token))
        assert "token_expired" == refused.value.code


async def test_read_token_ends_with_the_key_that_minted_it(
    authenticator: BearerAuthenticator, read_tokens: ReadTokens, keys: ServiceKeys
) -> None:
    new = await keys.create(name="app", scopes=["read"])
    minted = await read_tokens.mint("user:u1", user_id=None, minted_by=new.key.id, ttl_s=900)
    assert (await authenticator.authenticate(request(minted.token))).user_id == "u1"

    await keys.revoke(new.key.id)

    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(request(minted.token))


async def test_processes_share_the_signing_secret(db: Database) -> None:
    here, there = ReadTokens(db), ReadTokens(db)

    first, second = await asyncio.gather(
        here.mint("user:u1", user_id="u1", minted_by="", ttl_s=60),
        there.mint("user:u2", user_id="u2", minted_by="", ttl_s=60),
    )

    assert (await there.verify(first.token)) is not None
    assert (await here.verify(second.token)) is not None


async def test_tampered_read_token_is_refused(read_tokens: ReadTokens) -> None:
    minted = await read_tokens.mint("user:u1", user_id="u1", minted_by="", ttl_s=60)
    other = await read_tokens.mint("user:u2", user_id="u2", minted_by="", ttl_s=60)
    head, _, tail = (*minted.token.split("."),)
    payload = other.token.split(".")[1]

    assert await read_tokens.verify(f"{head}.{payload}.{tail}") is None
