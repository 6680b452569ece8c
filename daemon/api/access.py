"""Whose things a caller may touch. Statements are confined by user_id; a minted read token is confined to
its one subject as well. What is outside answers exactly as what does not exist.
"""

from __future__ import annotations

import re
from dataclasses import replace
from uuid import UUID

from aiohttp import web

from daemon.api.principal import PRINCIPAL, Principal
from daemon.creator import Idempotency
from daemon.errors import FieldError, InvalidInput, NotFound
from daemon.views import JobFilter

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_KEY = re.compile(r'[\x21\x23-\x7e]{1,255}|"[\x20\x21\x23-\x7e]{1,255}"')


def no_such(what: str) -> NotFound:
    """The one answer for unknown, erased and somebody else's."""
    return NotFound(f"There is no such {what}.")


def path_id(request: web.Request, what: str) -> UUID:
    """The id in the path. Errors: NotFound for anything but a canonical UUID."""
    text = request.match_info["id"]
    if not _UUID.fullmatch(text):
        raise no_such(what)
    return UUID(text)


def owner_of(principal: Principal, asked: str | None) -> str:
    """The user a new thing belongs to; "" is the service itself. Errors: InvalidInput for another's name."""
    if principal.user_id is None:
        return asked or ""
    if asked is not None and asked != principal.user_id:
        raise InvalidInput(
            "Only a service key may name another user.",
            code="acts_for_itself",
            errors=[FieldError("/user_id", "acts_for_itself", "must be left out")],
        )
    return principal.user_id


def confine(principal: Principal, wanted: JobFilter) -> JobFilter:
    """A list or stream within what the caller may read. Errors: NotFound when that leaves nothing."""
    if principal.user_id is not None:
        if wanted.user_id not in (None, principal.user_id):
            raise InvalidInput("Only a service key may name another user.", code="acts_for_itself")
        wanted = replace(wanted, user_id=principal.user_id)
    if principal.read_scope is None or principal.read_scope[0] == "user":
        return wanted
    subject, value = principal.read_scope
    if subject == "job" or wanted.project_id not in (None, UUID(value)):
        raise no_such("list")
    return replace(wanted, project_id=UUID(value))


def covers(
    principal: Principal,
    *,
    job_id: UUID | None = None,
    parent_id: UUID | None = None,
    project_id: UUID | None = None,
) -> bool:
    """Whether a read token's subject includes a thing that belongs to these. True for other credentials."""
    if principal.read_scope is None:
        return True
    subject, value = principal.read_scope
    if subject == "user":
        return True
    if subject == "project":
        return project_id is not None and project_id == UUID(value)
    return UUID(value) in (job_id, parent_id)


def read_idempotency_key(request: web.Request) -> str | None:
    """The Idempotency-Key, without quotes, or None. Errors: InvalidInput."""
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise InvalidInput(
            "The Idempotency-Key must be 1 to 255 printable ASCII characters, bare or in quotes.",
            code="idempotency_key_invalid",
        )
    return given[0].strip('"')


def keyed(request: web.Request, fingerprint: str) -> Idempotency | None:
    """The caller's idempotency key with the hash of what it stands for, or None."""
    key = read_idempotency_key(request)
    return None if key is None else Idempotency(request[PRINCIPAL].id, key, fingerprint)
