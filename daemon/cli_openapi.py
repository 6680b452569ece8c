"""The command `listingd openapi`: the API's document, without a server and without a database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli_calls import print_json
from daemon.cli_options import config_option, read_settings, run_async

if TYPE_CHECKING:
    from aiohttp import web

    from daemon.api.deps import Readiness
    from daemon.api.principal import Principal
    from daemon.settings import Settings


@click.command()
@config_option
def openapi(config: Path | None) -> None:
    """Print the OpenAPI 3.1 document of the HTTP API."""
    print_json(run_async(_make_document(read_settings(config))))


async def _make_document(settings: Settings) -> dict[str, Any]:
    """The document of the routes the daemon serves, built on parts that are never opened."""
    from daemon import http
    from daemon.api import openapi, system
    from daemon.api.admission import Admission
    from daemon.api.deps import ApiDeps
    from daemon.changes import Changes
    from daemon.creator import Creator
    from daemon.db import Database
    from daemon.durations import Durations
    from daemon.explain import Explainer
    from daemon.ledger import Ledger
    from daemon.providers.factory import build_providers
    from daemon.queue import Queue
    from daemon.scheduler import Scheduler
    from daemon.storage import open_storage
    from daemon.tokens import ServiceKeys
    from daemon.views import Views

    db = Database(settings, dsn="")
    providers = build_providers(settings)
    queue = Queue(db)
    deps = ApiDeps(
        settings=settings, db=db, queue=queue, creator=Creator(queue), views=Views(db), changes=Changes(),
        storage=await open_storage(settings.model_copy(update={"storage_url": "memory://"})),
        admission=Admission(db, Ledger(db, settings.budgets), providers, open_jobs_per_user=1),
        steer=_nothing,
        explainer=Explainer(db, Scheduler(()), Durations(), free_slots=lambda: 0),
        authenticator=_Nobody(), readiness=_is_not_ready, is_draining=lambda: True,
    )  # fmt: skip
    more = http.list_operator_routes(deps, ServiceKeys(db, first_key=""), providers)
    table = http.build_app(deps, more)[http.ROUTES]
    url = settings.http.public_url or "/"
    return openapi.make_document(table, version=system.read_version(), url=url)


async def _nothing() -> None:
    """Nothing runs that could be steered."""


class _Nobody:
    """Lets nobody in: nothing is served."""

    async def authenticate(self, _: web.Request) -> Principal:
        from daemon.errors import Unauthenticated

        raise Unauthenticated("Nothing is served.")


async def _is_not_ready() -> Readiness:
    from daemon.api.deps import Readiness

    return Readiness(ready=False, components={})
