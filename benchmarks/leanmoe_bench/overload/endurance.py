"""Minutes at more than the server can do, with clients that leave, stop and change the level."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from statistics import median
from typing import Any

import httpx

from leanmoe.wire import ADMIN_HEADER, CONTROL_PATH
from leanmoe_bench.overload.answers import LEAVING_SHARE, Answers, ask
from leanmoe_bench.overload.pressed_server import ADMIN_KEY, MODEL, PressedServer

_CHANGE_SECONDS = 15.0
_FILLING_SECONDS, _CAPACITY_SECONDS = 5.0, 40.0
_END_SECONDS = 300.0
_PATIENCE_SECONDS = 300.0
# A client that reads a stream from a small buffer, until it is stopped from outside.
_READER = """
import json, socket, sys
host, port, model = sys.argv[1:]
body = json.dumps({"model": model, "prompt": "water", "max_tokens": 400, "stream": True}).encode()
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
one.connect((host, int(port)))
one.sendall(b"POST /v1/completions HTTP/1.1\\r\\nhost: x\\r\\ncontent-type: application/json\\r\\n"
            b"content-length: %d\\r\\n\\r\\n" % len(body) + body)
while one.recv(64): pass
"""


def _client(server: PressedServer) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
    return httpx.AsyncClient(
        base_url=server.url, timeout=_PATIENCE_SECONDS, limits=limits, trust_env=False
    )


async def _capacity(server: PressedServer, seats: int, seed: int) -> float:
    """Requests a second that end, of the same mix, while as many clients as seats ask at once.

    Neither the first seconds count, when seats fill, nor the last, when they empty.
    """
    answers, draws = Answers(), [random.Random(seed + one) for one in range(seats)]
    deadline = time.monotonic() + _FILLING_SECONDS + _CAPACITY_SECONDS

    async def one(client: httpx.AsyncClient, draw: random.Random) -> None:
        while time.monotonic() < deadline:
            await ask(client, draw, answers, LEAVING_SHARE)

    async with _client(server) as client, asyncio.TaskGroup() as group:
        for draw in draws:
            group.create_task(one(client, draw))
        await asyncio.sleep(_FILLING_SECONDS)
        before = answers.ended.total()
        await asyncio.sleep(_CAPACITY_SECONDS)
        return (answers.ended.total() - before) / _CAPACITY_SECONDS


async def _arrivals(server: PressedServer, rate: float, seconds: float, seed: int) -> Answers:
    """Requests that come whether or not earlier ones were answered."""
    answers, draw = Answers(), random.Random(seed)
    deadline = time.monotonic() + seconds
    async with _client(server) as client, asyncio.TaskGroup() as group:
        while time.monotonic() < deadline:
            await asyncio.sleep(draw.expovariate(rate))
            own = random.Random(draw.random())
            group.create_task(ask(client, own, answers, LEAVING_SHARE))
    return answers


async def _changes(server: PressedServer, seconds: float) -> list[int]:
    """The statuses of the level changes."""
    statuses: list[int] = []
    deadline = time.monotonic() + seconds
    async with _client(server) as client:
        while time.monotonic() + _CHANGE_SECONDS < deadline:
            await asyncio.sleep(_CHANGE_SECONDS)
            level = {"level": (len(statuses) + 1) % 2}
            answer = await client.put(CONTROL_PATH, json=level, headers={ADMIN_HEADER: ADMIN_KEY})
            statuses.append(answer.status_code)
    return statuses


async def _stopped_reader(server: PressedServer, seconds: float) -> str:
    """SIGSTOP a client for a third of the time; how it ended."""
    host, port = server.url.removeprefix("http://").split(":")
    await asyncio.sleep(seconds / 3)
    reader = subprocess.Popen([sys.executable, "-c", _READER, host, port, MODEL])
    await asyncio.sleep(min(5.0, seconds / 10))
    reader.send_signal(signal.SIGSTOP)
    await asyncio.sleep(seconds / 3)
    reader.send_signal(signal.SIGCONT)
    await asyncio.sleep(1.0)
    ended = reader.poll()
    reader.kill()
    reader.wait()
    return "still reading" if ended is None else f"ended with {ended}"


async def _memory(server: PressedServer, seconds: float) -> list[tuple[int, int]]:
    sizes, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        await asyncio.sleep(1.0)
        sizes.append(server.resident_bytes())
    return sizes


def growth(sizes: list[int]) -> float:
    """From the second quarter to the last."""
    quarter = max(1, len(sizes) // 4)
    early = median(sizes[quarter : 2 * quarter] or sizes)
    return round(median(sizes[-quarter:]) / early - 1, 4)


def _drained(server: PressedServer) -> bool:
    deadline = time.monotonic() + _END_SECONDS
    while server.unfinished() and time.monotonic() < deadline:
        time.sleep(0.5)
    return not server.unfinished()


async def _no_changes() -> list[int]:
    return []


async def _all(
    server: PressedServer, seats: int, seconds: float, factor: float, seed: int, stock: bool
) -> dict[str, Any]:
    capacity = await _capacity(server, seats, seed)
    before = _finished(server)
    answers, sizes, changes, reader = await asyncio.gather(
        _arrivals(server, factor * capacity, seconds, seed),
        _memory(server, seconds),
        _no_changes() if stock else _changes(server, seconds),
        _stopped_reader(server, seconds),
    )
    drained = _drained(server)
    completed, left = answers.ended["completed"], answers.ended["left"] + answers.ended["gave_up"]
    # What clients that left were still given may have been finished; the stopped one's, too.
    counted = _finished(server) - before
    return {
        "capacity_per_second": round(capacity, 3),
        "arrivals_per_second": round(factor * capacity, 3),
        "seconds": seconds,
        **{name: answers.ended[name] for name in ("completed", "refused", "left", "gave_up")},
        "wrong": answers.wrong,
        "level_changes": dict(Counter(map(str, changes))),
        "stopped_client": reader,
        "finished_by_the_server": counted,
        "consistent": completed <= counted <= completed + left + 1,
        "nothing_left_over": drained,
        "resident_bytes": median([whole for whole, _ in sizes]),
        "growth": growth([whole for whole, _ in sizes]),
        "growth_of_the_api_process": growth([first for _, first in sizes]),
    }


def _finished(server: PressedServer) -> float:
    return server.sampled("vllm:request_success_total", 'finished_reason="length"')


def endure(
    server: PressedServer, seats: int, seconds: float, factor: float, seed: int, stock: bool
) -> dict[str, Any]:
    """What became of all requests and of the memory; ``factor`` times as many as it can answer."""
    return asyncio.run(_all(server, seats, seconds, factor, seed, stock))
