"""``/ready`` and ``/v1/expert_skipping``: the readiness and the policy of a running server."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from leanmoe.errors import InputError, LeanMoEError
from leanmoe_server.auth import refuse_change
from leanmoe_server.schema import parse_change
from leanmoe_server.service import NOT_SET_UP, Service, service_of

MAX_BODY_BYTES = 4096


def error_response(status: int, message: str, kind: str) -> JSONResponse:
    """An error in the shape of OpenAI's API."""
    error = {"message": message, "type": kind, "param": None, "code": status}
    headers = {"Retry-After": "5"} if status == 503 else None
    return JSONResponse({"error": error}, status_code=status, headers=headers)


async def ready(request: Request) -> Response:
    """200 when every layer is wrapped and the policy is in force; else 503 with the reasons."""
    service = service_of(request.app)
    reasons = [NOT_SET_UP] if service is None else service.blocked
    status = 503 if reasons else 200
    return JSONResponse({"ready": not reasons, "reasons": reasons}, status_code=status)


async def show_policy(request: Request) -> Response:
    """The level in force, its betas and what it was measured to cost."""
    return JSONResponse(_service(request).control.describe())


async def change_policy(request: Request) -> Response:
    """Put another level in force on every worker, without a restart."""
    service = _service(request)
    client = request.client.host if request.client else None
    refusal = refuse_change(request.headers, client, service.settings)
    if refusal is not None:
        return error_response(refusal.status, refusal.reason, "permission_error")
    try:
        change = parse_change(await _bounded_body(request))
        return JSONResponse(await service.control.change(change))
    except InputError as error:
        return error_response(400, str(error), "invalid_request_error")
    except LeanMoEError as error:
        return error_response(503, str(error), "server_error")


async def _bounded_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise InputError(f"the body is longer than {MAX_BODY_BYTES} bytes; send one short key")
    return body


def _service(request: Request) -> Service:
    service = service_of(request.app)
    if service is None:
        raise RuntimeError(NOT_SET_UP)
    return service
