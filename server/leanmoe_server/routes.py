"""``/ready`` and ``/v1/expert_skipping``: the readiness and the policy of a running server.

And what was changed of it (``/history``), and back (``/rollback``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from leanmoe.errors import ConflictError, InputError, LeanMoEError
from leanmoe_server.audit.entry import Cause, Origin
from leanmoe_server.audit.trail import KEPT
from leanmoe_server.caller import caller_of
from leanmoe_server.error_shapes import TooLongError, error_response, input_error_response
from leanmoe_server.governor.loop import check_told
from leanmoe_server.schema import parse_change, parse_rollback
from leanmoe_server.service import NOT_SET_UP, OwnerService, service_of

MAX_BODY_BYTES = 4096
HISTORY_LIMIT = 100


async def ready(request: Request) -> Response:
    """200 when every layer is wrapped and the policy is in force; else 503 with the reasons."""
    service = service_of(request.app)
    reasons = [NOT_SET_UP] if service is None else service.blocked
    status = 503 if reasons else 200
    standing = {} if service is None else service.standing
    content = {"ready": not reasons, "reasons": reasons, **standing}
    return JSONResponse(content, status_code=status)


async def show_policy(request: Request) -> Response:
    """The level in force, its betas and what it was measured to cost."""
    return JSONResponse(_service(request).describe())


async def show_history(request: Request) -> Response:
    """What was changed since the start, by whom and why, the newest first."""
    service = _service(request)
    if not _administers(request):
        return error_response(403, "this needs the admin key", "permission_error")
    try:
        limit = _limit(request.query_params.get("limit"))
    except InputError as error:
        return input_error_response(error)
    trail = service.control.trail
    changes = [entry.model_dump(mode="json", by_alias=True) for entry in trail.latest(limit)]
    return JSONResponse({"changes": changes, "total": trail.recorded, "file": trail.on_disk})


def _limit(given: str | None) -> int:
    if given is None:
        return HISTORY_LIMIT
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= KEPT):
        raise InputError(f"limit is {given!r:.40}, expected a whole number from 1 to {KEPT}")
    return int(given)


async def change_policy(request: Request) -> Response:
    """Put another level in force on every worker, without a restart."""

    async def change(service: OwnerService, body: bytes) -> None:
        wanted = parse_change(body)
        check_told(service.governor, wanted.governor)
        origin = _origin(request, Cause.ADMIN, wanted.reason)
        if wanted.names_policy:
            await service.control.change(wanted, origin)
        if service.governor is not None and wanted.governor is not None:
            await service.control.set_governor(wanted.governor, origin)
            service.governor.told(wanted.governor)

    return await _changed(request, change)


async def roll_back_policy(request: Request) -> Response:
    """Put the policy of before the last change in force again."""

    async def back(service: OwnerService, body: bytes) -> None:
        reason, version = parse_rollback(body)
        await service.control.roll_back(_origin(request, Cause.ROLLBACK, reason), version)

    return await _changed(request, back)


async def _changed(
    request: Request, change: Callable[[OwnerService, bytes], Awaitable[None]]
) -> Response:
    service = _service(request)
    if not _administers(request):
        return error_response(403, "this needs the admin key", "permission_error")
    try:
        await change(service, await _bounded_body(request))
        return JSONResponse(service.describe())
    except ConflictError as error:
        return error_response(409, str(error), "invalid_request_error")
    except InputError as error:
        return input_error_response(error)
    except LeanMoEError as error:
        return error_response(503, str(error), "server_error")


def _origin(request: Request, cause: Cause, reason: str | None) -> Origin:
    peer = request.client.host if request.client else "unix socket"
    caller = caller_of(request.scope)
    return Origin(cause, "nobody" if caller is None else caller.name, peer, reason)


def _administers(request: Request) -> bool:
    """The door let an administrator in; without a door nobody is one."""
    caller = caller_of(request.scope)
    return caller is not None and caller.admin


async def _bounded_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLongError(f"the body is longer than {MAX_BODY_BYTES} bytes; send less")
    return body


def _service(request: Request) -> OwnerService:
    service = service_of(request.app)
    if not isinstance(service, OwnerService):
        raise RuntimeError(NOT_SET_UP)
    return service
