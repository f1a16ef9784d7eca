"""One streamed answer over HTTP, with the arrival time of every piece of text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import gevent
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError, HTTPSocketPoolResponse

from leanmoe.wire import LEVEL_HEADER
from leanmoe_loadtest.ask import Ask
from leanmoe_loadtest.clock import now
from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.record import RequestRecord
from leanmoe_loadtest.sse import DONE, SSEParser

_CONNECT_SECONDS = 10.0
_CLOSING_SECONDS = 1.0
_ERROR_CHARACTERS = 200
_BLOCK_BYTES = 1 << 16
_TEXT_KEYS = ("content", "reasoning", "reasoning_content", "tool_calls")


class StreamError(Exception):
    """The server answered, but not with a complete stream."""


class Streamer:
    """Sends requests to one server over connections that it keeps open."""

    def __init__(self, plan: Plan, api_key: str | None) -> None:
        self._seconds = plan.request_seconds
        self._keep_text = plan.keep_text
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._prefix, self._client = _client(plan)

    def run(self, ask: Ask, record: RequestRecord) -> None:
        """Send ``ask`` and fill ``record``; what goes wrong is written into it, not raised."""
        try:
            with gevent.Timeout(self._seconds, StreamError(f"longer than {self._seconds:g} s")):
                self._run(ask, record)
        except StreamError as error:
            record.error = str(error)
        except (HTTPParseError, OSError, ValueError) as error:
            record.error = type(error).__name__
        except Exception as error:  # an answer of a shape nobody foresaw is a failed request
            record.error = f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS]

    def _run(self, ask: Ask, record: RequestRecord) -> None:
        record.sent = now()
        response = self._client.request("POST", self._prefix + ask.path, ask.body, self._headers)
        try:
            if response.status_code != 200:
                raise StreamError(_refusal(response))
            record.applied_level = _level(response)
            _read(response, record, self._keep_text)
        finally:
            response.release()


def _client(plan: Plan) -> tuple[str, HTTPClient]:
    """The path under which the server's API lies, and the pool of connections to it."""
    origin, _, path = plan.url.partition("://")[2].partition("/")
    client = HTTPClient.from_url(
        f"{plan.url.partition('://')[0]}://{origin}",
        block_size=_BLOCK_BYTES,
        connection_timeout=_CONNECT_SECONDS,
        network_timeout=plan.request_seconds + 1,
        concurrency=plan.concurrency,
    )
    return (f"/{path}" if path else ""), client


def _refusal(response: HTTPSocketPoolResponse) -> str:
    """The status, and the server's sentence where it has OpenAI's form."""
    status = f"HTTP {response.status_code}"
    try:
        return f"{status}: {json.loads(response.read())['error']['message']}"[:_ERROR_CHARACTERS]
    except (ValueError, LookupError, TypeError):
        return status


def _level(response: HTTPSocketPoolResponse) -> float | None:
    try:
        return float(str(response.get(LEVEL_HEADER)))
    except (TypeError, ValueError):
        return None


def _read(response: HTTPSocketPoolResponse, record: RequestRecord, keep_text: bool) -> None:
    pieces: list[str] = []
    # A stream that breaks off in the middle of a chunk is bad HTTP; it has no end either.
    with suppress(HTTPParseError):
        for arrived, data in _events(response):
            if data == DONE:
                record.ended = arrived
                break
            text = _take_event(record, json.loads(data), arrived)
            if keep_text and text:
                pieces.append(text)
    if keep_text:
        record.text = "".join(pieces)
    if record.chunk_tokens is not None and len(record.chunk_tokens) != len(record.chunks):
        record.chunk_tokens = None
    if record.ended is None:
        raise StreamError("the stream ended without [DONE]")
    # What ends the body, so that the connection can be used again.
    with suppress(HTTPParseError, OSError), gevent.Timeout(_CLOSING_SECONDS, False):
        response.read()


def _events(response: HTTPSocketPoolResponse) -> Iterator[tuple[float, bytes]]:
    """Each event with the time at which its data had arrived, before anything is parsed."""
    parser, arrived = SSEParser(), 0.0
    while line := response.readline(b"\n"):
        if len(line) > 2:
            arrived = now()
        if (data := parser.line(line)) is not None:
            yield arrived, data


def _take_event(record: RequestRecord, event: Mapping[str, Any], arrived: float) -> str | None:
    """Note what an event brings; the text in it, if any."""
    if "error" in event:
        raise StreamError(f"error event: {event['error']}"[:_ERROR_CHARACTERS])
    found = None
    for choice in event.get("choices") or ():
        # A chat's piece is a delta, a completion's a text.
        delta = choice.get("delta") or choice
        if delta.get("text") or any(delta.get(key) for key in _TEXT_KEYS):
            record.chunks.append(arrived)
            found = delta.get("text") or delta.get("content")
        if choice.get("finish_reason") == "abort":
            raise StreamError("the server aborted the answer")
    if usage := event.get("usage"):
        _take_usage(record, usage, last=not event.get("choices"))
    return found


def _take_usage(record: RequestRecord, usage: Mapping[str, Any], last: bool) -> None:
    """Note the counts; servers that tell them with every piece tell how many tokens it holds."""
    tokens = usage.get("completion_tokens")
    if not last and isinstance(tokens, int) and record.chunks:
        told = record.chunk_tokens = record.chunk_tokens or []
        if len(told) < len(record.chunks):
            told.append(tokens - sum(told))
    record.prompt_tokens = usage.get("prompt_tokens")
    record.completion_tokens = tokens
