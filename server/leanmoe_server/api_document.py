"""Our additions to the document of the API (``/openapi.json``): keys, errors, bodies, headers.

vLLM's routes stay as vLLM describes them, but for what our layers add to each answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from leanmoe import __version__
from leanmoe.skip_rule import SkipRule
from leanmoe.wire import (
    ADMIN_HEADER,
    BUDGET_HEADER,
    CONTROL_PATH,
    HISTORY_PATH,
    LEVEL_HEADER,
    READY_PATH,
    REQUEST_KEY,
    ROLLBACK_PATH,
)
from leanmoe_server.access import Access, access_of
from leanmoe_server.request_level import ROUTES
from leanmoe_server.schema import REQUEST_SCHEMA
from leanmoe_server.service import service_of

Schema = dict[str, Any]
_USER, _USER_HEADER, _ADMIN, _ADMIN_HEADER = (
    "userKey",
    "userKeyHeader",
    "adminKey",
    "adminKeyHeader",
)
_METHODS = ("get", "put", "post", "delete", "patch", "options", "head", "trace")
_ERROR, _ANTHROPIC = "LeanMoEError", "LeanMoEMessagesError"
_WISH, _USAGE = "ExpertSkipping", "ExpertSkippingUsage"


def add_to_document(app: FastAPI) -> None:
    """From now on ``app.openapi()`` has our additions; it is made once, when it is first asked.

    That takes over a second, in which a thread of its own lets answers go on.
    """
    plain = app.openapi
    whole: list[Schema] = []

    def openapi() -> Schema:
        if not whole:
            whole.append(extended(plain(), wants_key=not _admits_everyone(app)))
        return whole[0]

    app.openapi = openapi  # type: ignore[method-assign]
    for route in app.routes:
        if isinstance(route, Route) and route.path == app.openapi_url:
            route.app = _made_aside(app, route.app)


def _made_aside(app: FastAPI, plain: ASGIApp) -> ASGIApp:
    """The document's route, which finds it made."""
    making = asyncio.Lock()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async with making:
            await asyncio.to_thread(app.openapi)
        await plain(scope, receive, send)

    return answer


def _admits_everyone(app: FastAPI) -> bool:
    service = service_of(app)
    return service is not None and service.tenants.keyring.admits_everyone


def extended(document: Schema, wants_key: bool) -> Schema:
    """``document``, changed in place; ``wants_key`` is false where users need no key."""
    document["info"].update(title="LeanMoE", version=__version__)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(_schemas())
    components["securitySchemes"] = _SECURITY_SCHEMES
    for path, method, operation in _operations(document):
        _add_security(path, method, operation, wants_key)
        _add_errors(path, method, operation)
        if path in ROUTES and method == "post":
            _add_level(operation, schemas)
    _describe_ours(document["paths"])
    return document


def _operations(document: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in _METHODS:
                yield path, method, operation


_SECURITY_SCHEMES: Schema = {
    _USER: {"type": "http", "scheme": "bearer", "description": "A user's key."},
    _USER_HEADER: {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    _ADMIN: {"type": "http", "scheme": "bearer", "description": "An administrator's key."},
    _ADMIN_HEADER: {"type": "apiKey", "in": "header", "name": ADMIN_HEADER},
}


def _add_security(path: str, method: str, operation: Schema, wants_key: bool) -> None:
    users: list[Schema] = [{_USER: []}, {_USER_HEADER: []}, *([] if wants_key else [{}])]
    admins: list[Schema] = [{_ADMIN: []}, {_ADMIN_HEADER: []}]
    wanted = {
        Access.PUBLIC: [],
        Access.USER: users,
        Access.READER: [*users, *admins],
        Access.ADMIN: admins,
    }
    operation["security"] = wanted[access_of(path, method.upper())]


def _error(path: str, why: str, retry: bool = False) -> Schema:
    name = _ANTHROPIC if _is_messages(path) else _ERROR
    told: Schema = {
        "description": why,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
    }
    if retry:
        told["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return told


def _is_messages(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def _add_errors(path: str, method: str, operation: Schema) -> None:
    responses = operation["responses"]
    # vLLM answers 400 to what FastAPI answers with 422.
    if responses.pop("422", None) is not None:
        responses.setdefault("400", _error(path, "The request cannot be used"))
    responses.pop("501", None)  # 404 here
    access = access_of(path, method.upper())
    if access is not Access.PUBLIC:
        responses["401"] = _error(path, "No key came with the request, or none that is known")
        responses["403"] = _error(path, "The key does not open this, or not this level")
    if access is Access.USER:
        responses["503"] = _error(path, "The server is not ready or is stopping", retry=True)
    if access is Access.USER and method == "post":
        responses["400"] = _error(path, "The request cannot be used")
        responses["413"] = _error(path, "The body is too long")
        responses["429"] = _error(path, "The key's limit is reached", retry=True)
    for status in [one for one in responses if one.isdigit() and int(one) >= 400]:
        if _is_messages(path) or "content" not in responses[status]:
            described = responses[status].get("description", "An error")
            responses[status] = _error(path, described, retry="headers" in responses[status])


def _add_level(operation: Schema, schemas: Schema) -> None:
    content = operation.setdefault("requestBody", {}).setdefault("content", {})
    body = content.setdefault("application/json", {}).setdefault("schema", {"type": "object"})
    request = schemas[body["$ref"].rpartition("/")[2]] if "$ref" in body else body
    wish = {"$ref": f"#/components/schemas/{_WISH}"}
    request.setdefault("properties", {})[REQUEST_KEY] = {"anyOf": [wish, {"type": "null"}]}
    answer = operation["responses"]["200"]
    answer["headers"] = {
        LEVEL_HEADER: {
            "description": "Skip level at which the answer begins",
            "schema": {"type": "number", "minimum": 0, "maximum": 1},
        },
        BUDGET_HEADER: {
            "description": "Budget on distinct experts that may have changed the answer",
            "schema": {"type": "integer", "minimum": 1},
        },
    }
    told = f"`usage.{REQUEST_KEY}` says what was skipped: see `{_USAGE}`."
    answer["description"] = f"{answer.get('description', 'The answer')}. {told}"


def _schemas() -> Schema:
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    error = {
        "message": text,
        "type": text,
        "param": {"anyOf": [text, {"type": "null"}]},
        "code": {"anyOf": [whole, text, {"type": "null"}]},
    }
    return {
        _ERROR: _object({"error": _object(error, ["message", "type"])}),
        _ANTHROPIC: _object(
            {"type": {"const": "error"}, "error": _object({"type": text, "message": text})}
        ),
        _WISH: {
            "description": "The skip level of this request alone; absent or null: the server's.",
            "anyOf": [{"const": "off", "description": "level 0, exact"}, REQUEST_SCHEMA],
        },
        _USAGE: _object(
            {"level": number, "from": number, "to": number, "routed": whole, "skipped": whole},
            ["level"],
        ),
    }


def _object(properties: Schema, required: list[str] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }


def _policy() -> Schema:
    number, flag = {"type": "number"}, {"type": "boolean"}
    maybe = {"anyOf": [number, {"type": "null"}]}
    shown = {
        "ready": flag,
        "level": maybe,
        "max_kld": maybe,
        "rule": {"enum": [*SkipRule, None]},
        "betas": {"type": "object", "additionalProperties": number},
        "phases": {"enum": ["all", "decode"]},
        "union_budget": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "union_mode": {"enum": ["vanish", "redirect", None]},
        "max_level": number,
        "request_levels": flag,
        "version": {"type": "integer"},
        "has_curve": flag,
    }
    return _object(shown)


def _answer(schema: Schema, described: str) -> Schema:
    return {"description": described, "content": {"application/json": {"schema": schema}}}


def _describe_ours(paths: Schema) -> None:
    """The answers of our own routes."""
    readiness = _object(
        {"ready": {"type": "boolean"}, "reasons": {"type": "array", "items": {"type": "string"}}}
    )
    ready = paths[READY_PATH]["get"]["responses"]
    ready["200"] = _answer(readiness, "Every layer skips and one policy is in force")
    ready["503"] = _answer(readiness, "Requests are refused, for these reasons")
    policy = _answer(_policy(), "The policy in force")
    paths[CONTROL_PATH]["get"]["responses"]["200"] = policy
    changes = {"type": "array", "items": {"type": "object"}}
    history = _object({"changes": changes, "total": {"type": "integer"}})
    paths[HISTORY_PATH]["get"]["responses"]["200"] = _answer(history, "Changes, the newest first")
    paths[HISTORY_PATH]["get"]["parameters"] = [
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1}}
    ]
    paths[HISTORY_PATH]["get"]["responses"]["400"] = _error(HISTORY_PATH, "The limit is no number")
    for operation in (paths[CONTROL_PATH]["put"], paths[ROLLBACK_PATH]["post"]):
        responses = operation["responses"]
        responses["200"] = policy
        responses["400"] = _error(CONTROL_PATH, "The body cannot be used")
        responses["413"] = _error(CONTROL_PATH, "The body is too long")
        responses["503"] = _error(CONTROL_PATH, "The change did not reach every worker", retry=True)
    paths[ROLLBACK_PATH]["post"]["responses"]["409"] = _error(
        CONTROL_PATH, "Another version is in force"
    )
