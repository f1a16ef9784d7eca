"""Errors in the shape of OpenAI's API, and of Anthropic's where its clients ask."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import Message, Send

from leanmoe.errors import InputError

_ANTHROPIC_FOLDER = "/v1/messages"
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
RETRY_SECONDS = 5
# An error is a sentence; whatever is longer passes as it is.
_MAX_ERROR_BYTES = 1 << 20


class TooLongError(InputError):
    """A body is longer than its route takes."""


class ForbiddenError(InputError):
    """A key does not allow what its holder asks for."""


def input_error_response(error: InputError) -> JSONResponse:
    """400 for what a client gave and cannot be used, 413 for too much of it, 403 for too high."""
    if isinstance(error, ForbiddenError):
        return error_response(403, str(error), "permission_error")
    status = 413 if isinstance(error, TooLongError) else 400
    return error_response(status, str(error), "invalid_request_error")


def error_response(
    status: int, message: str, kind: str, retry_after: int | None = None
) -> JSONResponse:
    """An error in the shape of OpenAI's API; ``retry_after`` in seconds."""
    error = {"message": message, "type": kind, "param": None, "code": status}
    headers = {}
    if status == 503 or retry_after is not None:
        headers["Retry-After"] = str(RETRY_SECONDS if retry_after is None else retry_after)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def in_shape(path: str, send: Send) -> Send:
    """``send``, with every error in the shape of the API that ``path`` is of.

    Layers below ours have shapes of their own: ``{"detail": …}``, or a plain text.
    """
    held: list[Message] = []
    body = bytearray()

    async def shaped(message: Message) -> None:
        if message["type"] == "http.response.start" and _is_error(message):
            held.append(message)
        elif held and message["type"] == "http.response.body":
            body.extend(message.get("body", b""))
            if not message.get("more_body"):
                start = held.pop()
                for one in _in_its_shape(path, start, bytes(body)):
                    await send(one)
        else:
            await send(message)

    return shaped


def _is_error(message: Message) -> bool:
    kind = Headers(raw=list(message["headers"])).get("content-type", "")
    return message["status"] >= 400 and kind.startswith(("application/json", "text/plain"))


def _in_its_shape(path: str, start: Message, body: bytes) -> list[Message]:
    # vLLM says 501 where a model has no such route; clients try a 5xx again.
    status = 404 if start["status"] == 501 else start["status"]
    shaped = _shaped(path, status, body) if len(body) <= _MAX_ERROR_BYTES else None
    headers = MutableHeaders(raw=list(start["headers"]))
    if shaped is not None:
        body = json.dumps(shaped, ensure_ascii=False, separators=(",", ":")).encode()
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
    return [
        {**start, "status": status, "headers": headers.raw},
        {"type": "http.response.body", "body": body, "more_body": False},
    ]


def _shaped(path: str, status: int, body: bytes) -> dict[str, Any] | None:
    """The error in its shape; ``None`` where it is in it already, or is a statement of its own."""
    try:
        content: Any = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict) and not {"error", "detail"} & set(content):
        return None
    message, has_shape = _message_of(status, content)
    if path == _ANTHROPIC_FOLDER or path.startswith(f"{_ANTHROPIC_FOLDER}/"):
        other = "invalid_request_error" if status < 500 else "api_error"
        kind = _ANTHROPIC_TYPES.get(status, other)
        return {"type": "error", "error": {"type": kind, "message": message}}
    if has_shape:
        return None
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _message_of(status: int, content: Any) -> tuple[str, bool]:
    """What the error says, and whether it says so in OpenAI's shape."""
    error = content.get("error", content.get("detail")) if isinstance(content, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return error["message"], "error" in content and error.get("code") != 501
    # A text that nobody meant for clients may name what it should not.
    return error if isinstance(error, str) else HTTPStatus(status).phrase, False
