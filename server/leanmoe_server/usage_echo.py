"""Adds the level that applied to the ``usage`` object of an answer, whole or streamed."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message

from leanmoe.wire import REQUEST_KEY

_DATA = b"data: "


class UsageEcho:
    """Takes a response's ASGI messages as they come and gives out what is to be sent.

    A whole answer is held until its length is known; a stream passes event by event.
    """

    def __init__(self, level: float) -> None:
        self._level = level
        self._whole = self._stream = False
        self._start: Message | None = None
        self._body = bytearray()

    def begin(self, status: int, headers: Headers) -> None:
        """Learn what kind of response follows; errors pass as they are."""
        kind = headers.get("content-type", "").partition(";")[0]
        plain = status == 200 and "content-encoding" not in headers
        self._whole = plain and kind == "application/json"
        self._stream = plain and kind == "text/event-stream"

    def passed(self, message: Message) -> list[Message]:
        """What to send on for ``message``, now."""
        if self._whole:
            return self._held(message)
        if self._stream and message["type"] == "http.response.body":
            return [{**message, "body": self._in_events(message.get("body", b""))}]
        return [message]

    def _held(self, message: Message) -> list[Message]:
        if message["type"] == "http.response.start":
            self._start = message
            return []
        self._body += message.get("body", b"")
        if message.get("more_body") or self._start is None:
            return []
        body = self._in_json(bytes(self._body))
        headers = MutableHeaders(raw=list(self._start["headers"]))
        headers["content-length"] = str(len(body))
        return [{**self._start, "headers": headers.raw}, {**message, "body": body}]

    def _in_events(self, chunk: bytes) -> bytes:
        if b'"usage"' not in chunk:
            return chunk
        lines = chunk.split(b"\n")
        return b"\n".join(
            _DATA + self._in_json(line.removeprefix(_DATA)) if line.startswith(_DATA) else line
            for line in lines
        )

    def _in_json(self, text: bytes) -> bytes:
        try:
            content = json.loads(text)
        except ValueError:
            return text  # half an event, or [DONE]
        usage = _usage_of(content)
        if usage is None:
            return text
        usage[REQUEST_KEY] = {"level": self._level}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _usage_of(content: Any) -> dict[str, Any] | None:
    """The usage object, at the top or in the response that a final event carries."""
    if not isinstance(content, dict):
        return None
    inner = content.get("response") or content.get("message")
    for holder in (content, inner):
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict):
            return usage
    return None
