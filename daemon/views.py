"""What can be read: jobs with their items, files and cost; lists; projects; single files.

    views.sql --rows--> JSON fragments (one text a field) --> Job.to_json()

Documents that are jsonb in Postgres (input, result, metadata, checks) travel as text from the database to
the answer and are never decoded here: that is cheaper, and a row holding a number that Python cannot read
still has an answer. Whose rows they are is decided inside each statement by user_id, and once more by row level
security (Database.fetch_as); None is any user's.
Nothing here knows HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import asyncpg

from daemon.db import Database
from daemon.jobs import FINAL, NewJob, State, first_id
from daemon.json_text import write_json

FIELDS = (
    "id", "kind", "state", "user_id", "project_id", "parent_id", "slot", "priority", "attempt", "max_attempts",
    "created_at", "run_at", "started_at", "finished_at", "expires_at", "cancel_requested", "progress",
    "queue_position", "input", "result", "error", "cost", "items", "assets", "metadata", "tags", "version",
    "links",
)  # fmt: skip
"""The fields of a job, in the order in which they are written."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its readers see it. `fields`: name -> JSON text, in the order of FIELDS.

    version rises with every visible change of the job or of its children.
    """

    id: UUID
    kind: str
    state: State
    user_id: str
    project_id: UUID | None
    finished_at: datetime | None
    version: int
    item_ids: tuple[UUID, ...]
    fields: Mapping[str, str]

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    def to_json(self, names: Iterable[str] | None = None) -> str:
        """A JSON object of all fields, or of those named."""
        fields = self.fields
        return "{" + ",".join([f'"{name}":{fields[name]}' for name in names or fields]) + "}"


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and the position after the last one when there are more."""

    jobs: list[Job]
    next_position: tuple[datetime, UUID] | None


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What a list or a stream is about. user_id None: any user's."""

    user_id: str | None = None
    states: tuple[str, ...] | None = None
    kind: str | None = None
    project_id: UUID | None = None
    parent_id: UUID | None = None
    tag: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class File:
    """One file of a job. created_at: UTC."""

    id: UUID
    job_id: UUID
    parent_id: UUID | None
    project_id: UUID | None
    user_id: str
    slot: str | None
    role: str
    content_type: str
    size_bytes: int
    width_px: int | None
    height_px: int | None
    sha256: str
    file_name: str | None
    created_at: datetime
    kind: str
    sku: str | None


@dataclass(frozen=True, slots=True)
class Erasure:
    """What became of a wish to erase a job. parent_id is set when it is part of another one."""

    state: State
    parent_id: UUID | None
    erased: bool


class Views:
    """All reads of the API. Errors of every method: Unavailable.

    base_url: what links begin with ("" gives paths).
    """

    def __init__(self, db: Database, *, base_url: str = "") -> None:
        self._db = db
        self._base_url = base_url

    async def read_job(self, job_id: UUID, user_id: str | None) -> Job | None:
        """One job, or None for an unknown id and for somebody else's."""
        jobs = await self.read_jobs([job_id], user_id, position=True)
        return jobs[0] if jobs else None

    async def read_jobs(
        self, job_ids: Sequence[UUID], user_id: str | None, *, position: bool = False
    ) -> list[Job]:
        """Those of the jobs that exist and are the user's, in the order asked.

        position: also look up each pending job's place in the queue.
        """
        if not job_ids:
            return []
        rows = await self._db.fetch_as(user_id, "read_jobs", job_ids, user_id, position, self._base_url)
        return [self._job(row) for row in rows]

    async def read_versions(self, job_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The version of each of the jobs that exist."""
        rows = await self._db.fetch("read_versions", job_ids)
        return {row["id"]: row["version"] for row in rows}

    async def list_jobs(
        self, wanted: JobFilter, *, limit: int, after: tuple[datetime, UUID] | None = None
    ) -> Page:
        """A page of jobs, newest first, after a position that an earlier page gave."""
        at, last_id = after or (None, None)
        arguments: list[Any] = [
            wanted.user_id, limit + 1, wanted.states, wanted.kind, wanted.tag, wanted.created_after,
            wanted.created_before, last_id,
        ]  # fmt: skip
        if wanted.parent_id is not None:
            rows = await self._db.fetch_as(
                wanted.user_id, "list_child_jobs", *arguments, at, wanted.parent_id, wanted.project_id
            )
        elif wanted.project_id is not None:
            rows = await self._db.fetch_as(
                wanted.user_id, "list_project_jobs", *arguments, at, wanted.project_id
            )
        else:
            name = "list_all_jobs" if wanted.user_id is None else "list_user_jobs"
            rows = await self._db.fetch_as(wanted.user_id, name, *arguments)
        more = len(rows) > limit
        rows = rows[:limit]
        jobs = await self.read_jobs([row["id"] for row in rows], wanted.user_id)
        return Page(jobs, (rows[-1]["created_at"], rows[-1]["id"]) if more else None)

    async def list_open(
        self, wanted: JobFilter, *, since: datetime | None, limit: int
    ) -> tuple[list[UUID], bool]:
        """The newest jobs without parent that are open, or were created or ended after `since`; and whether there may
        be more of them.
        """
        name = "list_open_jobs" if wanted.user_id is None else "list_open_user_jobs"
        rows = await self._db.fetch_as(
            wanted.user_id, name, wanted.user_id, wanted.project_id, wanted.tag, wanted.kind, since, limit
        )
        *found, last = rows
        return [row["id"] for row in found], last["is_partial"] or len(found) == limit

    async def list_new(
        self, wanted: JobFilter, *, since: datetime, ends_of_old: bool, limit: int
    ) -> list[UUID]:
        """The newest jobs without parent that were created after `since`; with `ends_of_old` those that ended, too."""
        name = "list_new_jobs" if wanted.user_id is None else "list_new_user_jobs"
        # Ids are made a moment before their row is stored, on a clock that may differ by a little.
        lowest = first_id(0 if ends_of_old else since.timestamp() - 60)
        rows = await self._db.fetch_as(
            wanted.user_id, name, wanted.user_id, wanted.project_id, wanted.tag, wanted.kind, since, limit, lowest
        )  # fmt: skip
        return [row["id"] for row in rows]

    async def read_file(self, file_id: UUID, user_id: str | None) -> File | None:
        """One file of a job, or None."""
        rows = await self._db.fetch_as(user_id, "read_asset", file_id, user_id)
        return File(**rows[0]) if rows else None

    async def list_files(self, job_id: UUID, user_id: str | None) -> list[File]:
        """The finished files of a job and its children, the newest of each slot."""
        return [File(**row) for row in await self._db.fetch_as(user_id, "read_job_assets", job_id, user_id)]

    async def read_document(self, job_id: UUID, user_id: str | None) -> str | None:
        """The A+ document of a job as JSON text, or None."""
        rows = await self._db.fetch_as(user_id, "read_job_document", job_id, user_id)
        return rows[0]["document"] if rows else None

    async def find_owner(
        self, job_id: UUID, user_id: str | None
    ) -> tuple[str, UUID | None, UUID | None] | None:
        """(user_id, project_id, parent_id) of a job, or None."""
        rows = await self._db.fetch_as(user_id, "find_owner", job_id, user_id)
        return (rows[0]["user_id"], rows[0]["project_id"], rows[0]["parent_id"]) if rows else None

    async def read_created_at(self, job_ids: Sequence[UUID]) -> dict[UUID, datetime]:
        """When each of the jobs that still exist was created."""
        rows = await self._db.fetch("read_created_at", job_ids)
        return {row["id"]: row["created_at"] for row in rows}

    async def read_project(self, project_id: UUID, user_id: str | None) -> str | None:
        """A project with its pictures, A+ contents and job counts as a JSON object, or None."""
        rows = await self._db.fetch_as(user_id, "read_project", project_id, user_id)
        if not rows:
            return None
        row = rows[0]
        counts = json.loads(row["jobs"] or "{}")
        images = json.loads(row["images"] or "[]")
        for image in images:
            image["url"] = f"{self._base_url}/v1/assets/{image['id']}"
        status = "empty"
        if counts:
            open_jobs = sum(counts.get(s, 0) for s in ("pending", "processing", "waiting"))
            status = "working" if open_jobs else "ready" if counts.get("completed") else "failed"
        return dump({
            "id": str(row["id"]), "user_id": row["user_id"] or None, "name": row["name"], "status": status,
            "created_at": write_time(row["created_at"]), "jobs": {s.value: counts.get(s, 0) for s in State},
            "images": images, "aplus_contents": json.loads(row["aplus_contents"] or "[]"),
        })  # fmt: skip

    async def create_upload(
        self, upload_id: UUID, user_id: str, *, sha256: str, content_type: str, size_bytes: int,
        width_px: int, height_px: int,
    ) -> None:  # fmt: skip
        """Note an uploaded photo whose bytes are in storage."""
        await self._db.fetch(
            "create_upload", upload_id, user_id, sha256, content_type, size_bytes, width_px, height_px
        )

    async def erase_job(self, job_id: UUID, user_id: str | None) -> Erasure | None:
        """Erase a finished job with its children; None for an unknown id and for somebody else's."""
        row = await self._db.fetchrow("erase_job", job_id, user_id)
        return None if row is None else Erasure(State(row["state"]), row["parent_id"], row["erased"])

    async def check(self) -> None:
        """Nothing, or Unavailable when the database does not answer."""
        await self._db.fetchval("ping")

    def write_created(self, job_id: str, job: NewJob, created_at: datetime) -> str:
        """The JSON of a job as it was at the moment it was stored; needs no look at the database.

        The same fields as Job.to_json's; written in one piece, since every create pays for it.
        """
        return (
            f'{{"id":"{job_id}","kind":"{job.kind}","state":"pending",'
            f'"user_id":{dump(job.user_id) if job.user_id else "null"},"project_id":{_quote(job.project_id)},'
            f'"parent_id":null,"slot":null,"priority":{job.priority},"attempt":0,"max_attempts":{job.max_attempts},'
            f'"created_at":{_time(created_at)},"run_at":{_time(job.run_at)},"started_at":null,"finished_at":null,'
            f'"expires_at":{_time(job.expires_at)},"cancel_requested":false,"progress":null,"queue_position":null,'
            f'"input":{write_json(job.input)},"result":null,"error":null,'
            '"cost":{"estimated_usd":"0","actual_usd":"0","unknown_calls":0},"items":[],"assets":[],'
            f'"metadata":{write_json(job.metadata) if job.metadata else "{}"},'
            f'"tags":{dump(job.tags) if job.tags else "[]"},"version":1,"links":{self._links(job_id)}}}'
        )

    def _job(self, row: asyncpg.Record) -> Job:
        state = State(row["state"])
        item_ids = tuple(row["item_ids"] or ())
        fields = {
            "id": f'"{row["id"]}"',
            "kind": f'"{row["kind"]}"',
            "state": f'"{state}"',
            "user_id": dump(row["user_id"]) if row["user_id"] else "null",
            "project_id": _quote(row["project_id"]),
            "parent_id": _quote(row["parent_id"]),
            "slot": dump(row["slot"]),
            "priority": str(row["priority"]),
            "attempt": str(row["attempt"]),
            "max_attempts": str(row["max_attempts"]),
            "created_at": _time(row["created_at"]),
            "run_at": _time(row["run_at"]),
            "started_at": _time(row["started_at"]),
            "finished_at": _time(row["finished_at"]),
            "expires_at": _time(row["expires_at"]),
            "cancel_requested": "true" if row["cancel_requested"] else "false",
            "progress": _progress(row, len(item_ids)),
            "queue_position": "null" if row["position"] is None else str(row["position"]),
            "input": row["input"],
            "result": row["result"] or "null",
            "error": _error(row),
            "cost": f'{{"estimated_usd":"{row["estimated_usd"]}","actual_usd":"{row["actual_usd"]}",'
            f'"unknown_calls":{row["unknown_calls"]}}}',
            "items": row["items"] or "[]",
            "assets": self._assets(row["assets"]),
            "metadata": row["metadata"],
            "tags": row["tags"],
            "version": str(row["version"]),
            "links": self._links(str(row["id"])),
        }
        return Job(
            row["id"], row["kind"], state, row["user_id"], row["project_id"], row["finished_at"], row["version"],
            item_ids, fields,
        )  # fmt: skip

    def _assets(self, text: str | None) -> str:
        if text is None:
            return "[]"
        assets = json.loads(text)  # our own worker wrote the checks: nothing here that Python cannot read
        for asset in assets:
            asset["url"] = f"{self._base_url}/v1/assets/{asset['id']}"
        return dump(assets)

    def _links(self, job_id: str) -> str:
        own = f"{self._base_url}/v1/jobs/{job_id}"
        return f'{{"self":"{own}","events":"{own}/events","cancel":"{own}/cancel","retry":"{own}/retry"}}'


def dump(value: Any) -> str:
    """JSON text: compact, UTF-8, no NaN."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False)


def write_time(value: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    if value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    return value.isoformat(timespec="milliseconds")[:-6] + "Z"


@lru_cache(maxsize=1024)  # jobs that were stored together share their times
def _time(value: datetime | None) -> str:
    return "null" if value is None else f'"{write_time(value)}"'


def _quote(value: UUID | None) -> str:
    return "null" if value is None else f'"{value}"'


def _progress(row: asyncpg.Record, items: int) -> str:
    """The reported progress; that of a parent whose children run is how many of them have ended."""
    if row["state"] == State.WAITING:
        return f'{{"done":{row["items_ended"]},"total":{items},"stage":"items","message":""}}'
    return row["progress"] or "null"


def _error(row: asyncpg.Record) -> str:
    """The error object with the attempts that did not complete; null for a job that never failed or succeeded."""
    attempts = row["attempts"]
    if row["state"] == State.COMPLETED or (row["error"] is None and attempts is None):
        return "null"
    error = (
        row["error"] or '{"code": "attempt_failed", "message": "An earlier attempt failed; see attempts."}'
    )
    inside = error.strip()
    if not inside.startswith("{"):
        return "null"
    body = inside[1:-1].strip()
    return "{" + (body + "," if body else "") + f'"attempts":{attempts or "[]"}' + "}"
