"""The server under load: reachable, with the model that is asked for."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import urllib3

from leanmoe.errors import InputError
from leanmoe_loadtest.messages import API_KEY_VARIABLE

_TIMEOUT_SECONDS = 10.0


def _headers() -> dict[str, str]:
    key = os.environ.get(API_KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True)
class Target:
    """A server's address without ``/v1``; ``headers`` carry the key, which is never printed."""

    url: str
    headers: dict[str, str] = field(default_factory=_headers, repr=False)

    def model(self, wanted: str | None) -> str:
        """``wanted``, or the first model the server lists; ``InputError`` where it cannot be."""
        names = self._models()
        if wanted is None:
            if names:
                return names[0]
            raise InputError(f"{self.url}/v1/models lists no model; is it ready? Name it: --model")
        if names and wanted not in names:
            raise InputError(f"{self.url} has no model {wanted!r}; it lists {', '.join(names[:5])}")
        return wanted

    def _models(self) -> list[str]:
        try:
            answer = urllib3.request(
                "GET",
                f"{self.url}/v1/models",
                headers=self.headers,
                timeout=_TIMEOUT_SECONDS,
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise InputError(f"no server answers at {self.url} ({type(error).__name__})") from None
        if answer.status in (401, 403):
            raise InputError(f"{self.url} asks for an API key; put it into {API_KEY_VARIABLE}")
        return _names(answer.data) if answer.status == 200 else []


def _names(data: bytes) -> list[str]:
    try:
        content: Any = json.loads(data)
        return [str(one["id"]) for one in content["data"]]
    except (ValueError, LookupError, TypeError):
        return []


def target(url: str | None) -> Target:
    """The server at ``url``, with or without ``/v1`` at its end."""
    if url is None:
        raise InputError("no URL is given, expected http://host:port")
    if not _is_http(url):
        raise InputError(f"URL is {url!r}, expected http://host:port")
    return Target(url.rstrip("/").removesuffix("/v1"))


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
