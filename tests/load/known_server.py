"""An SSE server whose pace is known: it notes when it sent what, on the clock the client uses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Pace:
    """How the server answers; every third answer fails when ``fail_every`` is 3."""

    ttft_seconds: float = 0.15
    itl_seconds: float = 0.03
    tokens: int = 8
    fail_every: int = 0
    drop_after: int | None = None


@dataclass
class Served:
    """What one request got, in seconds of the monotonic clock."""

    received: float
    sent: list[float] = field(default_factory=list)
    ended: float = 0.0


class KnownServer(ThreadingHTTPServer):
    """Serves ``/v1/models`` and ``/v1/chat/completions``."""

    daemon_threads = True

    def __init__(self, pace: Pace) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pace = pace
        self.served: list[Served] = []
        self.payloads: list[dict[str, Any]] = []
        self.refused = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: KnownServer

    def log_message(self, *args: object) -> None:
        """Keep the test output clean."""

    def do_GET(self) -> None:
        self._whole(200, {"object": "list", "data": [{"id": "known"}]})

    def do_POST(self) -> None:
        served = Served(time.monotonic())
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.payloads.append(body)
            number, pace = len(self.server.payloads), self.server.pace
            if pace.fail_every and number % pace.fail_every == 0:
                self.server.refused += 1
                self._whole(503, {"error": "busy"})
                return
        # A client that was stopped hangs up in the middle.
        with suppress(ConnectionError):
            self._stream(served, pace)

    def _whole(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, served: Served, pace: Pace) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        time.sleep(pace.ttft_seconds)
        for token in range(pace.tokens):
            if token:
                time.sleep(pace.itl_seconds)
            if token == pace.drop_after:
                self.close_connection = True
                self._chunk(b"")
                return
            served.sent.append(time.monotonic())
            self._event({"choices": [{"index": 0, "delta": {"content": f"t{token}"}}]})
        usage = {"prompt_tokens": 5, "completion_tokens": pace.tokens}
        self._event({"choices": [], "usage": usage})
        served.ended = time.monotonic()
        # Noted before the client can know that its answer is complete.
        with self.server.lock:
            self.server.served.append(served)
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, content: object) -> None:
        self._chunk(f"data: {json.dumps(content)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


@contextmanager
def known_server(pace: Pace) -> Iterator[KnownServer]:
    server = KnownServer(pace)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
