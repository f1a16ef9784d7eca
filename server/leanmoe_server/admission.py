"""The outermost ASGI layer: no inference before the model is known to skip, none while stopping.

Installed through vLLM's ``--middleware``, whose failure to import stops the start. It
stands outside vLLM's authentication, so it decides nothing by what a body says, and lets
past that authentication whom vLLM does not know: the administrator who changes the policy.
"""

from __future__ import annotations

from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leanmoe.wire import (
    CONTROL_PATH,
    HEALTH_PATH,
    HISTORY_PATH,
    METRICS_PATH,
    READY_PATH,
    ROLLBACK_PATH,
)
from leanmoe_server.auth import presents_admin_key
from leanmoe_server.routes import error_response
from leanmoe_server.service import NOT_SET_UP, Service, service_of

# What may be asked of a server that must not infer: how it is, and how to mend it.
_ALWAYS_OPEN = frozenset(
    {
        *(READY_PATH, CONTROL_PATH, HISTORY_PATH, ROLLBACK_PATH, METRICS_PATH, HEALTH_PATH),
        *("/version", "/load"),
    }
)
# What an administrator does with a key that vLLM does not know.
_ADMINISTERED = {("PUT", CONTROL_PATH), ("GET", HISTORY_PATH), ("POST", ROLLBACK_PATH)}
METRICS_MAX_AGE_SECONDS = 0.1
METRICS_WAIT_SECONDS = 2.0


class Admission:
    """Refuses with 503 until ready and while draining; counts what is in flight."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, _on_started(scope["app"], send))
        elif _path(scope) in _ALWAYS_OPEN:
            await self._open(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = service_of(scope["app"])
        if service is not None and _path(scope) == METRICS_PATH:
            await service.poller.refresh(METRICS_MAX_AGE_SECONDS, METRICS_WAIT_SECONDS)
        administers = service is not None and _is_admin(scope, service)
        app = _past_authentication(scope["app"]) if administers else self.app
        await app(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = service_of(scope["app"])
        if service is None or service.blocked:
            await _refuse(service, scope, receive, send)
            return
        service.drain.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            service.drain.leave()


def _path(scope: Scope) -> str:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path


def _is_admin(scope: Scope, service: Service) -> bool:
    administered = (scope.get("method"), _path(scope)) in _ADMINISTERED
    return administered and presents_admin_key(Headers(scope=scope), service.settings.admin_key)


def _past_authentication(app: Starlette) -> ASGIApp:
    """The app's own routes without vLLM's middleware, which knows user keys only."""
    # FastAPI's routes want the exit stack that its innermost middleware opens.
    return AsyncExitStackMiddleware(app.router)


async def _refuse(service: Service | None, scope: Scope, receive: Receive, send: Send) -> None:
    reasons = service.blocked if service else [NOT_SET_UP]
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1013, "reason": "not ready, see /ready"})
        return
    more = f" (and {len(reasons) - 1} more, see {READY_PATH})" if len(reasons) > 1 else ""
    message = f"the server does not answer now: {reasons[0]}{more}"
    await error_response(503, message, "server_error")(scope, receive, send)


def _on_started(app: Starlette, send: Send) -> Send:
    """Take over the stop signals once vLLM has installed its own handlers."""

    async def watch(message: Message) -> None:
        service = service_of(app)
        if message["type"] == "lifespan.startup.complete" and service is not None:
            service.drain.on_signals(lambda: _close(app))
            service.poller.start()
            service.watchdog.start(lambda: _close(app))
        await send(message)

    return watch


def _close(app: Starlette) -> None:
    app.state.server.should_exit = True
