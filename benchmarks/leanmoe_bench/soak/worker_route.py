"""A route to the recounter's methods, installed by ``--middleware`` where nobody else listens."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = "/soak/"
_METHODS = frozenset({"leanmoe_recount_start", "leanmoe_recount"})


class WorkerRoute:
    """Answers ``POST /soak/METHOD`` with what each worker returned; all else passes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = str(scope.get("path", "")).removeprefix(FOLDER)
        if scope["type"] != "http" or scope["method"] != "POST" or method not in _METHODS:
            await self.app(scope, receive, send)
            return
        answers = await scope["app"].state.engine_client.collective_rpc(method)
        await JSONResponse({"results": answers})(scope, receive, send)
