"""Adds to the ``usage`` object of an answer, whole or streamed, what was skipped for it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message

from leanmoe.wire import REQUEST_KEY

_DATA = b"data: "
# Events that end a stream: whoever sends usage with every event sends these last.
_LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "message_delta"})

Statement = dict[str, Any]
# Given the id of a finished answer, or nothing while it is made.
State = Callable[[str | None], Awaitable[Statement | None]]


class UsageEcho:
    """Takes a response's ASGI messages as they come and gives out what is to be sent.

    ``state`` says what to add to ``usage``, or ``None`` to leave it as it is. A whole answer is
    held until its length is known; a stream passes event by event.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._whole = self._stream = False
        self._start: Message | None = None
        self._body = bytearray()
        self._id: str | None = None

    def begin(self, status: int, headers: Headers) -> None:
        """Learn what kind of response follows; errors pass as they are."""
        kind = headers.get("content-type", "").partition(";")[0]
        plain = status == 200 and "content-encoding" not in headers
        self._whole = plain and kind == "application/json"
        self._stream = plain and kind == "text/event-stream"

    async def passed(self, message: Message) -> list[Message]:
        """What to send on for ``message``, now."""
        if self._whole:
            return await self._held(message)
        if self._stream and message["type"] == "http.response.body":
            return [{**message, "body": await self._in_events(message.get("body", b""))}]
        return [message]

    async def _held(self, message: Message) -> list[Message]:
        if message["type"] == "http.response.start":
            self._start = message
            return []
        self._body += message.get("body", b"")
        if message.get("more_body") or self._start is None:
            return []
        body = await self._in_json(bytes(self._body))
        headers = MutableHeaders(raw=list(self._start["headers"]))
        headers["content-length"] = str(len(body))
        return [{**self._start, "headers": headers.raw}, {**message, "body": body}]

    async def _in_events(self, chunk: bytes) -> bytes:
        if b'"usage"' not in chunk:
            return chunk
        lines = [await self._in_line(line) for line in chunk.split(b"\n")]
        return b"\n".join(lines)

    async def _in_line(self, line: bytes) -> bytes:
        if not line.startswith(_DATA):
            return line
        return _DATA + await self._in_json(line.removeprefix(_DATA))

    async def _in_json(self, text: bytes) -> bytes:
        try:
            content = json.loads(text)
        except ValueError:
            return text  # half an event, or [DONE]
        usage = _usage_of(content)
        if usage is None:
            return text
        self._id = _id_of(content) or self._id
        stated = await self._state(self._id if self._whole or _is_last(content) else None)
        if stated is None:
            return text
        usage[REQUEST_KEY] = stated
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _usage_of(content: Any) -> dict[str, Any] | None:
    """The usage object, at the top or in the response that a final event carries."""
    if not isinstance(content, dict):
        return None
    for holder in (content, _inner(content)):
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict):
            return usage
    return None


def _inner(content: dict[str, Any]) -> Any:
    return content.get("response") or content.get("message")


def _id_of(content: dict[str, Any]) -> str | None:
    for holder in (content, _inner(content)):
        name = holder.get("id") if isinstance(holder, dict) else None
        if isinstance(name, str):
            return name
    return None


def _is_last(content: dict[str, Any]) -> bool:
    return content.get("choices") == [] or content.get("type") in _LAST_EVENTS
