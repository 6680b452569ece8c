"""Jobs over HTTP: create, batch, read, list, cancel, retry, erase."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any
from uuid import UUID

from aiohttp import web

from daemon.api import models
from daemon.api.access import confine, covers, keyed, no_such, owner_of, path_id
from daemon.api.admission import Asked
from daemon.api.answers import etag, json_answer, matches, read_wait_s
from daemon.api.bodies import read_json, read_query, validate
from daemon.api.deps import ApiDeps
from daemon.api.feed import Feed
from daemon.api.idempotency import REPLAYED
from daemon.api.principal import PRINCIPAL, Principal
from daemon.api.routing import Answer, Route
from daemon.creator import Created
from daemon.creator import Idempotency as JobKey
from daemon.errors import BudgetSpent, Conflict, InvalidInput, TooManyRequests
from daemon.jobs import NewJob
from daemon.views import Job, JobFilter, dump
from daemon.webhook_sending import check_url

_CREATES = models.CreateImage | models.CreatePack | models.CreateAplus | models.CreatePing
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class Jobs:
    """The handlers of one application."""

    def __init__(self, deps: ApiDeps, feed: Feed) -> None:
        self._creator = deps.creator
        self._queue = deps.queue
        self._db = deps.db
        self._admission = deps.admission
        self._views = deps.views
        self._changes = deps.changes
        self._feed = feed
        self._http = deps.settings.http
        self._max_attempts = deps.settings.retry.max_attempts
        self._allowed = [ip_network(net) for net in deps.settings.fetch.allowed_private_networks]

    async def create(self, request: web.Request) -> web.Response:
        document, body = await read_json(request, self._http)
        asked = validate(models.CREATE, body)
        principal = request[PRINCIPAL]
        job = self._new_job(principal, asked, document)
        key = keyed(request, _fingerprint(document)) if "Idempotency-Key" in request.headers else None
        await self._check_projects(principal, [job])
        await self._admit([(asked.input, job)], key)
        created = (await self._store([job], key))[0]
        job_id = str(created.id)
        headers = {"Location": f"/v1/jobs/{job_id}", "ETag": etag(1)}
        if created.replayed:
            headers["Idempotency-Replayed"] = "true"
        wait_s = read_wait_s(request)
        if not wait_s:
            written = self._views.write_created(job_id, job, await self._find_time(created))
            return json_answer(written, 201, headers)
        latest = await self._wait(created.id, 1, wait_s, until_final=True)
        headers |= {"ETag": etag(latest.version), "Preference-Applied": f"wait={wait_s}"}
        return json_answer(latest.to_json(), 200 if latest.is_final else 202, headers)

    async def create_batch(self, request: web.Request) -> web.Response:
        document, body = await read_json(request, self._http)
        batch = validate(models.CREATE_BATCH, body)
        principal = request[PRINCIPAL]
        jobs = []
        for index, (asked, raw) in enumerate(zip(batch.jobs, document["jobs"], strict=True)):
            try:
                jobs.append(self._new_job(principal, asked, raw))
            except InvalidInput as exc:
                raise InvalidInput(
                    f"/jobs/{index}: {exc.message}", code=exc.code,
                    errors=[replace(error, pointer=f"/jobs/{index}{error.pointer}") for error in exc.errors],
                ) from exc  # fmt: skip
        key = keyed(request, _fingerprint(document))
        await self._check_projects(principal, jobs)
        await self._admit([(asked.input, job) for asked, job in zip(batch.jobs, jobs, strict=True)], key)
        created = await self._store(jobs, key)
        written = [
            self._views.write_created(str(made.id), job, await self._find_time(made))
            for made, job in zip(created, jobs, strict=True)
        ]
        headers = {"Idempotency-Replayed": "true"} if created[0].replayed else None
        return json_answer('{"jobs":[' + ",".join(written) + "]}", 201, headers)

    async def read(self, request: web.Request) -> web.Response:
        principal = request[PRINCIPAL]
        wanted = (
            read_query(request, models.JobQuery) if request.query_string else models.JobQuery(fields=None)
        )
        job = await self._read_own(principal, path_id(request, "job"))
        wait_s = 0
        if matches(request, etag(job.version)):
            wait_s = read_wait_s(request)
            if wait_s and not job.is_final:
                job = await self._wait(job.id, job.version, wait_s, until_final=False)
        headers = {"ETag": etag(job.version)}
        if wait_s:
            headers["Preference-Applied"] = f"wait={wait_s}"
        if matches(request, etag(job.version)):
            return web.Response(status=304, headers=headers)
        return json_answer(job.to_json(wanted.fields), 200, headers)

    async def list_page(self, request: web.Request) -> web.Response:
        wanted = read_query(request, models.ListQuery)
        after = None if wanted.cursor is None else _read_cursor(wanted.cursor)
        page = await self._views.list_jobs(
            confine(
                request[PRINCIPAL],
                JobFilter(
                    user_id=wanted.user_id, states=wanted.state, kind=wanted.kind, project_id=wanted.project_id,
                    parent_id=wanted.parent_id, tag=wanted.tag, created_after=wanted.created_after,
                    created_before=wanted.created_before,
                ),
            ),
            limit=wanted.limit,
            after=after,
        )  # fmt: skip
        cursor = None if page.next_position is None else _write_cursor(*page.next_position)
        headers = {}
        if cursor is not None:
            following = request.rel_url.update_query(cursor=cursor)
            headers["Link"] = f'<{following}>; rel="next"'
        data = ",".join(job.to_json(wanted.fields) for job in page.jobs)
        return json_answer(f'{{"data":[{data}],"next_cursor":{dump(cursor)}}}', 200, headers)

    async def erase(self, request: web.Request) -> web.Response:
        job_id = path_id(request, "job")
        erasure = await self._views.erase_job(job_id, request[PRINCIPAL].user_id)
        if erasure is None:
            raise no_such("job")
        if not erasure.erased:
            if erasure.parent_id is not None:
                raise Conflict(
                    "The job is part of another one.", code="part_of_pack", hint="Erase its parent."
                )
            raise Conflict("The job is still active.", code="job_active", hint="Cancel it first, or wait.")
        self._changes.mark([job_id])
        return web.Response(status=204)

    async def cancel(self, request: web.Request) -> web.Response:
        principal = request[PRINCIPAL]
        job_id = path_id(request, "job")
        if await self._queue.cancel(job_id, principal.user_id) is None:
            raise no_such("job")
        self._changes.mark([job_id])
        job = await self._read_own(principal, job_id)
        return json_answer(job.to_json(), 200 if job.is_final else 202, {"ETag": etag(job.version)})

    async def retry(self, request: web.Request) -> web.Response:
        principal = request[PRINCIPAL]
        job_id = path_id(request, "job")
        move = await self._queue.retry(job_id, principal.user_id)
        if move is None:
            raise no_such("job")
        if not move.changed:
            raise Conflict(
                f"The job is {move.state}; only failed and cancelled jobs can be retried.",
                code="not_retryable",
            )
        self._changes.mark([job_id])
        job = await self._read_own(principal, job_id)
        return json_answer(job.to_json(), 202, {"ETag": etag(job.version)})

    def _new_job(self, principal: Principal, asked: _CREATES, document: dict[str, Any]) -> NewJob:
        """What the queue stores: the input as it was sent, now that it is known to be valid."""
        if asked.kind == "ping":
            principal.require("admin")
        return NewJob(
            kind=asked.kind,
            input=document["input"],
            user_id=owner_of(principal, asked.user_id),
            project_id=asked.project_id,
            priority=asked.priority,
            run_at=asked.run_at,
            expires_at=asked.expires_at,
            max_attempts=asked.max_attempts or self._max_attempts,
            metadata=document.get("metadata") or {},
            tags=asked.tags,
            webhook=None if asked.webhook is None else self._webhook(principal, asked.webhook),
        )

    def _webhook(self, principal: Principal, asked: models.Webhook) -> dict[str, Any]:
        """As the database's trigger reads it. owner: who named the URL signs with their job secret."""
        check_url(asked.url, self._allowed, pointer="/webhook/url")
        return asked.model_dump(mode="json") | {"owner": principal.user_id or ""}

    async def _check_projects(self, principal: Principal, jobs: Sequence[NewJob]) -> None:
        """A user's jobs count against a project's budget: only in one of their own, or in a new one.

        A service key is trusted to name the right one. Errors: NotFound.
        """
        projects = {job.project_id for job in jobs if job.project_id is not None}
        if not projects or principal.user_id is None:
            return
        if await self._db.fetch("find_foreign_projects", list(projects), principal.user_id):
            raise no_such("project")

    async def _admit(self, asked: Sequence[Asked], key: JobKey | None) -> None:
        """Errors: BudgetSpent, TooManyRequests; not for a request that was let in before: it is replayed."""
        try:
            await self._admission.check(asked)
        except (BudgetSpent, TooManyRequests):
            if key is None or not await self._db.fetch("read_idempotency_keys", [key.principal], [key.key]):
                raise

    async def _store(self, jobs: list[NewJob], key: JobKey | None) -> list[Created]:
        created = await self._creator.create(jobs, idempotency=key)
        if len(created) != len(jobs):
            # Only a key whose fingerprint agrees comes here, so that the bodies are the same.
            raise Conflict("The earlier batch is not complete.", code="conflict")
        self._changes.mark([made.id for made in created])
        return created

    async def _find_time(self, created: Created) -> datetime:
        """When the job was stored: a replay gives the same bytes as the first answer."""
        if created.created_at is not None:
            return created.created_at
        known = await self._views.read_created_at([created.id])
        # Erased since: the id begins with the time in ms (UUIDv7).
        return known.get(created.id) or datetime.fromtimestamp((created.id.int >> 80) / 1000, UTC)

    async def _read_own(self, principal: Principal, job_id: UUID) -> Job:
        job = await self._views.read_job(job_id, principal.user_id)
        if job is None or not covers(
            principal, job_id=job_id, parent_id=_parent(job), project_id=job.project_id
        ):
            raise no_such("job")
        return job

    async def _wait(self, job_id: UUID, version: int, wait_s: float, *, until_final: bool) -> Job:
        """The job once it has moved past the version given (or ended), or as it is after `wait_s` seconds."""
        end = asyncio.get_running_loop().time() + wait_s
        with self._feed.watch([job_id]) as watch:
            found = await self._views.read_jobs([job_id], None)
            if not found:
                raise no_such("job")
            latest = found[0]
            watch.followed[job_id] = latest.version
            while not (latest.is_final or (not until_final and latest.version > version)):
                left_s = end - asyncio.get_running_loop().time()
                if left_s <= 0 or watch.closed:
                    break
                fresh = await watch.next(left_s)
                if job_id in fresh:
                    moved = fresh[job_id]
                    if moved is None:
                        raise no_such("job")
                    if moved.version > latest.version:  # else the feed read it before we did
                        latest = moved
        return latest


def _parent(job: Job) -> UUID | None:
    text = job.fields["parent_id"]
    return None if text == "null" else UUID(text.strip('"'))


def _fingerprint(document: Any) -> str:
    """A hash of what was asked; the order of keys and white space play no part."""
    canonical = _CANONICAL.encode(document)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _write_cursor(created_at: datetime, job_id: UUID) -> str:
    return base64.urlsafe_b64encode(f"{created_at.isoformat()}|{job_id}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[datetime, UUID]:
    """Errors: InvalidInput cursor_invalid."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        at, _, job_id = text.partition("|")
        created_at = datetime.fromisoformat(at)
        if created_at.tzinfo is None or not 1900 < created_at.year < 3000:
            raise ValueError(at)
        return created_at, UUID(job_id)
    except (ValueError, binascii.Error) as exc:
        raise InvalidInput("The cursor cannot be read.", code="cursor_invalid") from exc


def routes(deps: ApiDeps, feed: Feed) -> list[Route]:
    """The routes of this topic."""
    jobs = Jobs(deps, feed)
    location = {"Location": "The job's path.", "ETag": "Weak tag of its version."} | REPLAYED
    waited = {"Preference-Applied": "The wait that was granted."}
    one = Answer("The job.", models.Job, headers={"ETag": "Weak tag of its version."})
    return [
        Route(
            "POST", "/v1/jobs", jobs.create, "Create a job", "jobs", "enqueue",
            description="With `Prefer: wait=N` the answer waits for the end, up to N seconds.",
            headers=models.CreateHeaders, body=models.CreateOne,
            answers={
                201: Answer("Stored; it will run.", models.Job, headers=location),
                200: Answer("Finished within the wait.", models.Job, headers=location | waited),
                202: Answer("Stored; not finished within the wait.", models.Job, headers=location | waited),
            },
            problems=(402, 404, 408, 409, 413, 415, 422), keyed="by_itself",
        ),
        Route(
            "POST", "/v1/jobs/batch", jobs.create_batch, "Create up to 1000 jobs at once", "jobs", "enqueue",
            description="One transaction: 422 names the index of a wrong job, and nothing is created.",
            headers=models.IdempotencyHeaders, body=models.CreateBatch,
            answers={201: Answer("All are stored, in order.", models.Batch, headers=REPLAYED)},
            problems=(402, 404, 408, 409, 413, 415, 422), keyed="by_itself",
        ),
        Route(
            "GET", "/v1/jobs", jobs.list_page, "List jobs, newest first", "jobs", query=models.ListQuery,
            answers={200: Answer("A page.", models.JobPage, headers={"Link": 'The next page: rel="next".'})},
            problems=(404, 422),
        ),
        Route(
            "GET", "/v1/jobs/{id}", jobs.read, "Read a job", "jobs", query=models.JobQuery,
            description="With `If-None-Match` and `Prefer: wait=N` it is a long poll: 304 after N seconds without "
            "a change.",
            headers=models.PollHeaders,
            answers={
                200: Answer("The job.", models.SomeOfJob, headers={"ETag": "Weak tag of its version."} | waited),
                304: Answer("Not changed.", headers={"ETag": "Weak tag of its version."} | waited),
            },
            problems=(404, 422),
        ),
        Route(
            "POST", "/v1/jobs/{id}/cancel", jobs.cancel, "Cancel a job and its children", "jobs", "enqueue",
            description="Idempotent. Finished items are kept.",
            answers={200: one, 202: Answer("A stop is under way.", models.Job, headers=one.headers)},
            problems=(404, 409, 422),
        ),
        Route(
            "POST", "/v1/jobs/{id}/retry", jobs.retry, "Run a failed or cancelled job again", "jobs", "enqueue",
            description="Finished steps and items are kept and not paid again.",
            answers={202: Answer("Pending again.", models.Job, headers=one.headers)},
            problems=(404, 409, 422),
        ),
        Route(
            "DELETE", "/v1/jobs/{id}", jobs.erase, "Erase a finished job", "jobs", "enqueue",
            description="Input, result and assets go; a tombstone with the cost stays.",
            answers={204: Answer("Erased.")},
            problems=(404, 409),
        ),
    ]  # fmt: skip
