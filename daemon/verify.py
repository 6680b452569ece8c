"""`listingd verify`: proves an installed service from end to end, one check after the other.

    settings ─ state dir ─ database ─ schema ─ listen ─ storage        what the service stands on
    live ─ ready ─ job                                                 the service itself, over HTTP

A check that needs a failed one is left out and says so. Run it where the service runs, as the user it
runs as. It changes nothing that stays, but for one finished `ping` job.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from daemon import db as database
from daemon.client import Client, Target, find_target, find_url, open_client
from daemon.embedded import PostgresServer
from daemon.errors import ListingdError, Misconfigured, Unavailable, first_cause
from daemon.migrate import check_schema, list_migrations
from daemon.settings import Settings
from daemon.settings_sources import load_settings
from daemon.storage import open_storage

LISTEN_WITHIN_S = 5.0
JOB_WITHIN_S = 30.0
_LOW_SPACE_BYTES = 1 << 30

Outcome = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. detail: what was seen; hint: what to do when it is not ok."""

    name: str
    outcome: Outcome
    detail: str
    hint: str
    duration_ms: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Warned(ListingdError):
    """A check that passed with a remark."""

    code = "warned"


class _Skipped(Exception):
    """What the check needs has failed before."""


async def verify(
    config: Path | None, *, url: str | None = None, tell: Callable[[Finding], None] = lambda _: None
) -> list[Finding]:
    """All checks in order; `tell` gets each finding as it comes. Errors: none of the service's."""
    findings: list[Finding] = []
    async with AsyncExitStack() as stack:
        run = _Run(config, url, stack)
        for name, check in run.checks():
            began = time.monotonic()
            finding = await _find(name, check, began)
            findings.append(finding)
            tell(finding)
    return findings


async def _find(name: str, check: Callable[[], Awaitable[str]], began: float) -> Finding:
    outcome: Outcome
    try:
        outcome, detail, hint = "ok", await check(), ""
    except Warned as exc:
        outcome, detail, hint = "warn", exc.message, exc.hint
    except ListingdError as exc:
        outcome, detail, hint = "fail", exc.message, exc.hint
    except TimeoutError:
        outcome, detail, hint = "fail", "No answer in time.", "Look at the logs of the service."
    except _Skipped as exc:
        outcome, detail, hint = "skip", str(exc), ""
    return Finding(name, outcome, detail, hint, round((time.monotonic() - began) * 1000, 1))


class _Run:
    """The checks and what they hand to each other."""

    def __init__(self, config: Path | None, url: str | None, stack: AsyncExitStack) -> None:
        self._config = config
        self._url = url
        self._stack = stack
        self._settings: Settings | None = None
        self._state_dir_is_ours = False
        self._db: database.Database | None = None
        self._client: Client | None = None
        self._is_live = False

    def checks(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        return [
            ("settings", self._check_settings),
            ("state dir", self._check_state_dir),
            ("database", self._check_database),
            ("schema", self._check_schema),
            ("listen", self._check_listen),
            ("storage", self._check_storage),
            ("live", self._check_live),
            ("ready", self._check_ready),
            ("job", self._check_job),
        ]

    async def _check_settings(self) -> str:
        settings = self._settings = load_settings(self._config)
        providers = {
            "cut-out": settings.cutout.effective_protocol,
            "pictures": "openai" if settings.openai.api_key else "offline",
            "texts": "gemini" if settings.gemini.api_key else "offline",
        }
        return ", ".join(f"{what}: {who}" for what, who in providers.items())

    async def _check_state_dir(self) -> str:
        path = self._need_settings().state_dir
        try:
            owner = path.stat().st_uid
        except OSError as exc:
            raise Misconfigured(
                f"{path} cannot be looked at: {exc.strerror}.",
                hint="Start the service once, or set LISTINGD_STATE_DIR to the state dir of the service.",
            ) from exc
        if owner != os.geteuid():
            raise Misconfigured(
                f"{path} belongs to {_user_name(owner)}, and this is {_user_name(os.geteuid())}.",
                hint=f"Run it as the service does: sudo -u {_user_name(owner)} listingd verify.",
            )
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise Misconfigured(f"{path} cannot be written.", hint="Give its owner all rights on it.")
        self._state_dir_is_ours = True
        free_bytes = shutil.disk_usage(path).free
        if free_bytes < _LOW_SPACE_BYTES:
            raise Warned(
                f"{path} has {free_bytes / 1e6:.0f} MB left.",
                hint="Make room: on a full disk uploads are refused and jobs wait.",
            )
        return f"{path}, {free_bytes / 1e9:.1f} GB free"

    async def _check_database(self) -> str:
        settings = self._need_settings()
        dsn = None
        if settings.database_url is None:
            if not self._state_dir_is_ours:
                raise _Skipped("needs the state dir")
            server = PostgresServer(settings.state_dir / "postgres", version=settings.embedded.version)
            dsn = server.dsn
            if not (server.data_dir / "postmaster.pid").exists():
                raise Unavailable(
                    "The embedded PostgreSQL is not running.",
                    hint="It runs while the service runs: `listingd serve`, or systemctl start listingd.",
                )
        try:
            db = await database.open_pool(settings, dsn=dsn)
        except Unavailable as exc:
            raise Unavailable(
                f"The database does not answer: {first_cause(exc)}.",
                hint="Start it, or correct LISTINGD_DATABASE_URL.",
            ) from exc
        self._stack.push_async_callback(db.close)
        self._db = db
        async with db.acquire() as connection:
            version = connection.get_server_version()
        began = time.monotonic()
        await db.fetchval("ping")
        where = "through a pooler" if db.pooled else "embedded" if dsn else "direct"
        return f"PostgreSQL {version.major}.{version.micro}, {where}, round trip {_ms(began)} ms"

    async def _check_schema(self) -> str:
        await check_schema(self._need_db().dsn)
        newest = max(list_migrations(), key=lambda migration: migration.number)
        return f"{newest.number:04d}_{newest.name} is the newest migration"

    async def _check_listen(self) -> str:
        db = self._need_db()
        if not db.can_listen:
            raise Warned(
                "The DSN goes through a transaction pooler: jobs enqueued by SQL start by polling.",
                hint="Set LISTINGD_LISTEN_DATABASE_URL to a direct DSN.",
            )
        variable = "LISTINGD_LISTEN_DATABASE_URL" if db.listen_dsn else "LISTINGD_DATABASE_URL"
        with database.translate_refusals(db.listen_dsn or db.dsn, variable):
            connection = await db.dedicated_connection("verify", direct=True)
        try:
            channel = f"listingd_verify_{secrets.token_hex(8)}"
            heard = asyncio.Event()
            with database.translate_errors():
                await connection.add_listener(channel, lambda *_: heard.set())
                began = time.monotonic()
                await db.fetchval("notify_probe", channel)
                try:
                    async with asyncio.timeout(LISTEN_WITHIN_S):
                        await heard.wait()
                except TimeoutError:
                    raise Unavailable(
                        f"No notification came within {LISTEN_WITHIN_S:g} s.",
                        hint="Set LISTINGD_LISTEN_DATABASE_URL to a DSN that reaches the primary directly.",
                    ) from None
            return f"a notification came back after {_ms(began)} ms"
        finally:
            connection.terminate()

    async def _check_storage(self) -> str:
        settings = self._need_settings()
        url = urlsplit(settings.effective_storage_url)
        if url.scheme == "file" and not self._state_dir_is_ours:
            # A file made here as another user would stand in the way of the service.
            raise _Skipped("needs the state dir")
        storage = await open_storage(settings)
        try:
            await storage.check()
        except Unavailable as exc:
            raise Unavailable(f"{exc.message} {first_cause(exc)}", hint=exc.hint) from exc
        return f"{url.scheme}://{url.netloc}{url.path}: put, get, delete"

    async def _check_live(self) -> str:
        # Without a key: whether it lives is told to everybody.
        target = Target(find_url(self._need_settings(), url=self._url), "")
        self._client = await self._stack.enter_async_context(open_client(target))
        await self._client.call("GET", "/livez")
        version = await self._client.call("GET", "/version")
        self._is_live = True
        return f"{target.url}, listingd {version['version']}"

    async def _check_ready(self) -> str:
        status, answer = await self._need_live().probe("/readyz")
        components = answer.get("components", {}) if isinstance(answer, dict) else {}
        wrong = {name: why for name, why in components.items() if why not in ("ok", "polling")}
        if status != 200:
            named = "; ".join(f"{name}: {why}" for name, why in wrong.items()) or f"status {status}"
            raise Unavailable(f"The service takes no work: {named}.", hint="Look at its logs.")
        if components.get("listener") == "polling":
            raise Warned(
                "Ready, but the service polls instead of listening.",
                hint="Jobs enqueued by SQL start with a delay; its logs say why the listener is down.",
            )
        return ", ".join(f"{name} {why}" for name, why in components.items()) or "ready"

    async def _check_job(self) -> str:
        self._need_live()
        target = find_target(self._need_settings(), url=self._url)
        nonce = secrets.token_hex(8)
        began = time.monotonic()
        async with asyncio.timeout(JOB_WITHIN_S), open_client(target) as client:
            created = await client.create_job("ping", {"echo": nonce}, tags=["verify"])
            created_ms = _ms(began)
            seen = [job async for job in client.watch_job(created["id"])]
        job = seen[-1]
        if job["state"] != "completed" or (job.get("result") or {}).get("echo") != nonce:
            error = job.get("error") or {}
            raise Unavailable(
                f"The ping is {job['state']}: {error.get('message', 'its answer is not what was sent')}.",
                hint="Look at the logs of the service.",
            )
        return f"ping created in {created_ms} ms, completed after {_ms(began)} ms, {len(seen)} events"

    def _need_settings(self) -> Settings:
        if self._settings is None:
            raise _Skipped("needs the settings")
        return self._settings

    def _need_db(self) -> database.Database:
        if self._db is None:
            raise _Skipped("needs the database")
        return self._db

    def _need_live(self) -> Client:
        if self._client is None or not self._is_live:
            raise _Skipped("needs a service that answers")
        return self._client


def _ms(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 1)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
