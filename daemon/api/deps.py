"""What the routes are handed: everything below them, chosen by service.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from daemon.api.admission import Admission
from daemon.api.principal import Authenticator
from daemon.changes import Changes
from daemon.creator import Creator
from daemon.db import Database
from daemon.explain import Explainer
from daemon.queue import Queue
from daemon.settings import Settings
from daemon.storage import Storage
from daemon.views import Views


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether new work is taken. components: name -> "ok" or what is wrong."""

    ready: bool
    components: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ApiDeps:
    """steer: lets this process heed a pause or limit that was just stored; readiness: asked by /readyz; is_draining: True from the first moment of a stop on."""

    settings: Settings
    db: Database
    queue: Queue
    creator: Creator
    views: Views
    changes: Changes
    storage: Storage
    admission: Admission
    explainer: Explainer
    steer: Callable[[], Awaitable[None]]
    authenticator: Authenticator
    readiness: Callable[[], Awaitable[Readiness]]
    is_draining: Callable[[], bool]
