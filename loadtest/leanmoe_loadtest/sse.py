"""Server-sent events out of a byte stream, as OpenAI's streaming API sends them."""

from __future__ import annotations

from collections.abc import Iterator

DONE = "[DONE]"


class SSEParser:
    """Feed it bytes as they come; it yields the data of each complete event."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The data of every event that ``chunk`` completes; comments are left out."""
        self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            yield from self._line(line.rstrip(b"\r").decode("utf-8", errors="replace"))

    def _line(self, line: str) -> Iterator[str]:
        if line:
            field, _, value = line.partition(":")
            if field == "data":
                self._data.append(value.removeprefix(" "))
        elif self._data:
            yield "\n".join(self._data)
            self._data = []
