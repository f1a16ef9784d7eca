"""A server in a process of its own that streams at a known pace and notes when it sent what.

Its clock is the machine's monotonic one, which the client uses too. It speaks just enough HTTP/1.1
for streamed answers: keep-alive, ``Content-Length`` in, chunks out.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Pace:
    """How the server answers.

    The first token of request ``i`` comes ``ttft_ms[i % n]`` after the request, the gap before
    token ``j`` is ``itl_ms[j % n]``. ``tokens`` 0 gives as many as ``max_tokens`` asks for. Every
    third request is refused when ``fail_every`` is 3; streams break off before token
    ``drop_after``. With ``tokens_per_word`` it has a tokeniser, whose template adds seven. The
    event with the role alone comes at once, or with ``late_role`` right before the first token,
    as vLLM sends it.
    """

    ttft_ms: list[float] = field(default_factory=lambda: [150.0])
    itl_ms: list[float] = field(default_factory=lambda: [30.0])
    tokens: int = 8
    fail_every: int = 0
    drop_after: int | None = None
    api_key: str | None = None
    tokens_per_word: int = 0
    late_role: bool = False


@dataclass
class Served:
    """What one request got, in seconds of the monotonic clock."""

    received: float
    sent: list[float] = field(default_factory=list)
    ended: float = 0.0


@dataclass
class Truth:
    """All that the server knows about what it did."""

    served: list[Served]
    payloads: list[dict[str, Any]]
    refused: int = 0
    broken: int = 0


class _State:
    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.truth = Truth([], [])


class _Connection(asyncio.Protocol):
    """One client's connection: a request at a time."""

    def __init__(self, state: _State) -> None:
        self._state, self._buffer = state, b""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._state.truth.broken += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        length = int(headers.get("content-length", 0))
        if len(rest) >= length:
            self._buffer = rest[length:]
            self._answer(lines[0].split(" ")[1], headers, rest[:length])

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> None:
        key = self._state.pace.api_key
        if path == "/truth":
            self._whole(200, asdict(self._state.truth))
        elif key is not None and headers.get("authorization") != f"bearer {key.lower()}":
            self._whole(401, {"error": {"message": "no key"}})
        elif path == "/v1/models":
            self._whole(200, {"object": "list", "data": [{"id": "known"}]})
        elif path in ("/v1/chat/completions", "/v1/completions"):
            self._begin(json.loads(body), chat="chat" in path)
        elif path == "/tokenize" and self._state.pace.tokens_per_word:
            words = len(json.loads(body)["messages"][0]["content"].split())
            self._whole(200, {"count": 7 + words * self._state.pace.tokens_per_word})
        elif path == "/health":
            self._whole(200, {})
        elif path == "/metrics":
            self._text(200, f"vllm:num_requests_running {len(self._state.truth.payloads)}\n")
        else:
            self._whole(404, {"error": {"message": "no such page"}})

    def _begin(self, payload: dict[str, Any], chat: bool) -> None:
        state, received = self._state, time.monotonic()
        number, pace = len(state.truth.payloads), state.pace
        state.truth.payloads.append(payload)
        if pace.fail_every and (number + 1) % pace.fail_every == 0:
            state.truth.refused += 1
            self._whole(503, {"error": "busy"})
            return
        self._served, self._chat = Served(received), chat
        longest = payload.get("max_tokens") or payload.get("max_completion_tokens") or 1
        self._tokens = pace.tokens or int(longest)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"X-LeanMoE-Skip-Level: 0.25\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        if chat and not pace.late_role:
            self._role()
        self._due = received + pace.ttft_ms[number % len(pace.ttft_ms)] / 1e3
        self._timer = self._loop.call_at(self._due, self._token)

    def _role(self) -> None:
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})

    def _token(self) -> None:
        pace, sent = self._state.pace, self._served.sent
        if len(sent) == pace.drop_after:
            self._timer = None
            self._transport.close()
            return
        text = f"t{len(sent)} "
        choice = {"delta": {"content": text}} if self._chat else {"text": text}
        if self._chat and pace.late_role and not sent:
            self._role()
        sent.append(time.monotonic())
        self._event({"id": "known", "choices": [{"index": 0, **choice, "finish_reason": None}]})
        if len(sent) == self._tokens:
            self._end()
            return
        self._due += pace.itl_ms[len(sent) % len(pace.itl_ms)] / 1e3
        self._timer = self._loop.call_at(self._due, self._token)

    def _end(self) -> None:
        self._timer = None
        usage = {"prompt_tokens": 5, "completion_tokens": self._tokens}
        self._event({"choices": [], "usage": usage})
        self._served.ended = time.monotonic()
        self._state.truth.served.append(self._served)
        self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def _event(self, content: object) -> None:
        data = f"data: {json.dumps(content)}\n\n".encode()
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _whole(self, status: int, content: object) -> None:
        self._text(status, json.dumps(content))

    def _text(self, status: int, text: str) -> None:
        data = text.encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n"
        self._transport.write(head.encode() + data)


async def _serve(pace: Pace) -> None:
    state, loop = _State(pace), asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(state), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    # The parent holds the other end of stdin: this process ends with it.
    ending = threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True)
    ending.start()
    await server.serve_forever()


@dataclass
class KnownServer:
    """A running known server."""

    process: subprocess.Popen[str]
    url: str

    def truth(self) -> Truth:
        """What it did so far."""
        with urllib.request.urlopen(f"{self.url}/truth", timeout=30) as answer:
            content = json.load(answer)
        return Truth(**{**content, "served": [Served(**one) for one in content["served"]]})


@contextmanager
def known_server(pace: Pace) -> Iterator[KnownServer]:
    """A known server on a free port of this machine, gone after the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(asdict(pace))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield KnownServer(process, f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(_serve(Pace(**json.loads(sys.argv[1]))))
