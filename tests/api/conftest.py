"""Fixtures: the application of tests/api/application.py with default or other settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from daemon.db import Database
from daemon.settings import Http, Settings
from daemon.storage import Storage, open_storage
from tests.api.application import Api, running_api


@pytest.fixture
async def storage(settings: Settings) -> Storage:
    return await open_storage(settings)


@pytest.fixture
async def api(settings: Settings, db: Database, storage: Storage) -> AsyncIterator[Api]:
    """The application with default settings."""
    settings = settings.model_copy(update={"http": Http(port=0)})
    async with running_api(settings, db, storage) as started:
        yield started


@pytest.fixture
def configured(settings: Settings, db: Database, storage: Storage) -> Callable[..., Any]:
    """`async with configured(cors_origins=…) as api`: the application with other HTTP settings."""

    def start(**http: Any) -> Any:
        own = settings.model_copy(update={"http": Http(port=0).model_copy(update=http)})
        return running_api(own, db, storage)

    return start
