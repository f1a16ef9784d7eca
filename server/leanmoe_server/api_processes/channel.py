"""Questions and answers between two API processes of a server, over the socket they share.

Frames are JSON behind their length. Handlers begin in the order in which their frames came.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from leanmoe.errors import LeanMoEError

logger = logging.getLogger(__name__)
Handler = Callable[[Any], Awaitable[Any]]
_LENGTH_BYTES = 4


class ChannelError(LeanMoEError):
    """The other process is gone, or could not answer."""


class Channel:
    """One end. ``handlers`` answer what the other end asks or tells, by its kind."""

    def __init__(self, link: socket.socket, handlers: Mapping[str, Handler]) -> None:
        self._link, self._handlers = link, handlers
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self.closed = False

    async def open(self) -> None:
        """Speak and listen from now on."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._link)
        self._run(self._listen(reader))

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ask(self, kind: str, content: Any, seconds: float | None = None) -> Any:
        """What the other end answers; ``ChannelError`` where it does not, within ``seconds``."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"kind": kind, "content": content, "number": number})
            return await asyncio.wait_for(answer, seconds)
        except TimeoutError:
            raise ChannelError(f"no answer within {seconds:g} s") from None
        finally:
            self._waiting.pop(number, None)

    def tell(self, kind: str, content: Any) -> None:
        """Say something that wants no answer; lost where the other end is gone."""
        with suppress(ChannelError):
            self._send({"kind": kind, "content": content})

    def _send(self, frame: Mapping[str, Any]) -> None:
        if self.closed or self._writer is None:
            raise ChannelError("the other process is gone")
        data = json.dumps(frame).encode()
        self._writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
                self._take(json.loads(await reader.readexactly(length)))
        except (EOFError, OSError):
            pass
        finally:
            self._close()

    def _take(self, frame: dict[str, Any]) -> None:
        if "answers" not in frame:
            self._run(self._handle(frame))
            return
        waiting = self._waiting.get(frame["answers"])
        if waiting is None or waiting.done():
            return
        if "error" in frame:
            waiting.set_exception(ChannelError(frame["error"]))
        else:
            waiting.set_result(frame["content"])

    async def _handle(self, frame: dict[str, Any]) -> None:
        number = frame.get("number")
        answer: dict[str, Any] = {"answers": number}
        try:
            answer["content"] = await self._handlers[frame["kind"]](frame["content"])
        except Exception as error:
            logger.exception("what another API process said could not be done")
            answer["error"] = str(error) or type(error).__name__
        if number is not None:
            with suppress(ChannelError):
                self._send(answer)

    def _close(self) -> None:
        self.closed = True
        if self._writer is not None:
            self._writer.close()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ChannelError("the other process is gone"))
