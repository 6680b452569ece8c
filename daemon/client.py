"""A client of the HTTP API: JSON calls, uploads, downloads, and a job followed to its end.

    find_target(settings) --url, key--> open_client --> Client.call / upload / download / watch_job

What the server refuses comes back as the error it sent (code, message); a service that does not answer is
Unavailable. Event streams are resumed from their last `id:` after every cut. Jobs are JSON objects as
the contract has them: this side must work with a server that is a little older or newer.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from daemon.errors import ListingdError, Misconfigured, Unavailable
from daemon.settings import Settings

FINAL_STATES = frozenset({"completed", "failed", "cancelled"})

_CALL = aiohttp.ClientTimeout(total=90, sock_connect=5)
# The server pings every 15 s: a stream that is silent for longer is dead.
_STREAM = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=40)
_RECONNECTS = 8


class CallRefused(ListingdError):
    """The service said no; data["status"] is the HTTP status, data["errors"] the wrong fields."""

    code = "call_refused"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a service is and the key that opens it; empty for what needs none."""

    url: str
    key: str


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; id is empty when it does not move the position."""

    name: str
    id: str
    data: Any


def find_url(settings: Settings, *, url: str | None = None) -> str:
    """Where the service of these settings is: `url`, else LISTINGD_URL, else the settings' own address.

    Errors: Misconfigured.
    """
    host = settings.http.host
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 -- compared, not bound
        host = "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    url = url or os.environ.get("LISTINGD_URL") or f"http://{host}:{settings.http.port}"
    if not url.startswith(("http://", "https://")):
        raise Misconfigured(
            "The URL of the service must begin with http:// or https://.",
            hint="Correct --url or LISTINGD_URL.",
        )
    return url.rstrip("/")


def find_target(settings: Settings, *, url: str | None = None) -> Target:
    """The service of these settings (`find_url`) and its key.

    The key is LISTINGD_KEY, LISTINGD_SERVICE_KEY, or the one that the service left in its state dir.
    Errors: Misconfigured.
    """
    key = (os.environ.get("LISTINGD_KEY") or _read_key(settings)).strip()
    if not key.isascii() or not key.isprintable():
        raise Misconfigured(
            "LISTINGD_KEY is no service key: it has several lines, or letters beyond ASCII.",
            hint="The first key is in STATE_DIR/service.key.",
        )
    return Target(find_url(settings, url=url), key)


def _read_key(settings: Settings) -> str:
    if settings.service_key is not None:
        return settings.service_key.get_secret_value()
    path = settings.state_dir / "service.key"
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise Misconfigured(
            f"No key for the service: {path} cannot be read ({reason}).",
            hint="Set LISTINGD_KEY to a service key, or LISTINGD_STATE_DIR to the state dir of the service.",
        ) from exc


@asynccontextmanager
async def open_client(target: Target) -> AsyncIterator[Client]:
    """A client for the length of the block. Nothing is sent yet."""
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    async with aiohttp.ClientSession(headers=headers, timeout=_CALL) as session:
        yield Client(session, target.url)


class Client:
    """Errors of every method: CallRefused, Misconfigured (key refused), Unavailable (no answer)."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The answer's JSON; None when it has no body."""
        data = await self._send(method, path, json=body, params=query, headers=headers)
        try:
            return json.loads(data) if data else None
        except ValueError as exc:
            raise self._strange("is no JSON") from exc

    async def create_job(self, kind: str, input: Mapping[str, Any], **more: Any) -> Any:
        """Enqueue; the job as stored. more: other fields of the request, None ones are left out."""
        fields = {name: value for name, value in more.items() if value is not None}
        return await self.call("POST", "/v1/jobs", body={"kind": kind, "input": input, **fields})

    async def read_job(self, job_id: str) -> Any:
        return await self.call("GET", f"/v1/jobs/{job_id}")

    async def upload(self, data: bytes) -> str:
        """Store a photo; its upload_id."""
        headers = {"Content-Type": "application/octet-stream"}
        answer = await self._send("POST", "/v1/uploads", data=data, headers=headers)
        return str(json.loads(answer)["upload_id"])

    async def download(self, path: str) -> bytes:
        """The bytes behind a path such as an asset's `url`."""
        return await self._send("GET", path)

    async def watch_job(self, job_id: str) -> AsyncGenerator[dict[str, Any]]:
        """The job after each of its events; the last one is final."""
        job: dict[str, Any] = {}
        async with aclosing(self._follow(f"/v1/jobs/{job_id}/events")) as events:
            async for event in events:
                job = _merge(job, event)
                yield job
        if job.get("state") not in FINAL_STATES:  # cut after the end: the server has nothing more to say
            yield await self.read_job(job_id)

    async def _follow(self, path: str) -> AsyncGenerator[Event]:
        """Events until `done`, across reconnects."""
        last_id, failures = "", 0
        while True:
            try:
                async with aclosing(self._stream(path, last_id)) as events:
                    async for event in events:
                        failures = 0
                        last_id = event.id or last_id
                        yield event
                        if event.name == "done":
                            return
            except _Ended:
                return
            except Unavailable:
                failures += 1
                if failures > _RECONNECTS:
                    raise
            await asyncio.sleep(min(5.0, 0.2 * 2.0**failures))

    async def _stream(self, path: str, last_id: str) -> AsyncGenerator[Event]:
        """One connection's events. Errors: _Ended when there is nothing after `last_id`."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        try:
            async with self._session.get(self.url + path, headers=headers, timeout=_STREAM) as response:
                if response.status == 204:
                    raise _Ended
                if response.status != 200:
                    raise self._refused(response.status, await response.read())
                # Not by line: a job with its document is longer than aiohttp's longest line.
                buffer = b""
                async for chunk in response.content.iter_any():
                    *blocks, buffer = (buffer + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
                    for block in blocks:
                        if (event := _parse(block)) is not None:
                            yield event
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise self._silent(exc) from exc

    async def probe(self, path: str) -> tuple[int, Any]:
        """Status and JSON of an answer, whatever it says; None for what is no JSON."""
        try:
            async with self._session.get(self.url + path) as response:
                status, data = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise self._silent(exc) from exc
        try:
            return status, json.loads(data)
        except ValueError:
            return status, None

    async def _send(self, method: str, path: str, **request: Any) -> bytes:
        try:
            async with self._session.request(method, self.url + path, **request) as response:
                data = await response.read()
                if response.status >= 400:
                    raise self._refused(response.status, data)
                return data
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise self._silent(exc) from exc

    def _silent(self, exc: BaseException) -> ListingdError:
        if isinstance(exc, aiohttp.InvalidURL):
            return Misconfigured(f"{self.url} is no URL of a service.", hint="Correct --url or LISTINGD_URL.")
        return Unavailable(
            f"No listingd answers at {self.url}.",
            hint="Start it with `listingd serve`, or set LISTINGD_URL to where it runs.",
            data={"cause": type(exc).__name__},
        )

    def _refused(self, status: int, data: bytes) -> ListingdError:
        try:
            problem = json.loads(data)
            code, detail, fields = problem["code"], problem["detail"], problem.get("errors", [])
        except (ValueError, KeyError, TypeError):
            return self._strange(f"is {status}, and not as listingd says it")
        if status in (401, 403):
            return Misconfigured(
                f"{self.url} refused the key: {detail}",
                code=code,
                hint="Set LISTINGD_KEY to a service key with the needed scope "
                "(the first one is in STATE_DIR/service.key).",
                data={"status": status},
            )
        return CallRefused(detail, code=code, data={"status": status, "errors": fields})

    def _strange(self, what: str) -> ListingdError:
        return Unavailable(
            f"The answer of {self.url} {what}.",
            hint="Something else may be listening there: check LISTINGD_URL.",
        )


class _Ended(Exception):
    """The stream has ended and its reader has seen it all."""


def _parse(block: bytes) -> Event | None:
    """An event of its lines; None for comments. Source: HTML Standard, Server-sent events, 9.2.6."""
    name, event_id, data = "message", "", []
    for line in block.decode("utf-8", "replace").split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "id":
            event_id = value
        elif field == "data":
            data.append(value)
    return Event(name, event_id, json.loads("\n".join(data))) if data else None


def _merge(job: dict[str, Any], event: Event) -> dict[str, Any]:
    """The job as it is after an event of its own stream."""
    if event.name in ("snapshot", "job"):
        return dict(event.data)
    if event.name == "asset":
        known = [asset for asset in job.get("assets", []) if asset["id"] != event.data["id"]]
        return job | {"assets": [*known, event.data]}
    return {**job, **event.data}
