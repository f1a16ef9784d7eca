"""The ASGI layer behind the door: no inference before the model skips, none while stopping.

Installed through vLLM's ``--middleware``, whose failure to import stops the start.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leanmoe.wire import (
    CONSOLE_PATH,
    CONTROL_PATH,
    HEALTH_PATH,
    HISTORY_PATH,
    METRICS_PATH,
    READY_PATH,
    ROLLBACK_PATH,
    STATUS_PATH,
)
from leanmoe_server.access import routed_path
from leanmoe_server.error_shapes import error_response
from leanmoe_server.intake import Arrival
from leanmoe_server.metrics import RefusedFor
from leanmoe_server.service import NOT_SET_UP, Service, service_of

# What may be asked of a server that must not infer: how it is, and how to mend it.
_ALWAYS_OPEN = frozenset(
    {
        *(READY_PATH, CONTROL_PATH, HISTORY_PATH, ROLLBACK_PATH, STATUS_PATH),
        *(METRICS_PATH, HEALTH_PATH, "/version", "/load"),
    }
)


class Admission:
    """Refuses with 503 until ready and while draining; counts what is in flight."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, _on_started(scope["app"], send))
        elif _is_always_open(routed_path(scope)):
            await self._open(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = service_of(scope["app"])
        if service is not None and routed_path(scope) == METRICS_PATH:
            await service.refresh_metrics()
        await self.app(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = service_of(scope["app"])
        if service is None or service.blocked:
            _count(service)
            await _refuse(service, scope, receive, send)
            return
        arrival = Arrival(service.intake, scope, receive, send)
        try:
            if arrival.refusal is None:
                await self.app(scope, arrival.receive, arrival.send)
        except Exception:
            if arrival.refusal is None:
                raise
        finally:
            await arrival.finish()


def _count(service: Service | None) -> None:
    if service is not None:
        stopping = service.drain.draining
        service.intake.count(RefusedFor.STOPPING if stopping else RefusedFor.NOT_READY)


def _is_always_open(path: str) -> bool:
    return path in _ALWAYS_OPEN or path == CONSOLE_PATH or path.startswith(f"{CONSOLE_PATH}/")


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
            service.start(lambda: _close(app))
        await send(message)

    return watch


def _close(app: Starlette) -> None:
    service = service_of(app)
    if service is not None:
        service.drain.stopping.set()
    app.state.server.should_exit = True
