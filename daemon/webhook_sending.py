"""One webhook on its way: signed after Standard Webhooks 1.0.0 and sent once.

    webhook-id         names the message, the same in every attempt and redelivery: drop what you have seen
    webhook-timestamp  seconds since 1970, of this attempt
    webhook-signature  "v1,<base64 HMAC-SHA256 of id.timestamp.body>", one for each valid secret, space-separated

Source: https://www.standardwebhooks.com, specification 1.0.0, read 2026-11-23. The receiver's address passes
the AddressGuard, redirects are not followed, its answer's body is not read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from daemon.errors import FieldError, InvalidInput
from daemon.providers.guard import AddressGuard, Network, open_session
from daemon.providers.rates import parse_retry_after_s

SECRET_PREFIX = "whsec_"  # noqa: S105 -- no secret: every secret begins so
SECRET_BYTES = 32  # the specification asks for 24 to 64
MAX_BODY_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Receipt:
    """How one attempt went. status: the receiver's, None when none came; problem: "" or why none came:
    timed_out, unreachable, forbidden (an address that is not public), malformed (no usable URL).
    """

    duration_s: float
    status: int | None = None
    retry_after_s: float | None = None
    problem: str = ""

    @property
    def is_accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def new_secret() -> str:
    """A signing secret as receivers' libraries take it."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(keys: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The webhook-signature header. keys: `whsec_…`, the newest first. Errors: ValueError for another text."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = []
    for key in keys:
        try:
            raw = base64.b64decode(key.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error as exc:
            raise ValueError("a webhook secret is not base64") from exc
        mac = hmac.new(raw, signed, hashlib.sha256).digest()
        signatures.append("v1," + base64.b64encode(mac).decode())
    return " ".join(signatures)


async def send(
    url: str,
    *,
    message_id: str,
    body: bytes,
    keys: Sequence[str],
    timeout_s: float,
    allowed: Sequence[Network] = (),
) -> Receipt:
    """Post the body once, within `timeout_s` seconds in all. Never raises for what the receiver does."""
    guard = AddressGuard(allowed)
    timestamp = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "listingd-webhooks",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(keys, message_id, timestamp, body),
    }
    began = time.monotonic()

    def receipt(status: int | None = None, retry_after_s: float | None = None, problem: str = "") -> Receipt:
        return Receipt(round(time.monotonic() - began, 3), status, retry_after_s, problem)

    try:
        async with (
            asyncio.timeout(timeout_s),
            open_session(guard) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            return receipt(answer.status, parse_retry_after_s(answer.headers.get("Retry-After")))
    except TimeoutError:
        return receipt(problem="timed_out")
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        return receipt(problem="malformed")
    except (aiohttp.ClientError, OSError):
        return receipt(problem="forbidden" if guard.refused else "unreachable")
    except ValueError:  # yarl and the idna codec, for hosts that are none
        return receipt(problem="malformed")


def check_url(url: str, allowed: Sequence[Network] = (), *, pointer: str = "/url") -> None:
    """Refuse at once what could never be delivered; names are judged when they are resolved.

    pointer: where the URL stands in the caller's document. Errors: InvalidInput.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    fits = (
        parts.scheme in {"http", "https"} and host and port != 0 and not parts.username and not parts.password
    )
    if not fits or any(ch.isspace() or ord(ch) < 0x20 for ch in url):
        raise _refuse_url(pointer, "must be an http or https URL with a host and without a password")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return
    if not AddressGuard(allowed).permits(host):
        raise _refuse_url(pointer, "leads to an address that is not public")


def _refuse_url(pointer: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{pointer}: {detail}.", errors=[FieldError(pointer, "webhook_url", detail)])
