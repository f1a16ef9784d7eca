"""Requests to control routes, from the process that took them to the one that owns the policy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from types import SimpleNamespace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from leanmoe_server.api_processes.channel import ChannelError
from leanmoe_server.api_processes.following import FollowerService
from leanmoe_server.api_processes.notices import ControlAnswer, ControlRequest
from leanmoe_server.caller import Caller, caller_of, keep_caller
from leanmoe_server.error_shapes import error_response
from leanmoe_server.service import service_of

Route = Callable[[Request], Awaitable[Response]]
# By method and path.
Routes = Mapping[tuple[str, str], Route]
# Past the longest body that a control route takes, the rest says nothing more.
_MOST_BYTES = 64 << 10


def by_owner(route: Route) -> Route:
    """``route``, answered by the process that owns the policy, whichever took the request."""

    @wraps(route)
    async def answered(request: Request) -> Response:
        service = service_of(request.app)
        if not isinstance(service, FollowerService):
            return await route(request)
        try:
            answer = await service.following.control(await _asked(request))
        except ChannelError as error:
            return error_response(503, str(error), "server_error")
        return Response(answer.body, answer.status, answer.headers)

    return answered


async def _asked(request: Request) -> ControlRequest:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            break
    caller = caller_of(request.scope)
    return ControlRequest(
        method=request.method,
        path=request.url.path,
        query=request.url.query,
        body=body.decode("latin-1"),
        caller=None if caller is None else caller.name,
        admin=caller is not None and caller.admin,
        peer=request.client.host if request.client else None,
    )


async def respond(state: Any, routes: Routes, asked: ControlRequest) -> ControlAnswer:
    """The answer of the route that ``asked`` names, of the app with this state."""
    route = routes[asked.method, asked.path]
    response = await route(_request(state, asked))
    kept = {
        name: value for name, value in response.headers.items() if name.lower() != "content-length"
    }
    body = bytes(response.body).decode()
    return ControlAnswer(status=response.status_code, headers=kept, body=body)


def _request(state: Any, asked: ControlRequest) -> Request:
    async def receive() -> dict[str, Any]:
        body = asked.body.encode("latin-1")
        return {"type": "http.request", "body": body, "more_body": False}

    scope: dict[str, Any] = {
        "type": "http",
        "method": asked.method,
        "path": asked.path,
        "query_string": asked.query.encode(),
        "headers": [],
        "client": None if asked.peer is None else (asked.peer, 0),
        "app": SimpleNamespace(state=state),
    }
    if asked.caller is not None:
        keep_caller(scope, Caller(asked.caller, asked.admin))
    return Request(scope, receive)
