"""One client's connection, bounded in time and memory where uvicorn's is not.

A request that does not arrive, an answer that is not read and a connection that does not close hold
a connection for ``client_seconds`` and no longer.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from leanmoe_server.metrics import RefusedFor
from leanmoe_server.service import service_of
from leanmoe_server.settings import CLIENT_SECONDS, KEEP_ALIVE_SECONDS

# What is no body: request line, headers, trailers, and what separates chunks.
HEAD_BYTES = 64 << 10
_BESIDE_A_BODY_BYTE = 8
_FLUSH_SECONDS = 5.0


def _raw_error(status: int, message: str) -> bytes:
    kind = "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": status}
    body = json.dumps({"error": error}).encode()
    head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
    return STATUS_LINE[status] + head.encode() + b"\r\n\r\n" + body


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection with a limit on how long a client may take, both ways."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        service = service_of(self.config.app)
        settings = None if service is None else service.settings
        self._seconds = CLIENT_SECONDS if settings is None else settings.client_seconds
        idle = KEEP_ALIVE_SECONDS if settings is None else settings.keep_alive_seconds
        self.timeout_keep_alive = math.ceil(idle)
        self._arriving: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None
        # Of the message that arrives: bytes of its body, and beside it.
        self._body = self._beside = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._arriving, self._unread, self._closing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._arriving is None and (self.cycle is None or self.cycle.response_complete):
            self._expect()
        self._beside += len(data)
        super().data_received(data)
        if self._arriving and self._beside > HEAD_BYTES + _BESIDE_A_BODY_BYTE * self._body:
            self._refuse(
                RefusedFor.HEAD,
                431,
                f"the request has more than {HEAD_BYTES} bytes beside its body",
            )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._beside -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        # Not exact for messages that share a piece of data, whose heads are short.
        self._body = self._beside = 0
        self._arrived()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._arrived()
        super().handle_websocket_upgrade()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._close_for_sure(self._seconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def shutdown(self) -> None:
        super().shutdown()
        self._close_for_sure(_FLUSH_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close_for_sure(_FLUSH_SECONDS)

    def _close_for_sure(self, seconds: float) -> None:
        """What is written already is given ``seconds`` to be read, if it closes by itself."""
        if self.transport.is_closing() and self._closing is None:
            self._closing = self.loop.call_later(seconds, self.transport.abort)

    def _expect(self) -> None:
        """A request is to arrive, whole, from now on."""
        if self._arriving is None:
            self._arriving = self.loop.call_later(self._seconds, self._is_late)

    def _arrived(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _is_late(self) -> None:
        self._arriving = None
        if self.flow.read_paused:  # it is us who do not read
            self._expect()
        elif self.scope is None:  # nothing was asked: nothing is answered
            self.transport.abort()
        else:
            self._refuse(
                RefusedFor.LATE,
                408,
                f"the request did not arrive within {self._seconds:g} s; send less",
            )

    def _refuse(self, why: RefusedFor, status: int, message: str) -> None:
        self._arrived()
        if self.transport.is_closing():
            return
        if (service := service_of(self.config.app)) is not None:
            service.intake.count(why)
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_raw_error(status, message))
        self.transport.close()
        self._close_for_sure(_FLUSH_SECONDS)
