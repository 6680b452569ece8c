"""GET /v1/usage and POST /v1/estimate: what was used, and what a job would take."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from aiohttp import web
from pydantic import BeforeValidator, Field

from daemon.api import models
from daemon.api.answers import json_answer
from daemon.api.bodies import read_json, read_query, validate
from daemon.api.deps import ApiDeps
from daemon.api.principal import PRINCIPAL, Principal
from daemon.api.routing import Answer, Route
from daemon.errors import FieldError, Forbidden, InvalidInput
from daemon.estimates import estimate_usd
from daemon.providers.protocols import Providers
from daemon.usage import Group, Usage, UsageRow
from daemon.views import write_time

MAX_SPAN = timedelta(days=366)
FIRST_RUN_TIMES_S = {"image": (10.0, 60.0), "pack": (60.0, 240.0), "aplus": (40.0, 180.0), "ping": (0.1, 1.0)}
"""p50 and p95 of a kind that never ran here, seconds."""

_COLUMNS = (
    "day", "kind", "provider", "user_id", "jobs", "completed", "failed", "cancelled", "success_rate", "calls",
    "unknown_calls", "estimated_usd", "actual_usd", "p50_s", "p95_s",
)  # fmt: skip


def _split(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


class UsageQuery(models.Query):
    group_by: Annotated[tuple[Group, ...], BeforeValidator(_split), Field(min_length=1, max_length=4)] = (
        Field(("day",), description="Comma-separated. By provider, a job counts at each provider it called.")
    )
    since: models.QueryTime | None = Field(None, description="Default: 30 days before `until`.")
    until: models.QueryTime | None = Field(None, description="Default: now. At most 366 days after `since`.")
    user_id: models.UserId | None = Field(None, description="Only with a service key.")


class UsageGroup(models.Answer):
    """One group; what was not grouped by is null. success_rate: completed among completed and failed."""

    day: date | None
    kind: str | None
    provider: str | None
    user_id: str | None
    jobs: int
    completed: int
    failed: int
    cancelled: int
    success_rate: float | None
    calls: int
    unknown_calls: int
    estimated_usd: Decimal
    actual_usd: Decimal
    p50_s: float | None
    p95_s: float | None


class UsageAnswer(models.Answer):
    since: datetime
    until: datetime
    data: list[UsageGroup]


class Estimate(models.Answer):
    """cost_usd: an upper bound; run_s: middle and slow end of recent jobs; ahead: jobs pending or running now."""

    cost_usd: Decimal
    run_s: dict[str, float]
    ahead: int
    expected_finish_at: datetime


class UsageCalls:
    """The handlers of one application."""

    def __init__(self, deps: ApiDeps, providers: Providers) -> None:
        self._settings = deps.settings
        self._usage = Usage(deps.db)
        self._providers = providers

    async def read(self, request: web.Request) -> web.Response:
        wanted = read_query(request, UsageQuery)
        user_id = _confine(request[PRINCIPAL], wanted.user_id)
        until = wanted.until or datetime.now(UTC)
        since = wanted.since or until - timedelta(days=30)
        if not timedelta(0) < until - since <= MAX_SPAN:
            detail = "must be before `until`, by at most 366 days"
            raise InvalidInput(f"?/since: {detail}.", errors=[FieldError("?/since", "span", detail)])
        rows = await self._usage.read(since, until, group_by=frozenset(wanted.group_by), user_id=user_id)
        if _wants_csv(request):
            return web.Response(
                text=write_csv(rows), content_type="text/csv", charset="utf-8",
                headers={"Content-Disposition": 'attachment; filename="usage.csv"', "Vary": "Accept"},
            )  # fmt: skip
        body = {"since": write_time(since), "until": write_time(until), "data": [_row(row) for row in rows]}
        return json_answer(body, headers={"Vary": "Accept"})

    async def estimate(self, request: web.Request) -> web.Response:
        _, body = await read_json(request, self._settings.http)
        asked = validate(models.CREATE, body)
        if asked.kind == "ping":
            request[PRINCIPAL].require("admin")
        times = await self._usage.read_run_times(asked.kind)
        first = FIRST_RUN_TIMES_S[asked.kind]
        p50_s, p95_s = (times.p50_s, times.p95_s) if times.p50_s is not None else first
        wait_s = times.ahead / self._settings.workers.concurrency * (p50_s or 0)
        begins = max(asked.run_at or datetime.now(UTC), datetime.now(UTC))
        return json_answer(
            {
                "cost_usd": f"{estimate_usd(asked.input, self._providers):f}",
                "run_s": {"p50": round(p50_s or 0, 3), "p95": round(p95_s or 0, 3)},
                "ahead": times.ahead,
                "expected_finish_at": write_time(begins + timedelta(seconds=wait_s + (p50_s or 0))),
            }
        )


def write_csv(rows: list[UsageRow]) -> str:
    """Comma-separated with a header line (RFC 4180); texts that a spreadsheet would run are quoted by '."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        shown = _row(row)
        writer.writerow(["" if shown[name] is None else _harmless(shown[name]) for name in _COLUMNS])
    return out.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _row(row: UsageRow) -> dict[str, Any]:
    return {
        "day": None if row.day is None else row.day.isoformat(),
        "kind": row.kind,
        "provider": row.provider,
        "user_id": row.user_id or None,
        "jobs": row.jobs,
        "completed": row.completed,
        "failed": row.failed,
        "cancelled": row.cancelled,
        "success_rate": row.success_rate,
        "calls": row.calls,
        "unknown_calls": row.unknown_calls,
        "estimated_usd": f"{row.estimated_usd:f}",
        "actual_usd": f"{row.actual_usd:f}",
        "p50_s": _rounded(row.p50_s),
        "p95_s": _rounded(row.p95_s),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _wants_csv(request: web.Request) -> bool:
    """Whether the caller prefers CSV: it names it, and does not name JSON before it."""
    accepted = [
        part.partition(";")[0].strip().lower() for part in request.headers.get("Accept", "").split(",")
    ]
    return "text/csv" in accepted and "application/json" not in accepted[: accepted.index("text/csv")]


def _confine(principal: Principal, asked: str | None) -> str | None:
    """Whose usage. Errors: InvalidInput for another user's, Forbidden for a token of one job or project."""
    if principal.read_scope is not None and principal.read_scope[0] != "user":
        raise Forbidden("This read token does not cover usage.", hint="Use a token for `user:<id>`.")
    if principal.user_id is None:
        return asked
    if asked not in (None, principal.user_id):
        raise InvalidInput("Only a service key may name another user.", code="acts_for_itself")
    return principal.user_id


def routes(deps: ApiDeps, providers: Providers) -> list[Route]:
    """The routes of this topic."""
    calls = UsageCalls(deps, providers)
    return [
        Route(
            "GET", "/v1/usage", calls.read, "Jobs, money and run times", "usage", query=UsageQuery,
            description="With `Accept: text/csv` as a table.",
            answers={200: Answer("The groups, in order.", UsageAnswer, also=("text/csv",), headers={"Vary": "`Accept`"})},
            problems=(422,),
        ),
        Route(
            "POST", "/v1/estimate", calls.estimate, "What a job would cost and when it would end", "usage", "enqueue",
            description="Takes what POST /v1/jobs takes, validates it and creates nothing.", body=models.CreateOne,
            answers={200: Answer("The estimate.", Estimate)}, problems=(408, 413, 415, 422),
        ),
    ]  # fmt: skip
