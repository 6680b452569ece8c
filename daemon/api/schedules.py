"""Schedules over HTTP: jobs that the clock enqueues. Scope `admin` throughout."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from aiohttp import web
from pydantic import Field, JsonValue, StringConstraints, TypeAdapter

from daemon.api import models
from daemon.api.access import no_such
from daemon.api.answers import json_answer
from daemon.api.bodies import read_json, read_query, validate
from daemon.api.deps import ApiDeps
from daemon.api.routing import Answer, Route
from daemon.schedules import Missed, Overlap, Schedule, Schedules, find_fires
from daemon.views import write_time

UPCOMING = 3
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class SetSchedule(models.Body):
    """What to enqueue, and when. The job's fields are those of POST /v1/jobs."""

    kind: models.Kind
    input: dict[str, JsonValue] = Field(description="As POST /v1/jobs takes it for this kind.")
    user_id: models.UserId | None = None
    project_id: UUID | None = None
    priority: int = Field(0, ge=-100, le=100)
    max_attempts: int | None = Field(None, ge=1, le=10)
    cron: Annotated[str, StringConstraints(max_length=200)] = Field(
        description="Five fields: minute hour day month weekday."
    )
    time_zone: Annotated[str, StringConstraints(max_length=60)] = Field("UTC", description="IANA name.")
    missed: Missed = Field(
        "once",
        description="Times at which no daemon ran: none is made up for, one job for all, or one each (100 at most).",
    )
    overlap: Overlap = Field("allow", description="skip: not while the last job is open.")
    enabled: bool = True


class ScheduleAnswer(models.Answer):
    """upcoming: the next times, in the schedule's zone."""

    name: str
    kind: str
    input: dict[str, Any]
    user_id: str | None
    project_id: UUID | None
    priority: int
    max_attempts: int
    cron: str
    time_zone: str
    missed: Missed
    overlap: Overlap
    enabled: bool
    next_at: datetime | None
    last_at: datetime | None
    last_job_id: UUID | None
    upcoming: list[datetime]


class ScheduleList(models.Answer):
    data: list[ScheduleAnswer]


_SET_SCHEDULE: TypeAdapter[SetSchedule] = TypeAdapter(SetSchedule)


class ScheduleCalls:
    """The handlers of one application."""

    def __init__(self, deps: ApiDeps) -> None:
        self._http = deps.settings.http
        self._max_attempts = deps.settings.retry.max_attempts
        self._schedules = Schedules(deps.db)

    async def list_all(self, request: web.Request) -> web.Response:
        read_query(request, models.NoQuery)
        return json_answer({"data": [_show(schedule) for schedule in await self._schedules.list_all()]})

    async def read(self, request: web.Request) -> web.Response:
        return await self._answer(_name(request))

    async def set(self, request: web.Request) -> web.Response:
        name = _name(request)
        document, body = await read_json(request, self._http)
        asked = validate(_SET_SCHEDULE, body)
        job = {key: document[key] for key in ("kind", "input", "user_id", "project_id") if key in document}
        # What POST /v1/jobs would refuse is refused now, not at three in the morning.
        validate(models.CREATE, json.dumps(job).encode())
        await self._schedules.set(
            Schedule(
                name=name, kind=asked.kind, input=document["input"], cron=asked.cron, time_zone=asked.time_zone,
                user_id=asked.user_id or "", project_id=asked.project_id, priority=asked.priority,
                max_attempts=asked.max_attempts or self._max_attempts, missed=asked.missed, overlap=asked.overlap,
                is_enabled=asked.enabled,
            ),
            datetime.now(UTC),
        )  # fmt: skip
        return await self._answer(name)

    async def remove(self, request: web.Request) -> web.Response:
        if not await self._schedules.remove(_name(request)):
            raise no_such("schedule")
        return web.Response(status=204)

    async def _answer(self, name: str) -> web.Response:
        found = await self._schedules.list_all(name)
        if not found:
            raise no_such("schedule")
        return json_answer(_show(found[0]))


def _name(request: web.Request) -> str:
    name = request.match_info["name"]
    if not _NAME.fullmatch(name):
        raise no_such("schedule")
    return name


def _show(schedule: Schedule) -> dict[str, Any]:
    upcoming: list[datetime] = []
    if schedule.is_enabled and schedule.next_at is not None:
        upcoming = find_fires(schedule.cron, schedule.time_zone, datetime.now(UTC), UPCOMING)
    return {
        "name": schedule.name,
        "kind": schedule.kind,
        "input": schedule.input,
        "user_id": schedule.user_id or None,
        "project_id": None if schedule.project_id is None else str(schedule.project_id),
        "priority": schedule.priority,
        "max_attempts": schedule.max_attempts,
        "cron": schedule.cron,
        "time_zone": schedule.time_zone,
        "missed": schedule.missed,
        "overlap": schedule.overlap,
        "enabled": schedule.is_enabled,
        "next_at": None if schedule.next_at is None else write_time(schedule.next_at),
        "last_at": None if schedule.last_at is None else write_time(schedule.last_at),
        "last_job_id": None if schedule.last_job_id is None else str(schedule.last_job_id),
        "upcoming": [at.isoformat() for at in upcoming],
    }


def routes(deps: ApiDeps) -> list[Route]:
    """The routes of this topic."""
    calls = ScheduleCalls(deps)
    topic, scope = "admin", "admin"
    one = Answer("The schedule.", ScheduleAnswer)
    return [
        Route("GET", "/v1/admin/schedules", calls.list_all, "List the schedules", topic, scope, query=models.NoQuery,
              answers={200: Answer("By name.", ScheduleList)}, problems=(422,)),
        Route("GET", "/v1/admin/schedules/{name}", calls.read, "Read a schedule", topic, scope, answers={200: one},
              problems=(404,)),
        Route("PUT", "/v1/admin/schedules/{name}", calls.set, "Make or change a schedule", topic, scope,
              description="Its name is 1 to 63 of a-z, 0-9, `.`, `_`, `-`. Times follow the zone's clock: one that is "
              "skipped in spring comes right after the gap, one that comes twice in autumn counts once.",
              body=SetSchedule, answers={200: one}, problems=(404, 408, 413, 415, 422)),
        Route("DELETE", "/v1/admin/schedules/{name}", calls.remove, "Remove a schedule", topic, scope,
              answers={204: Answer("It is gone; its jobs stay.")}, problems=(404,)),
    ]  # fmt: skip
