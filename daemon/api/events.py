"""Server-sent events: one job, or everything that a caller may see, as it happens.

    snapshot  first, always: all there is now, so that a gap before it does not matter
    asset     a file has appeared
    progress  how far it is; what lies between two of them is merged
    job       state, attempt or error has changed
    done      the end; the stream closes, and a reconnect from there gets 204

`id:` of a job's stream is the job's version, that of the common stream a time in milliseconds. A stream is a
view of rows, not a log: a slow reader gets fewer, newer events; one that reads nothing for 20 s is cut.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp_sse import EventSourceResponse, sse_response

from daemon import logs, metrics
from daemon.api import models
from daemon.api.access import confine, covers, no_such, path_id
from daemon.api.bodies import read_query
from daemon.api.deps import ApiDeps
from daemon.api.feed import MAX_FOLLOWED, Feed, Watch
from daemon.api.principal import PRINCIPAL
from daemon.api.routing import Answer, Route
from daemon.errors import Gone, InvalidInput, ListingdError, TooManyRequests
from daemon.views import FIELDS, Job, JobFilter, dump

PING_S = 15.0
SEND_TIMEOUT_S = 20.0
RETRY_MS = 2000
RECHECK_S = 25.0
"""A key's check is remembered for 30 s (tokens.py): together a revocation ends a stream within 60 s."""
USERS_PART = 10
"""One user may hold this part (1/10) of all streams, so that nobody keeps the others from theirs."""
_LIGHT = tuple(name for name in FIELDS if name not in ("input", "result", "metadata"))
_STEADY = ("state", "cancel_requested", "attempt", "run_at", "error", "result", "cost")
_SLACK = timedelta(seconds=60)  # clocks of several daemons differ

log = logs.get_logger()


class Events:
    """The handlers of one application."""

    def __init__(self, deps: ApiDeps, feed: Feed) -> None:
        self._deps = deps
        self._views = deps.views
        self._feed = feed
        self._open: Counter[str] = Counter()

    async def follow_job(self, request: web.Request) -> web.StreamResponse:
        principal = request[PRINCIPAL]
        job_id = path_id(request, "job")
        after = _position(request, read_query(request, models.EventsQuery).after)
        with self._feed.watch([job_id]) as watch:
            job = await self._views.read_job(job_id, principal.user_id)
            parent = None if job is None else json.loads(job.fields["parent_id"])
            if job is None or not covers(
                principal,
                job_id=job_id,
                parent_id=UUID(parent) if parent else None,
                project_id=job.project_id,
            ):
                raise no_such("job")
            if after is not None and after > job.version:
                raise Gone("The stream never reached this position.", code="position_gone")
            if after is not None and job.is_final and after >= job.version:
                return web.Response(status=204)
            watch.followed[job_id] = job.version
            async with self._stream(request) as stream:
                await stream.send(job.to_json(), id=str(job.version), event="snapshot", retry=RETRY_MS)
                if job.is_final:
                    await stream.send(_done(job), id=str(job.version), event="done")
                    return stream
                await self._write_changes(request, stream, watch, {job_id: job}, single=True)
            return stream

    async def follow_all(self, request: web.Request) -> web.StreamResponse:
        principal = request[PRINCIPAL]
        query = read_query(request, models.StreamQuery)
        subject = confine(
            principal,
            JobFilter(user_id=query.user_id, project_id=query.project_id, tag=query.tag, kind=query.kind),
        )
        since = self._read_since(_position(request, query.after))
        with self._feed.watch(subject=subject) as watch:
            ids, is_partial = await self._views.list_open(subject, since=since, limit=MAX_FOLLOWED)
            watch.is_partial |= len(ids) == MAX_FOLLOWED
            jobs = {job.id: job for job in await self._views.read_jobs(ids, subject.user_id)}
            for job in reversed(jobs.values()):  # the newest last, so that the oldest is let go first
                if job.is_final:
                    watch.note_end(job)
                else:
                    self._feed.follow(watch, job.id, job.version)
            async with self._stream(request) as stream:
                shown = ",".join(job.to_json(_LIGHT) for job in jobs.values())
                snapshot = f'{{"jobs":[{shown}],"is_partial":{dump(is_partial)}}}'
                await stream.send(snapshot, id=_now(), event="snapshot", retry=RETRY_MS)
                await self._write_changes(request, stream, watch, jobs, single=False)
            return stream

    async def _write_changes(
        self,
        request: web.Request,
        stream: EventSourceResponse,
        watch: Watch,
        known: dict[UUID, Job],
        *,
        single: bool,
    ) -> None:
        """Events of what moves, until the end of a single job, a cut, a revoked key or the process' stop."""
        check_at = time.monotonic() + RECHECK_S
        while not watch.closed and stream.is_connected():
            fresh = await watch.next(check_at - time.monotonic())
            if time.monotonic() >= check_at:
                if not await self._is_still_allowed(request):
                    return
                check_at = time.monotonic() + RECHECK_S
            for job_id, job in fresh.items():
                if job is None:
                    await stream.send(dump({"id": str(job_id), "state": "gone"}), event="done")
                    known.pop(job_id, None)
                    self._feed.drop(watch, job_id)
                    if single:
                        return
                    continue
                before = known.get(job_id)
                if before is not None and job.version <= before.version:
                    continue  # the feed read it before the snapshot was read
                position = str(job.version) if single else _now()
                events = list(_compare(before, job, light=not single))
                for index, (name, data) in enumerate(events):
                    last = index == len(events) - 1
                    # Only the last event of one view moves the position: a cut before it repeats the view.
                    await stream.send(data, id=position if last else None, event=name)
                known[job_id] = job
                if job.is_final:
                    if single:
                        return
                    watch.note_end(job)
                    known.pop(job_id)
                    self._feed.drop(watch, job_id)

    async def _is_still_allowed(self, request: web.Request) -> bool:
        try:
            await self._deps.authenticator.authenticate(request)
        except ListingdError as exc:
            # Postgres being away is no reason to cut: the key is asked for again in 25 s.
            return exc.code in ("unavailable", "too_many_refusals")
        return True

    def _stream(self, request: web.Request) -> _Counted:
        limit = self._deps.settings.http.max_streams
        principal = request[PRINCIPAL]
        whose = principal.user_id or principal.id  # a token about the service's own things is its own caller
        one_user = max(1, limit // USERS_PART)
        if principal.kind != "service" and self._open[whose] >= one_user:
            raise _too_many(f"This caller has {one_user} event streams open already.")
        if self._open.total() >= limit:
            raise _too_many(f"{limit} event streams are open already.")
        return _Counted(self, request, whose)

    def count(self, whose: str, change: int) -> None:
        """Note that a stream of this caller was opened or closed."""
        self._open[whose] += change
        if not self._open[whose]:
            del self._open[whose]
        metrics.STREAMS.set(self._open.total())

    def _read_since(self, after: int | None) -> datetime | None:
        if after is None:
            return None
        now = datetime.now(UTC)
        oldest = now - timedelta(days=self._deps.settings.retention.events_days)
        if after < oldest.timestamp() * 1000 or after > (now + _SLACK).timestamp() * 1000:
            raise Gone("The position is too old, or none that was given out.", code="position_gone")
        return datetime.fromtimestamp(after / 1000, UTC) - _SLACK


class _Stream(EventSourceResponse):
    """A stream that nobody keeps: aiohttp_sse itself says `no-cache`, whatever headers it is given."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        self.headers["Cache-Control"] = "no-store"
        return await super().prepare(request)


class _Counted:
    """`async with` around one event stream: counted, and cut when its reader does not read."""

    def __init__(self, events: Events, request: web.Request, whose: str) -> None:
        self._events = events
        self._whose = whose
        self._request = request
        self._context = sse_response(
            request,
            sep="\n",
            send_timeout=SEND_TIMEOUT_S,
            ping_interval=PING_S,
            response_cls=_Stream,
        )

    async def __aenter__(self) -> EventSourceResponse:
        self._events.count(self._whose, 1)
        try:
            return await self._context.__aenter__()
        except BaseException:
            self._events.count(self._whose, -1)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: object
    ) -> bool:
        self._events.count(self._whose, -1)
        await self._context.__aexit__(None, None, None)
        if isinstance(exc, TimeoutError):
            log.warning("http.stream_cut", path=self._request.path, why="the reader does not read", waiting=0)
            return True
        return isinstance(exc, ConnectionError)


def _too_many(message: str) -> TooManyRequests:
    return TooManyRequests(message, code="too_many_streams", data={"retry_after_s": 10})


def _position(request: web.Request, after: str | None) -> int | None:
    """Where the reader stands: the header of a reconnecting EventSource wins over the query."""
    given = request.headers.get("Last-Event-ID") or after
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 18):
        raise InvalidInput(
            "The position cannot be read.", code="invalid_input", hint="Send an `id:` of the stream."
        )
    return int(given)


def _compare(before: Job | None, job: Job, *, light: bool) -> Iterator[tuple[str, str]]:
    """(event, data) for what is new in a job; the last one is `done` for a job that has ended."""
    if before is None or before.fields["assets"] != job.fields["assets"]:
        known = set() if before is None else {asset["id"] for asset in json.loads(before.fields["assets"])}
        for asset in json.loads(job.fields["assets"]):
            if asset["id"] not in known:
                yield "asset", dump(asset)
    moved = before is None or any(before.fields[name] != job.fields[name] for name in _STEADY)
    if moved or job.is_final:
        yield "job", job.to_json(_LIGHT if light else None)
    elif before is not None and before.fields != job.fields:
        yield "progress", job.to_json(("id", "version", "state", "progress", "items"))
    if job.is_final:
        yield "done", _done(job)


def _done(job: Job) -> str:
    return job.to_json(("id", "version", "state", "finished_at", "error"))


def _now() -> str:
    return str(time.time_ns() // 1_000_000)


def routes(deps: ApiDeps, feed: Feed) -> list[Route]:
    """The routes of this topic."""
    events = Events(deps, feed)
    stream = Answer(
        "Events: snapshot, then job, progress, asset, done.",
        {"type": "string"},
        content_type="text/event-stream",
    )
    return [
        Route(
            "GET", "/v1/jobs/{id}/events", events.follow_job, "Follow a job", "events",
            description="Server-sent events. First `snapshot`, then `job`, `progress` and `asset` as they come, and "
            "`done`. `id:` is the job's version. A reconnect after the end gets 204.",
            query=models.EventsQuery, headers=models.LastEventHeaders, token_in_query=True,
            answers={200: stream, 204: Answer("The job has ended and you have seen it.")},
            problems=(404, 410, 422, 429),
        ),
        Route(
            "GET", "/v1/events", events.follow_all, "Follow all jobs", "events",
            description="One stream for everything that you may see, narrowed by project, tag or kind. `snapshot` "
            "holds the open jobs (`{jobs: [], is_partial}`, without input and result); after a reconnect those too that "
            "have ended meanwhile. `is_partial`: only the newest were looked at; read what else you hold for open. `id:` "
            "increases.",
            query=models.StreamQuery, headers=models.LastEventHeaders, token_in_query=True,
            answers={200: stream}, problems=(404, 410, 422, 429),
        ),
    ]  # fmt: skip
