"""GET /v1/jobs/{id}/explain: why a job is not running yet, its place in the queue, and when it may be done."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from aiohttp import web
from pydantic import Field

from daemon.api import models
from daemon.api.access import covers, no_such, path_id
from daemon.api.answers import json_answer
from daemon.api.bodies import read_query
from daemon.api.deps import ApiDeps
from daemon.api.principal import PRINCIPAL
from daemon.api.routing import Answer, Route

ReasonCode = Literal[
    "not_due", "retry_backoff", "budget_spent", "lane_closed", "expired", "no_worker", "no_handler",
    "other_workers", "kind_paused", "user_paused", "kind_full", "no_free_slot", "other_users_turn", "starting",
    "running", "stopping", "waiting_for_items", "ended",
]  # fmt: skip


class LastError(models.Answer):
    code: str
    message: str | None


class ExplanationAnswer(models.Answer):
    """The first reason why a job is where it is."""

    id: UUID
    state: models.StateName
    code: ReasonCode
    message: str
    numbers: dict[str, float | str] = Field(description="What is behind the reason; its names depend on it.")
    queue_position: int | None = Field(description="Ready jobs before it.")
    starts_in_s: float | None = Field(description="Estimate, s; null when it cannot be foreseen.")
    finishes_in_s: float | None = Field(description="Estimate, s; null when it cannot be foreseen.")
    last_error: LastError | None = Field(description="How the last attempt ended.")


class Explain:
    """The handler of one application."""

    def __init__(self, deps: ApiDeps) -> None:
        self._explainer = deps.explainer

    async def read(self, request: web.Request) -> web.Response:
        read_query(request, models.NoQuery)
        principal = request[PRINCIPAL]
        job_id = path_id(request, "job")
        found = await self._explainer.explain(job_id, principal.user_id)
        if found is None or not covers(
            principal, job_id=job_id, parent_id=found.parent_id, project_id=found.project_id
        ):
            raise no_such("job")
        numbers = dict(found.reason.numbers)
        if principal.user_id is not None:
            numbers.pop("instance", None)  # our machines' names are no user's business
        last = None
        if found.last_code is not None:
            last = {"code": found.last_code, "message": found.last_message}
        return json_answer(
            {
                "id": str(found.id),
                "state": found.state,
                "code": found.reason.code,
                "message": found.reason.message,
                "numbers": numbers,
                "queue_position": found.queue_position,
                "starts_in_s": _rounded(found.starts_in_s),
                "finishes_in_s": _rounded(found.finishes_in_s),
                "last_error": last,
            }
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def routes(deps: ApiDeps) -> list[Route]:
    """The route of this topic."""
    return [
        Route(
            "GET", "/v1/jobs/{id}/explain", Explain(deps).read, "Say why a job is not running", "jobs",
            description="The first reason with its numbers, the place in the queue, and estimates from the run "
            "times measured lately.",
            query=models.NoQuery, answers={200: Answer("The reason.", ExplanationAnswer)}, problems=(404, 422),
        ),
    ]  # fmt: skip
