"""Server-sent events out of lines of bytes, as OpenAI's API sends them; free of gevent."""

from __future__ import annotations

DONE = b"[DONE]"


class SSEParser:
    """Feed it lines; an event is complete with the empty line that follows it."""

    def __init__(self) -> None:
        self._data: list[bytes] = []

    def line(self, line: bytes) -> bytes | None:
        """The data of the event that ``line`` ends, if it ends one; comments are left out."""
        if line.startswith(b"data:"):
            value = line[5:].rstrip(b"\r\n")
            self._data.append(value.removeprefix(b" "))
        elif self._data and not line.rstrip(b"\r\n"):
            data = b"\n".join(self._data)
            self._data.clear()
            return data
        return None
