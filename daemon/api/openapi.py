"""The OpenAPI 3.1 document, made from the table of routes and the models that validate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from daemon.api import models
from daemon.api.problems import CONTENT_TYPE, TITLES
from daemon.api.routing import Answer, Route

_REF = "#/components/schemas/{model}"
_EVERYWHERE = (400, 406, 408, 413, 417, 421, 503)
_GUARDED = (401, 403, 429)
_ABOUT = (
    "One product photo and a few facts become the listing: images and A+ content. Every call answers with "
    "`X-Request-Id`; errors are application/problem+json, and the page at their `type` says what to do."
)
_UUID = {"type": "string", "format": "uuid"}


def make_document(routes: Iterable[Route], *, version: str, url: str) -> dict[str, Any]:
    """The whole document. url: where the API is served ("/" when only clients know)."""
    table = list(routes)
    schemas, references = _collect(table)
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "listingd", "version": version, "description": _ABOUT,
                 "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": url}],
        "tags": [{"name": name} for name in dict.fromkeys(route.topic for route in table)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer",
                           "description": "A service key, a user's JWT or a minted read token."},
                "token": {"type": "apiKey", "in": "query", "name": "token",
                          "description": "A minted read token, on event streams alone."},
            },
        },
    }  # fmt: skip


_Key = tuple[type[BaseModel], JsonSchemaMode]


def _collect(table: list[Route]) -> tuple[dict[str, Any], dict[_Key, dict[str, Any]]]:
    wanted: dict[_Key, None] = {(models.Problem, "serialization"): None}
    for route in table:
        if isinstance(route.body, type):
            wanted[route.body, "validation"] = None
        for answer in route.answers.values():
            if isinstance(answer.model, type):
                wanted[answer.model, "serialization"] = None
    references, definitions = models_json_schema(list(wanted), ref_template=_REF)
    return definitions.get("$defs", {}), {key: references[key] for key in wanted}


def _operation(route: Route, references: Mapping[_Key, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "tags": [route.topic],
        "parameters": list(_parameters(route)),
        "responses": {},
        "security": [],
    }
    if route.description:
        operation["description"] = route.description
    if route.scope is not None:
        operation["security"] = [{"bearer": []}] + ([{"token": []}] if route.token_in_query else [])
        operation["x-scope"] = route.scope
    if route.body is not None:
        schema = references[route.body, "validation"] if isinstance(route.body, type) else dict(route.body)
        # A document without a field that must be there may be left out as a whole (bodies.read_optional_json).
        needed = not isinstance(route.body, type) or any(
            field.is_required() for field in route.body.model_fields.values()
        )
        operation["requestBody"] = {"required": needed, "content": {"application/json": {"schema": schema}}}
    elif route.uploads:
        binary = {"schema": {"type": "string", "format": "binary"}}
        form = {"schema": {"type": "object", "required": ["file"], "properties": {"file": binary["schema"]}}}
        operation["requestBody"] = {
            "required": True,
            "content": {kind: form if kind.startswith("multipart/") else binary for kind in route.uploads},
        }
    for status, answer in sorted(route.answers.items()):
        operation["responses"][str(status)] = _answer(answer, references)
    statuses = {*route.problems, *_EVERYWHERE, *(_GUARDED if route.scope is not None else ())}
    for status in sorted(statuses - set(route.answers)):
        operation["responses"][str(status)] = _problem(status, references)
    return operation


def _operation_id(route: Route) -> str:
    words = [
        word for word in re.split(r"[^a-z0-9]+", route.path.replace("{", "by_")) if word not in ("", "v1")
    ]
    return "_".join([route.method.lower(), *(words or ["start"])])


def _parameters(route: Route) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _UUID if name == "id" else {"type": "string"},
        }
    for place, model in (("query", route.query), ("header", route.headers)):
        if model is None:
            continue
        schema = model.model_json_schema(by_alias=True, ref_template=_REF)
        for name, field in schema.get("properties", {}).items():
            if name == "token" and route.token_in_query:
                continue  # it is a security scheme
            parameter = {
                "name": name,
                "in": place,
                "required": name in schema.get("required", ()),
                "schema": _without_null(field),
            }
            if "description" in field:
                parameter["description"] = field["description"]
            if parameter["schema"].get("type") == "array":
                parameter |= {"style": "form", "explode": False}
            yield parameter


def _without_null(field: Mapping[str, Any]) -> dict[str, Any]:
    """A query parameter is left out, never null."""
    schema = {key: value for key, value in field.items() if key not in ("title", "description")}
    if schema.get("default", 0) is None:
        del schema["default"]
    given = [part for part in schema.pop("anyOf", []) if part != {"type": "null"}]
    return schema | given[0] if len(given) == 1 else schema | ({"anyOf": given} if given else {})


def _answer(answer: Answer, references: Mapping[_Key, dict[str, Any]]) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    if answer.model is not None:
        model = answer.model
        schema = references[model, "serialization"] if isinstance(model, type) else dict(model)
        described["content"] = {answer.content_type: {"schema": schema}} | {
            kind: {"schema": {"type": "string"}} for kind in answer.also
        }
    return described


def _problem(status: int, references: Mapping[_Key, dict[str, Any]]) -> dict[str, Any]:
    schema = references[models.Problem, "serialization"]
    described: dict[str, Any] = {
        "description": TITLES.get(status, "An error") + ".",
        "content": {CONTENT_TYPE: {"schema": schema}},
    }
    if status in (429, 503):
        described["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
    return described
