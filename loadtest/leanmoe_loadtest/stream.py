"""One streamed chat completion over HTTP, with the arrival time of every piece of text."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import urllib3

from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.sse import DONE, SSEParser

_CONNECT_SECONDS = 10.0
_ERROR_CHARACTERS = 200
_TEXT_KEYS = ("content", "reasoning", "reasoning_content", "tool_calls")


class StreamError(Exception):
    """The server answered, but not with a complete stream."""


@dataclass(frozen=True)
class ChatRequest:
    """Where to send a chat completion and what to ask."""

    url: str
    payload: Mapping[str, Any]
    headers: Mapping[str, str]
    timeout_seconds: float


def _take_event(record: RequestRecord, event: Mapping[str, Any], now: float) -> None:
    if "error" in event:
        raise StreamError(f"error event: {event['error']}"[:_ERROR_CHARACTERS])
    usage = event.get("usage")
    if usage:
        record.prompt_tokens = usage.get("prompt_tokens")
        record.completion_tokens = usage.get("completion_tokens")
    for choice in event.get("choices") or []:
        if any(choice.get("delta", {}).get(key) for key in _TEXT_KEYS):
            record.chunks.append(now)
        if choice.get("finish_reason") == "abort":
            raise StreamError("the server aborted the answer")


def _read(response: urllib3.BaseHTTPResponse, request: ChatRequest, record: RequestRecord) -> None:
    parser = SSEParser()
    deadline = record.sent + request.timeout_seconds
    for chunk in response.stream(None):
        now = time.monotonic()
        for data in parser.feed(chunk):
            if data == DONE:
                record.ended = now
                return
            _take_event(record, json.loads(data), now)
        if now > deadline:
            raise StreamError(f"longer than {request.timeout_seconds} s")
    raise StreamError("the stream ended without [DONE]")


def run_request(pool: urllib3.PoolManager, request: ChatRequest, record: RequestRecord) -> None:
    """Send ``request`` and fill ``record``; what goes wrong is written into it, not raised."""
    timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=request.timeout_seconds)
    try:
        record.sent = time.monotonic()
        response = pool.request(
            "POST",
            request.url,
            body=json.dumps(request.payload),
            headers={"Content-Type": "application/json", **request.headers},
            preload_content=False,
            retries=False,
            timeout=timeout,
        )
        try:
            if response.status != 200:
                raise StreamError(f"HTTP {response.status}")
            _read(response, request, record)
        finally:
            response.close()
    except StreamError as error:
        record.error = str(error)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        record.error = type(error).__name__
