"""GET /v1/projects/{id}: a product's pictures, A+ contents and job counts."""

from __future__ import annotations

from aiohttp import web

from daemon.api import models
from daemon.api.access import covers, no_such, path_id
from daemon.api.answers import json_answer
from daemon.api.deps import ApiDeps
from daemon.api.principal import PRINCIPAL
from daemon.api.routing import Answer, Route


def routes(deps: ApiDeps) -> list[Route]:
    """The routes of this topic."""

    async def read(request: web.Request) -> web.Response:
        principal = request[PRINCIPAL]
        project_id = path_id(request, "project")
        if not covers(principal, project_id=project_id):
            raise no_such("project")
        project = await deps.views.read_project(project_id, principal.user_id)
        if project is None:
            raise no_such("project")
        return json_answer(project)

    return [
        Route(
            "GET", "/v1/projects/{id}", read, "Read a project", "projects",
            description="Its status, the newest 100 images and 20 A+ documents, and its jobs counted by state.",
            answers={200: Answer("The project.", models.Project)}, problems=(404,),
        )
    ]  # fmt: skip
