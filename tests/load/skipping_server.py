"""A small server with levels: its answers differ from the exact ones as a level tells it to.

It streams or answers whole, exports a few of LeanMoE's metrics, and knows
``expert_skipping`` unless ``skips`` is false.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = 8


class SkippingServer(ThreadingHTTPServer):
    """At level L the share L of the prompts gets another answer, from its fifth token on.

    ``noise`` is the share of prompts whose exact answer changes from one time to the next.
    Above ``most_at_once`` requests under way, first tokens take 0.4 s longer.
    """

    daemon_threads = True

    def __init__(
        self,
        *,
        skips: bool = True,
        noise: float = 0.0,
        logprobs: bool = True,
        most_at_once: int | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.skips, self.noise, self.logprobs = skips, noise, logprobs
        self.most_at_once = most_at_once
        self.lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.under_way = 0
        self.tokens = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SkippingServer

    def log_message(self, *args: object) -> None:
        """Keep the test output clean."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._whole(200, json.dumps({"data": [{"id": "skipping"}]}))
        elif self.path == "/v1/expert_skipping" and self.server.skips:
            self._whole(200, json.dumps({"level": 0.25}))
        elif self.path == "/metrics" and self.server.skips:
            self._whole(200, self._metrics())
        else:
            self._whole(404, "{}")

    def _metrics(self) -> str:
        server = self.server
        values = {
            'leanmoe_routed_assignments_total{layer="0"}': 2 * server.tokens,
            'leanmoe_skipped_assignments_total{layer="0"}': server.tokens / 2,
            "leanmoe_skip_level": 0.25,
            'leanmoe_resident_memory_bytes{process="api_server"}': 2**30,
            'vllm:generation_tokens_total{engine="0"}': server.tokens,
            'vllm:num_requests_waiting{engine="0"}': max(0, server.under_way - 1),
            'vllm:num_requests_running{engine="0"}': min(1, server.under_way),
            'vllm:kv_cache_usage_perc{engine="0"}': min(1.0, server.under_way / 10),
        }
        return "".join(f"{name} {value}\n" for name, value in values.items())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            number = len(self.server.asked)
            self.server.under_way += 1
            late = (
                self.server.most_at_once is not None
                and self.server.under_way > self.server.most_at_once
            )
        try:
            self._answer(body, number, 0.4 if late else 0.0)
        except ConnectionError:
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def _answer(self, body: dict[str, Any], number: int, wait: float) -> None:
        if "expert_skipping" in body and not self.server.skips:
            self._whole(400, json.dumps({"error": "unknown field expert_skipping"}))
            return
        if body.get("logprobs") and not self.server.logprobs:
            self._whole(400, json.dumps({"error": "no logprobs here"}))
            return
        level = self._level(body.get("expert_skipping"))
        words = self._words(body, level, number)
        with self.server.lock:
            self.server.tokens += len(words)
        if body.get("stream"):
            self._stream(words, level, wait)
        else:
            self._whole(200, json.dumps(self._message(body, words)), level)

    def _level(self, asked: Any) -> float:
        if asked is None:
            return 0.25 if self.server.skips else 0.0
        return 0.0 if asked == "off" else float(asked["level"])

    def _words(self, body: dict[str, Any], level: float, number: int) -> list[str]:
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        place = zlib.crc32(prompt.encode()) / 2**32
        same = f"{zlib.crc32(prompt.encode()) % 97}"
        words = [f"{same}w{n} " for n in range(TOKENS)]
        if place < level:
            words[4:] = [f"{same}x{level}{n} " for n in range(4, TOKENS)]
        elif 1 - place < self.server.noise:
            words[-1] = f"n{number} "
        return words

    def _message(self, body: dict[str, Any], words: list[str]) -> dict[str, Any]:
        if "messages" not in body:
            logprobs = {"tokens": words} if body.get("logprobs") else None
            return {"choices": [{"text": "".join(words), "logprobs": logprobs}]}
        content = [{"token": word} for word in words]
        logprobs = {"content": content} if body.get("logprobs") else None
        return {"choices": [{"message": {"content": "".join(words)}, "logprobs": logprobs}]}

    def _stream(self, words: list[str], level: float, wait: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self._send_level(level)
        self.end_headers()
        # The pace it answers at: a figure of nothing would divide by zero.
        time.sleep(0.02 + wait)
        for word in words:
            time.sleep(0.005)
            self._event({"choices": [{"index": 0, "delta": {"content": word}}]})
        usage = {"prompt_tokens": 5, "completion_tokens": len(words)}
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _send_level(self, level: float) -> None:
        if self.server.skips:
            self.send_header("X-LeanMoE-Skip-Level", str(level))

    def _event(self, content: object) -> None:
        self._chunk(f"data: {json.dumps(content)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _whole(self, status: int, text: str, level: float | None = None) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if level is not None:
            self._send_level(level)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def skipping_server(**settings: Any) -> Iterator[SkippingServer]:
    """One on a free port of this machine, gone after the block."""
    server = SkippingServer(**settings)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
