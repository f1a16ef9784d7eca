"""A request's own skip level: ``expert_skipping`` in the body of an inference request.

Innermost middleware, behind the door. It takes the key out of the body,
checks it, and puts what the workers understand in its place: the level as an extra
sampling argument, and a cache salt of that level, so that no request reads KV that
was written at another. The level an answer begins at comes back as a header; ``usage`` says
at last which levels applied and how much was skipped.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leanmoe.errors import InputError
from leanmoe.messages import Phases
from leanmoe.policy import EXACT, RequestLevel
from leanmoe.wire import BUDGET_HEADER, CONTROL_PATH, LEVEL_HEADER, REQUEST_KEY, ROLLBACK_PATH
from leanmoe_server.access import routed_path
from leanmoe_server.error_shapes import TooLongError, input_error_response
from leanmoe_server.level_span import LevelSpan
from leanmoe_server.schema import request_target
from leanmoe_server.service import Service, service_of
from leanmoe_server.usage_echo import Statement, UsageEcho

ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
MAX_BODY_BYTES = 64 << 20
_EXTRA, _SALT = "vllm_xargs", "cache_salt"


class RequestLevelMiddleware:
    """Pure ASGI middleware; requests on other routes pass untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = service_of(scope["app"]) if scope["type"] == "http" else None
        path = routed_path(scope) if service is not None else ""
        headers = MutableHeaders(raw=list(scope.get("headers", ())))
        if service is None or scope["method"] != "POST" or not _concerns(path, headers):
            await self.app(scope, receive, send)
            return
        try:
            whole = await _read(receive)
            if whole is None:
                return  # the client is gone
            asked, body = _translated(whole, service, path)
        except InputError as error:
            await input_error_response(error)(scope, receive, send)
            return
        if path not in ROUTES:
            await self.app(scope, _replayed(body, receive), send)
            return
        headers["content-length"] = str(len(body))
        del headers["transfer-encoding"]
        with _span(service, asked) as span:
            await self.app(
                {**scope, "headers": headers.raw},
                _replayed(body, receive),
                _echoing(send, service, asked, span),
            )


def _concerns(path: str, headers: Headers) -> bool:
    """Inference, and whatever else takes JSON: a level asked for must not pass unseen elsewhere."""
    if path in (CONTROL_PATH, ROLLBACK_PATH):
        return False
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    return path in ROUTES or kind == "application/json"


async def _read(receive: Receive) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise TooLongError(f"the body is longer than {MAX_BODY_BYTES} bytes; send less")
        if not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _translated(body: bytes, service: Service, path: str) -> tuple[RequestLevel | None, bytes]:
    """The level asked for and the body as vLLM is to see it: as it came where none is."""
    # Escapes and wide encodings may spell the key in another way; nearly all bodies have none.
    if not any(part in body for part in (REQUEST_KEY.encode(), b"\\u", b"\x00")):
        return None, body
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None, body  # vLLM says what is wrong with it
    if not isinstance(content, dict) or content.get(REQUEST_KEY) is None:
        return None, body
    _check_can_carry(content, path)
    asked = _asked(content.pop(REQUEST_KEY), service)
    packed = asked.pack()
    content[_EXTRA] = {**_extra(content), service.control.request_key: packed}
    content[_SALT] = _salt(content, _secret(service, asked), packed)
    return asked, json.dumps(content).encode()


def _check_can_carry(content: Mapping[str, Any], path: str) -> None:
    if path not in ROUTES:
        known = ", ".join(sorted(ROUTES))
        raise InputError(f"{path} takes no {REQUEST_KEY!r}; leave it out, or use one of {known}")
    if content.get("use_beam_search"):
        raise InputError(
            f"vLLM's beam search drops what a request says of {REQUEST_KEY!r}; leave one of the "
            "two out"
        )


def _secret(service: Service, asked: RequestLevel) -> str:
    """What the salt rests on: the server's, or one of this request alone.

    Where only decoding skips, cached answers hold skipped keys and values and prompts exact ones;
    a request that promised to depend on nobody reads neither.
    """
    current = service.control.current
    decode_only = current is not None and current.phases is Phases.DECODE
    alone = asked.deterministic and decode_only
    return secrets.token_hex(16) if alone else service.control.request_key


def _asked(content: Any, service: Service) -> RequestLevel:
    unavailable = service.settings.request_levels_unavailable
    if unavailable is not None:
        raise InputError(
            f"this server takes no {REQUEST_KEY!r} in single requests: {unavailable}; leave it out"
        )
    target, deterministic = request_target(content)
    return service.settings.model.resolve_request(target, deterministic)


def _extra(content: Mapping[str, Any]) -> dict[str, Any]:
    extra = content.get(_EXTRA) or {}
    if not isinstance(extra, dict):
        raise InputError(f"{_EXTRA!r} is not a JSON object; send one or leave it out")
    return extra


def _salt(content: Mapping[str, Any], secret: str, packed: int) -> str:
    """A salt of level and user's salt that no other request can have, by chance or by design."""
    given = content.get(_SALT)
    if given is not None and (not isinstance(given, str) or not given):
        raise InputError(f"{_SALT!r} is not a non-empty string; send one or leave it out")
    return hashlib.sha256(f"{secret} {packed} {given or ''}".encode()).hexdigest()


@contextmanager
def _span(service: Service, asked: RequestLevel | None) -> Iterator[LevelSpan]:
    """The levels of an answer: its own all through, or the engine's with all its changes."""
    if asked is not None:
        yield LevelSpan(asked.level)
        return
    with service.control.spans.follow() as span:
        yield span


def _echoing(send: Send, service: Service, asked: RequestLevel | None, span: LevelSpan) -> Send:
    current = service.control.current
    past_budgets = asked is not None and asked.past_budgets
    union = None if past_budgets or current is None else current.union

    async def state(answer: str | None) -> Statement | None:
        may_skip = span.highest > EXACT or union is not None
        if asked is None and not may_skip:
            return None
        if not may_skip:
            return {**span.describe(), "skipped": 0}
        tells = answer is not None and service.settings.request_levels_unavailable is None
        counts = await service.counter.counts_of(answer) if answer and tells else None
        return {**span.describe(), **({} if counts is None else counts.model_dump())}

    echo = UsageEcho(state)

    async def echoing(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            headers[LEVEL_HEADER] = f"{span.first:g}"
            if union is not None:
                headers[BUDGET_HEADER] = str(union.experts)
            message = {**message, "headers": headers.raw}
            echo.begin(message["status"], Headers(raw=headers.raw))
        for one in await echo.passed(message):
            await send(one)

    return echoing
