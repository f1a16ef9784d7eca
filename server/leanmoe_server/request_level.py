"""A request's own skip level: ``expert_skipping`` in the body of an inference request.

Innermost middleware, behind the door. It takes the key out of the body,
checks it, and puts what the workers understand in its place: the level as an extra
sampling argument, and a cache salt of that level, so that no request reads KV that
was written at another. The level an answer begins at comes back as a header; ``usage`` says
at last which levels applied and how much was skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leanmoe.errors import InputError
from leanmoe.policy import EXACT, RequestLevel
from leanmoe.wire import BUDGET_HEADER, CONTROL_PATH, LEVEL_HEADER, REQUEST_KEY, ROLLBACK_PATH
from leanmoe_server.access import routed_path
from leanmoe_server.cache_salt import SALT, salt_of, secret_of
from leanmoe_server.error_shapes import input_error_response
from leanmoe_server.level_span import LevelSpan
from leanmoe_server.request_body import check_named_once, read_content
from leanmoe_server.request_mark import keep_skipping
from leanmoe_server.schema import request_target
from leanmoe_server.service import Service, service_of
from leanmoe_server.tenants.tenant_level import held_level
from leanmoe_server.tenants.tenants import SESSION
from leanmoe_server.usage_echo import Statement, UsageEcho

ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
_EXTRA = "vllm_xargs"
# vLLM's own bounds of a salt.
_MAX_SALT, _FORBIDDEN_IN_SALT = 128, frozenset("@/\\\0")


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
            if asked is None and path in ROUTES:
                asked = _held(service)
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
    """A whole body, of which ``Intake`` lets none past its length; ``None`` without its client."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _translated(body: bytes, service: Service, path: str) -> tuple[RequestLevel | None, bytes]:
    """The level asked for and the body as vLLM is to see it: as it came where none is."""
    content = read_content(body)
    if content is None or REQUEST_KEY not in content:
        return None, body
    # Before its value is looked at: the second may be null and hide the first.
    check_named_once(content, "the body")
    if content[REQUEST_KEY] is None:
        return None, body
    _check_can_carry(content, path)
    asked = _asked(content.pop(REQUEST_KEY), service)
    control = service.control
    content[_EXTRA] = {**_extra(content), control.request_key: asked.pack()}
    content[SALT] = salt_of(secret_of(control, asked), asked, _given_salt(content))
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


def _asked(content: Any, service: Service) -> RequestLevel:
    unavailable = service.settings.request_levels_unavailable
    if unavailable is not None:
        raise InputError(
            f"this server takes no {REQUEST_KEY!r} in single requests: {unavailable}; leave it out"
        )
    check_named_once(content, repr(REQUEST_KEY))
    target, deterministic = request_target(content)
    level = service.settings.model.resolve_request(target, deterministic)
    session = SESSION.get()
    if target.max_kld is not None and session is not None and session.cap is not None:
        # As with the server's own cap: the highest level that both bounds allow.
        level = replace(level, hundredths=min(level.hundredths, session.cap.hundredths))
    held = held_level(session, service.control, level)
    return level if held is None else held


def _held(service: Service) -> RequestLevel | None:
    """The level of a request that asked for none, where its key has a highest one."""
    session = SESSION.get()
    if session is None:
        return None
    session.level = held_level(session, service.control, None)
    return session.level


def _extra(content: Mapping[str, Any]) -> dict[str, Any]:
    extra = content.get(_EXTRA)
    if extra is None:
        return {}
    if not isinstance(extra, dict):
        raise InputError(f"{_EXTRA!r} is not a JSON object; send one or leave it out")
    check_named_once(extra, repr(_EXTRA))
    return extra


def _given_salt(content: Mapping[str, Any]) -> str | None:
    """The user's own salt, as vLLM takes it: what stands in its place is always good."""
    given = content.get(SALT)
    if given is None:
        return None
    if not isinstance(given, str) or not given:
        raise InputError(f"{SALT!r} is not a non-empty string; send one or leave it out")
    if len(given) > _MAX_SALT or _FORBIDDEN_IN_SALT & set(given):
        raise InputError(
            f"{SALT!r} is longer than {_MAX_SALT} characters or has '@', a slash, a backslash or "
            "NUL in it; send another"
        )
    return given


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

    async def kept(answer: str | None) -> Statement | None:
        stated = await state(answer)
        keep_skipping(stated)
        return stated

    echo = UsageEcho(kept)

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
