"""Requests of every kind from many clients, and an administrator who changes his mind."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from leanmoe.wire import ADMIN_HEADER, CONTROL_PATH, REQUEST_KEY
from leanmoe_bench.soak.server import ADMIN_KEY, SoakServer

_LEVELS: tuple[Any, ...] = (
    None,
    "off",
    {"level": 0.3},
    {"level": 0.75},
    {"level": 1},
    {"level": 0.5, "deterministic": True},
    {"max_kld": 0.02},
)
_CHANGES: tuple[dict[str, Any], ...] = (
    {"level": 0.5},
    {"level": 0, "union_budget": 4},
    {"union_mode": "redirect"},
    {"level": 0.5, "phases": "decode"},
    {"union_budget": None, "phases": "all"},
    {"level": 1},
)
_TEXT = "the model answers what people ask of it in many words and some of them are long"
_WORDS = _TEXT.split(" ")


@dataclass
class Traffic:
    """What was sent and what came back."""

    answered: int = 0
    tokens: int = 0
    changes: int = 0
    errors: list[str] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)


async def _client(client: httpx.AsyncClient, seed: int, deadline: float, traffic: Traffic) -> None:
    draw = random.Random(seed)
    while time.monotonic() < deadline:
        level = draw.choice(_LEVELS)
        body = {
            "model": "soak",
            "prompt": " ".join(draw.choices(_WORDS, k=draw.randint(4, 60))),
            "max_tokens": draw.randint(1, 24),
            "temperature": draw.choice((0.0, 1.0)),
            "stream": draw.random() < 0.5,
            **({} if level is None else {REQUEST_KEY: level}),
        }
        try:
            answer = await client.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            traffic.errors.append(f"{type(error).__name__}: {error}")
            return
        if answer.status_code != 200 or '"error"' in answer.text:
            traffic.errors.append(f"{answer.status_code}: {answer.text[:200]}")
            return
        traffic.answered += 1
        traffic.tokens += body["max_tokens"]


async def _administrator(
    client: httpx.AsyncClient, every: float, deadline: float, traffic: Traffic
) -> None:
    while time.monotonic() + every < deadline:
        await asyncio.sleep(every)
        change = _CHANGES[traffic.changes % len(_CHANGES)]
        answer = await client.put(CONTROL_PATH, json=change, headers={ADMIN_HEADER: ADMIN_KEY})
        if answer.status_code != 200:
            traffic.errors.append(f"change {change}: {answer.text[:200]}")
        traffic.changes += 1


async def _watch(server: SoakServer, deadline: float, traffic: Traffic) -> None:
    started = time.monotonic()
    while time.monotonic() < deadline:
        await asyncio.sleep(1.0)
        traffic.resident.append((time.monotonic() - started, server.resident_bytes()))


async def _all(server: SoakServer, concurrency: int, seconds: float, seed: int) -> Traffic:
    traffic, deadline = Traffic(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=concurrency + 1)
    async with httpx.AsyncClient(
        base_url=server.url, timeout=300.0, limits=limits, trust_env=False
    ) as client:
        await asyncio.gather(
            *(_client(client, seed + one, deadline, traffic) for one in range(concurrency)),
            _administrator(client, seconds / 13, deadline, traffic),
            _watch(server, deadline, traffic),
        )
    return traffic


def run_traffic(server: SoakServer, concurrency: int, seconds: float, seed: int) -> Traffic:
    """Bounded in time and in clients."""
    return asyncio.run(_all(server, concurrency, seconds, seed))
