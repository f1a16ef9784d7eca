"""Errors in the shape of OpenAI's API, and of Anthropic's where its clients ask."""

from __future__ import annotations

import json
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


def shaped_as_anthropic(path: str, send: Send) -> Send:
    """``send``, with errors in Anthropic's shape where ``path`` is of its API."""
    if path != _ANTHROPIC_FOLDER and not path.startswith(f"{_ANTHROPIC_FOLDER}/"):
        return send
    held: list[Message] = []
    body = bytearray()

    async def shaped(message: Message) -> None:
        if message["type"] == "http.response.start" and _is_json_error(message):
            held.append(message)
        elif held and message["type"] == "http.response.body":
            body.extend(message.get("body", b""))
            if not message.get("more_body"):
                start = held.pop()
                for one in _in_its_shape(start, bytes(body)):
                    await send(one)
        else:
            await send(message)

    return shaped


def _is_json_error(message: Message) -> bool:
    kind = Headers(raw=list(message["headers"])).get("content-type", "")
    return message["status"] >= 400 and kind.startswith("application/json")


def _in_its_shape(start: Message, body: bytes) -> list[Message]:
    shaped = _anthropic(start["status"], body) if len(body) <= _MAX_ERROR_BYTES else body
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["content-length"] = str(len(shaped))
    return [
        {**start, "headers": headers.raw},
        {"type": "http.response.body", "body": shaped, "more_body": False},
    ]


def _anthropic(status: int, body: bytes) -> bytes:
    try:
        content: Any = json.loads(body)
    except ValueError:
        return body
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return body
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    shaped = {"type": "error", "error": {"type": kind, "message": error["message"]}}
    return json.dumps(shaped, ensure_ascii=False).encode()
