"""The OpenAPI document: valid, complete, true."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.api.application import SERVICE_KEY, Api

# Not asked: "valid data is accepted": a schema cannot say that a cursor is one of ours, that bytes are a
# picture, or that exactly one of three fields is given. Streams do not end; test_events.py has them.
FUZZ = [
    "--exclude-checks", "positive_data_acceptance", "--exclude-path-regex", "events$", "--request-timeout", "20",
    "--header", f"Authorization: Bearer {SERVICE_KEY}", "--no-color",
]  # fmt: skip


async def test_document_is_valid(api: Api) -> None:
    _, document, _ = await api.call("GET", "/openapi.json")

    OpenAPIV31SpecValidator(document).validate()


async def test_every_route_is_in_the_document_and_the_reverse(api: Api) -> None:
    _, document, _ = await api.call("GET", "/openapi.json")

    registered = {
        (route.method, route.resource.canonical)
        for route in api.app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert registered == described
    ids = [call["operationId"] for methods in document["paths"].values() for call in methods.values()]
    assert len(set(ids)) == len(ids)


async def test_answers_are_as_the_document_says(api: Api, tmp_path: Path) -> None:
    """A few cases of every call, good and broken: no 5xx, nothing undescribed. bench/fuzz_api.py asks 10 000."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{api.url}/openapi.json",
        "--phases", "coverage,fuzzing", "--max-examples", "3", *FUZZ,
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    told, _ = await process.communicate()

    assert 0 == process.returncode, told.decode()[-6000:]


async def test_shown_jobs_have_every_described_field(api: Api) -> None:
    _, document, _ = await api.call("GET", "/openapi.json")
    job: dict[str, Any] = await api.create()

    assert set(document["components"]["schemas"]["Job"]["properties"]) == set(job)
