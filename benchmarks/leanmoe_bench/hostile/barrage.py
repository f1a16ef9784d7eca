"""Sends hostile requests and judges each answer: no fault of the server's, nothing given away."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from leanmoe.wire import HEALTH_PATH, READY_PATH
from leanmoe_bench.hostile.ammunition import Shot

_CLIENTS = 8
# A traceback, a place in an installation, an address in memory.
_LEAK = re.compile(
    r"Traceback \(most recent|File \"[^\"]+\", line|site-packages|/usr/lib|/home/\w|0x[0-9a-f]{9,}"
)
_STREAMED_FAULT = re.compile(r'"code":\s*5\d\d|"type":\s*"InternalServerError"')


@dataclass
class Damage:
    """What came back: statuses, and each answer that should not have been."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    healthy: bool = False


def fault_of(shot: Shot, status: int, text: str) -> str | None:
    """What is wrong with an answer, or ``None``."""
    said = f"{shot.method} {shot.path[:60]} {shot.body[:300]!r} {shot.headers} -> {status}: "
    if status >= 500 or (status == 200 and _STREAMED_FAULT.search(text)):
        return f"{said}a fault of the server's: {text[:300]}"
    # What a client sent may come back to it.
    if (leak := _LEAK.search(text)) and leak[0].encode() not in shot.body:
        return f"{said}it gives away {leak[0]!r}"
    if status >= 400 and shot.method != "HEAD" and not _is_error(text):
        return f"{said}not in the shape of an error: {text[:200]}"
    return None


def _is_error(text: str) -> bool:
    try:
        content: Any = json.loads(text)
    except ValueError:
        # What is no HTTP ends before any route.
        return text.startswith("Invalid HTTP")
    error = content.get("error") if isinstance(content, dict) else None
    return isinstance(error, dict) and isinstance(error.get("message"), str)


async def _fire(client: httpx.AsyncClient, shot: Shot, damage: Damage) -> None:
    try:
        answer = await client.request(
            shot.method, shot.path, content=shot.body, headers=shot.headers
        )
    except httpx.HTTPError as error:
        damage.faults.append(f"{shot.method} {shot.path} {shot.body[:300]!r}: {error!r}")
        return
    damage.statuses[answer.status_code] += 1
    # A redirect to the path without its last slash has no body.
    if not answer.is_redirect and (found := fault_of(shot, answer.status_code, answer.text)):
        damage.faults.append(found)


async def _all(url: str, shots: Iterable[Shot]) -> Damage:
    damage, waiting = Damage(), iter(shots)
    async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as client:

        async def one_client() -> None:
            for shot in waiting:
                await _fire(client, shot, damage)

        await asyncio.gather(*(one_client() for _ in range(_CLIENTS)))
        after = [(await client.get(path)).status_code for path in (HEALTH_PATH, READY_PATH)]
        damage.healthy = after == [200, 200]
    return damage


def barrage(url: str, shots: Iterable[Shot]) -> Damage:
    """Send all ``shots``, eight at a time, and look afterwards whether the server is well."""
    return asyncio.run(_all(url, shots))
