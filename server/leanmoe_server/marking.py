"""The outermost ASGI layer: a request's id, and its span while traces are configured.

A well-formed ``X-Request-Id`` names the id, or a new one is made; it goes back in the answer, to
vLLM and into the log's lines. With vLLM's ``--otlp-traces-endpoint`` each request is a span of
ours, of which vLLM's own becomes a child.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leanmoe.wire import CONTROL_PATH, HISTORY_PATH, LEVEL_HEADER, ROLLBACK_PATH, STATUS_PATH
from leanmoe_server.access import Access, access_of, routed_path
from leanmoe_server.caller import caller_of
from leanmoe_server.request_level import ROUTES
from leanmoe_server.request_mark import RequestMark, keep_mark

ID_HEADER = "x-request-id"
_WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
# Names of spans are few: one for each route of the API, whatever clients ask for.
_NAMED = ROUTES | {CONTROL_PATH, HISTORY_PATH, ROLLBACK_PATH}
_ERROR = 500


class Marking:
    """Gives every request its mark, and a span while traces are configured."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(scope["headers"]))
        mark = RequestMark(_request_id(headers.get(ID_HEADER)))
        headers[ID_HEADER] = mark.id
        # Not taken back: the access log's line is written by this task, after the answer.
        keep_mark(mark)
        with _span(scope, headers, mark) as marked:
            await self.app(marked, receive, _noting(send, mark))


def _request_id(given: str | None) -> str:
    """What a client names, if a log can hold it, or a new one."""
    return given if given and _WELL_FORMED.fullmatch(given) else secrets.token_hex(16)


def _noting(send: Send, mark: RequestMark) -> Send:
    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            headers[ID_HEADER] = mark.id
            mark.status, mark.level = message["status"], headers.get(LEVEL_HEADER)
            message = {**message, "headers": headers.raw}
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            mark.ended = True

    return noting


def _is_traced(scope: Scope, path: str) -> bool:
    """Not the questions how the server is, which come every few seconds."""
    public = access_of(path, scope.get("method", "")) is Access.PUBLIC
    return scope["type"] == "http" and not public and path != STATUS_PATH


@contextmanager
def _span(scope: Scope, headers: MutableHeaders, mark: RequestMark) -> Iterator[Scope]:
    """The scope to hand on, with the span's own context in its headers."""
    marked = {**scope, "headers": headers.raw}
    path = routed_path(scope)
    if not _is_traced(scope, path):
        yield marked
        return
    tracer = trace.get_tracer("leanmoe.server")
    named = path if path in _NAMED else "other"
    context = propagate.extract(headers)
    with tracer.start_as_current_span(
        f"{scope['method']} {named}", context=context, kind=SpanKind.SERVER
    ) as span:
        if span.is_recording():
            propagate.inject(headers)
        try:
            yield marked
        finally:
            if span.is_recording():
                _describe(span, marked, path, mark)


def _describe(span: Span, scope: Scope, path: str, mark: RequestMark) -> None:
    caller = caller_of(scope)
    told = {
        "http.request.method": scope["method"],
        "url.path": path,
        "http.response.status_code": mark.status,
        "leanmoe.request_id": mark.id,
        "leanmoe.tenant": None if caller is None else caller.name,
        "leanmoe.skip_level": None if mark.level is None else float(mark.level),
        "leanmoe.highest_skip_level": mark.skipping.get("level"),
        "leanmoe.skipped_share": mark.skipped_share,
        "leanmoe.whole": mark.ended,
    }
    span.set_attributes({name: value for name, value in told.items() if value is not None})
    if mark.status is None or mark.status >= _ERROR:
        span.set_status(Status(StatusCode.ERROR))
