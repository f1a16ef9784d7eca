"""The ASGI layer behind the request's mark: who may come in, on every route, and how much at once.

vLLM's own check of ``--api-key`` guards a few prefixes; this one guards all routes that are not
declared public (``access.py``), WebSockets included, and is the only one.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leanmoe.errors import LeanMoEError
from leanmoe_server.access import Access, access_of, routed_path
from leanmoe_server.caller import Caller, keep_caller
from leanmoe_server.error_shapes import error_response, in_shape
from leanmoe_server.keys.keyring import Keyring, Presented
from leanmoe_server.keys.keys import ANONYMOUS, UNKNOWN, Key
from leanmoe_server.service import NOT_SET_UP, Service, service_of
from leanmoe_server.tenants.tenant_metrics import KEY_MISSING, KEY_WRONG
from leanmoe_server.tenants.tenant_usage import Excess
from leanmoe_server.tenants.tenants import SESSION

_NO_ADMIN = (
    "this needs an admin key and none is set: start the server with --admin-key-file FILE, "
    "LEANMOE_ADMIN_KEY, or an admin's entry in --keys FILE"
)
_SENT_AS = "as `Authorization: Bearer` or `X-LeanMoE-Admin-Key`"
_POLICY_VIOLATION = 1008


@dataclass(frozen=True)
class Refusal:
    """Why the door stays shut: an HTTP status, OpenAI's type of error, a sentence."""

    status: int
    kind: str
    reason: str


class Door:
    """Asks for the key that a route wants, keeps the key's limits, tells the rest who calls."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, _watching_keys(scope, send))
            return
        path = routed_path(scope)
        send = in_shape(path, send)
        if access_of(path, scope.get("method", "")) is Access.PUBLIC or _is_preflight(scope):
            await self.app(scope, receive, send)
            return
        service = service_of(scope["app"])
        if service is None:
            await _refuse(scope, receive, send, Refusal(503, "server_error", NOT_SET_UP))
            return
        await self._guarded(service, path, scope, receive, send)

    async def _guarded(
        self, service: Service, path: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        method, keyring = scope.get("method", ""), service.tenants.keyring
        presented = keyring.presented(Headers(scope=scope))
        key = opening(access_of(path, method), presented, keyring)
        if isinstance(key, Refusal):
            if key.status == 401:
                service.tenants.refused(UNKNOWN, KEY_WRONG if presented.anything else KEY_MISSING)
            await _refuse(scope, receive, send, key)
            return
        name = ANONYMOUS if key is None else key.name
        keep_caller(scope, Caller(name, key is not None and key.admin))
        # Reading costs nothing; a WebSocket has no method.
        if (key is not None and key.admin) or method in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        await self._counted(service, key, scope, receive, send)

    async def _counted(
        self, service: Service, key: Key | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        session = service.tenants.session(key)
        try:
            excess = await service.tenants.begin(session)
        except LeanMoEError as error:
            await _refuse(scope, receive, send, Refusal(503, "server_error", str(error)))
            return
        if excess is not None:
            await _refuse(scope, receive, send, excess)
            return
        # Each request runs in a task of its own, whose tasks see this too.
        token = SESSION.set(session)
        try:
            await self.app(scope, receive, send)
        finally:
            SESSION.reset(token)
            service.tenants.end(session)


def opening(access: Access, presented: Presented, keyring: Keyring) -> Key | Refusal | None:
    """The key that opens, ``None`` where none is wanted, or why it stays shut."""
    if access is Access.ADMIN:
        return _as_admin(presented, keyring)
    if access is Access.READER and presented.admin is not None:
        return presented.admin
    if presented.user is not None or keyring.admits_everyone:
        return presented.user
    if presented.admin is not None:
        reason = "this is an admin key, which changes the server; this route needs a user's key"
        return Refusal(403, "permission_error", reason)
    found = "this key is not known" if presented.anything else "no key came with the request"
    return Refusal(
        401, "authentication_error", f"{found}; send yours as `Authorization: Bearer` KEY"
    )


def _as_admin(presented: Presented, keyring: Keyring) -> Key | Refusal:
    if presented.admin is not None:
        return presented.admin
    shut = not keyring.admits_everyone and presented.user is None
    if not keyring.has_admins and not shut:
        return Refusal(403, "permission_error", _NO_ADMIN)
    if presented.user is not None:
        reason = f"a user's key does not open this; it needs the admin key, {_SENT_AS}"
        return Refusal(403, "permission_error", reason)
    return Refusal(401, "authentication_error", f"this needs the admin key, {_SENT_AS}")


def _is_preflight(scope: Scope) -> bool:
    """A browser's question before a request, which carries no key; CORS answers it by itself."""
    if scope.get("method") != "OPTIONS":
        return False
    headers = Headers(scope=scope)
    return "origin" in headers and "access-control-request-method" in headers


async def _refuse(scope: Scope, receive: Receive, send: Send, why: Refusal | Excess) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "refused"})
        return
    if isinstance(why, Excess):
        answer = error_response(429, why.reason, "rate_limit_error", retry_after=why.retry_after)
    else:
        answer = error_response(why.status, why.reason, why.kind)
    await answer(scope, receive, send)


def _watching_keys(scope: Scope, send: Send) -> Send:
    """Look at the key file once the server is up."""

    async def watch(message: Message) -> None:
        service = service_of(scope["app"])
        if message["type"] == "lifespan.startup.complete" and service is not None:
            service.tenants.keyring.watch()
        await send(message)

    return watch
