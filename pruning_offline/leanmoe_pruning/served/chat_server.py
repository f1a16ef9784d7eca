"""A server with OpenAI's API, asked for chats.

What is wrong with it is said in one sentence before anything is judged. The key, if any, is that of
``OPENAI_API_KEY``, as lm-eval and OpenAI's own client take it; it is sent to the server and written
nowhere.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leanmoe.errors import InputError, LeanMoEError
from leanmoe.wire import CONTROL_PATH, REQUEST_KEY

KEY_VARIABLE = "OPENAI_API_KEY"
CHATS_PATH = "/v1/chat/completions"
# What one answer may take: long ones, on a CPU, behind others.
ANSWER_SECONDS = 3600.0
_LOOK_SECONDS = 60.0
# Requests on their way together: what lets a server batch them.
AT_ONCE = 16
# As lm-eval's requests, which pass by every proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_NO_TEMPLATE = "chat template"


def is_url(place: object) -> bool:
    """Whether what was given for a model names a server."""
    return str(place).startswith(("http://", "https://"))


def base_of(url: str) -> str:
    """``url`` without ``/v1`` and slashes at its end; raises ``InputError``."""
    try:
        parts = urllib.parse.urlsplit(url)
        sound = bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment:
        raise InputError(f"{url} is no address of a server, expected http://HOST:PORT")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


@dataclass(frozen=True)
class ChatServer:
    """A server that answered; ``body`` goes with every request, ``standing`` is its policy.

    ``standing`` is what ``GET /v1/expert_skipping`` said, ``None`` for a server that is not ours.
    """

    url: str
    model: str
    standing: Mapping[str, Any] | None = None
    body: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, url: str, target: object = None) -> ChatServer:
        """Reach the server and ask it something small.

        ``target`` is the level that requests name, as in the API ("off", ``{"level": 0.5}``);
        ``None`` leaves the server's own. Raises ``InputError`` where the server is not there,
        refuses the key, serves nothing, knows no chats or no such level.
        """
        base = base_of(url)
        listed = _get(base, "/v1/models")
        standing = _get(base, CONTROL_PATH, absent=True)
        if target is not None and standing is None:
            raise InputError(
                f"{base} has no {CONTROL_PATH}, so it is no server of `leanmoe serve` and knows no "
                "levels; leave --skip-level and --max-kld out"
            )
        body = {} if target is None else {REQUEST_KEY: target}
        server = cls(base, _model_of(base, listed), standing, body)
        server.chat([{"role": "user", "content": "Hello"}], max_tokens=1)
        return server

    def chat(self, messages: list[dict[str, str]], **fields: Any) -> dict[str, Any]:
        """The first choice of a chat's answer; raises ``LeanMoEError`` where there is none."""
        asked = {"model": self.model, "messages": messages, **fields, **self.body}
        found = _send(self.url, CHATS_PATH, asked)
        try:
            choice = found["choices"][0]
            choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise InputError(
                f"{self.url}{CHATS_PATH} does not answer as OpenAI's does; give the address of a "
                "server with its API"
            ) from None
        return dict(choice)

    def describe(self) -> dict[str, Any]:
        """What a result says of it."""
        told = self.standing or {}
        return {
            "url": self.url,
            "model": self.model,
            "weights_digest": told.get("model"),
            "level": told.get("level"),
            "version": told.get("version"),
            "asked": self.body.get(REQUEST_KEY),
        }


def headers() -> dict[str, str]:
    """Those of every request."""
    key = os.environ.get(KEY_VARIABLE)
    return {
        "Content-Type": "application/json",
        **({"Authorization": f"Bearer {key}"} if key else {}),
    }


def _model_of(base: str, listed: Any) -> str:
    """The first model listed: adapters and other names stand after it."""
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise InputError(
            f"{base}/v1/models lists no model; give the address of a server with OpenAI's API"
        ) from None


def _get(base: str, path: str, absent: bool = False) -> Any:
    """What a path answers; with ``absent`` ``None`` where it is not there or not ours to see."""
    try:
        return _read(base, urllib.request.Request(base + path, headers=headers()), _LOOK_SECONDS)
    except urllib.error.HTTPError as error:
        if absent:
            return None
        raise refusal(base, error.code, _said(error)) from None


def _send(base: str, path: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(base + path, json.dumps(body).encode(), headers())
    try:
        return _read(base, request, ANSWER_SECONDS)
    except urllib.error.HTTPError as error:
        raise refusal(base, error.code, _said(error)) from None


def _read(base: str, request: urllib.request.Request, seconds: float) -> Any:
    try:
        with _OPENER.open(request, timeout=seconds) as answer:
            return json.load(answer)
    except urllib.error.HTTPError:
        raise
    except ValueError:
        raise InputError(
            f"{base} answers with what is not JSON; give the address of a server with OpenAI's API"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(base, error) from None


def unreachable(base: str, error: BaseException) -> InputError:
    """Said where no answer came at all."""
    reason = getattr(error, "reason", None) or error
    return InputError(
        f"{base} does not answer ({reason}); start it with `leanmoe serve`, wait until it is "
        "ready, or correct the address"
    )


def refusal(base: str, status: int, said: str) -> LeanMoEError:
    """What an answer that is an error means."""
    if status in (401, 403):
        return InputError(
            f"{base} refuses the request ({status}): it asks for a key; put one into {KEY_VARIABLE}"
        )
    if status == 400 and _NO_TEMPLATE in said:
        return InputError(
            f"{base} serves a model without a chat template, so it cannot be asked as users ask; "
            "start it with --chat-template FILE"
        )
    if status == 404:
        said = f"{said}; give the address of a server with OpenAI's API"
    kind = InputError if 400 <= status < 500 else LeanMoEError
    return kind(f"{base} answers {status}: {said}")


def _said(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    return message_of(text) or error.reason


def message_of(text: str) -> str:
    """The message of an error in OpenAI's shape, else the beginning of the text."""
    try:
        found = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        found = text
    return " ".join(str(found).split())[:400]
