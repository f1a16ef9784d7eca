"""Requests on their way in: how many run, how long a body may be, what all bodies hold together.

A request is in flight once it has arrived whole. What is still to come neither takes a place nor
delays a stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from leanmoe_server.drain import Drain
from leanmoe_server.error_shapes import error_response
from leanmoe_server.metrics import RefusedFor
from leanmoe_server.occupancy import Occupancy

# All requests under way together hold as much as this many of the longest body.
_LONGEST_AT_ONCE = 16
_GONE: Message = {"type": "http.disconnect"}


@dataclass(frozen=True)
class Refusal:
    """Why, an HTTP status, the sentence and OpenAI's word for the kind of error."""

    why: RefusedFor
    status: int
    message: str
    kind: str = "server_error"


class Intake:
    """The places and the bytes that requests take, and whether more may come."""

    def __init__(
        self,
        drain: Drain,
        max_requests: int,
        max_body_bytes: int,
        occupancy: Occupancy | None = None,
        count: Callable[[RefusedFor], None] = lambda _: None,
    ) -> None:
        self.count = count
        self.drain = drain
        self.occupancy = occupancy or Occupancy.alone()
        self.max_requests = max_requests
        self.max_body_bytes = max_body_bytes
        self.most_bytes = _LONGEST_AT_ONCE * max_body_bytes

    def enter(self) -> None:
        """A request arrived whole."""
        self.drain.enter()
        self.occupancy.enter()

    def leave(self) -> None:
        """The counterpart of ``enter``."""
        self.occupancy.leave()
        self.drain.leave()

    def no_place(self) -> Refusal | None:
        """Why one more request cannot be taken, if it cannot."""
        running = self.occupancy.requests
        if running < self.max_requests:
            return None
        return Refusal(
            RefusedFor.PLACES,
            503,
            f"{running} requests run or wait, the most this server takes "
            "(--max-waiting); try again later",
        )

    def too_long(self, size: int) -> Refusal | None:
        """Why a body of so many bytes cannot be taken, if it cannot."""
        if size <= self.max_body_bytes:
            return None
        return Refusal(
            RefusedFor.BODY,
            413,
            f"the body is longer than {self.max_body_bytes} bytes (--max-body-mib); send less",
            "invalid_request_error",
        )

    def hold(self, size: int) -> Refusal | None:
        """Take ``size`` more bytes, or say why they cannot be held."""
        self.occupancy.hold(size)
        if self.occupancy.held_bytes <= self.most_bytes:
            return None
        said = "the requests under way hold too much memory; try again later"
        return Refusal(RefusedFor.MEMORY, 503, said)

    def let_go(self, size: int) -> None:
        """The counterpart of ``hold``."""
        self.occupancy.hold(-size)

    async def next(self, receive: Receive) -> Message | None:
        """The next message of a request that has not arrived, or ``None`` once the server stops."""
        stop = asyncio.ensure_future(self.drain.stopping.wait())
        message = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((stop, message), return_when=asyncio.FIRST_COMPLETED)
            return None if stop.done() else message.result()
        finally:
            stop.cancel()
            message.cancel()


class Arrival:
    """One request: ``receive`` and ``send`` stand in for the connection's.

    Once refused, the app is told that its client is gone, and what it says then is not sent.
    """

    def __init__(self, intake: Intake, scope: Scope, receive: Receive, send: Send) -> None:
        self._intake = intake
        self._scope, self._receive, self._send = scope, receive, send
        self._size = 0
        self._whole = self._answered = False
        self.refusal = intake.no_place() if scope.get("method") == "POST" else None
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        announced = headers.get("content-length", "0")
        if announced.isdecimal():
            self.refusal = self.refusal or intake.too_long(int(announced))
        if announced == "0" and "transfer-encoding" not in headers:
            self._enter()

    def _enter(self) -> None:
        self._whole = True
        self._intake.enter()

    async def receive(self) -> Message:
        """The next message, as the connection's own."""
        if self._whole and self.refusal is None:
            return await self._receive()
        message = None if self.refusal else await self._intake.next(self._receive)
        if message is None:
            self.refusal = self.refusal or Refusal(
                RefusedFor.STOPPING, 503, "the server is stopping"
            )
        elif message["type"] == "http.request":
            self._take(message)
        return _GONE if self.refusal or message is None else message

    def _take(self, message: Message) -> None:
        size = len(message.get("body", b""))
        self._size += size
        self.refusal = self._intake.hold(size) or self._intake.too_long(self._size)
        if not self.refusal and not message.get("more_body"):
            self.refusal = self._intake.no_place()
            self._enter()

    async def send(self, message: Message) -> None:
        """Send what the app answers, unless it was refused before it did."""
        if self.refusal is None or self._answered:
            self._answered = True
            await self._send(message)

    async def finish(self) -> None:
        """Send the refusal, if there is one and nothing else was sent; give back what was held."""
        self._intake.let_go(self._size)
        if self.refusal is not None:
            self._intake.count(self.refusal.why)
        try:
            if self.refusal is not None and not self._answered:
                refusal = self.refusal
                answer = error_response(refusal.status, refusal.message, refusal.kind)
                await answer(self._scope, self._receive, self._send)
        finally:
            if self._whole:
                self._intake.leave()
