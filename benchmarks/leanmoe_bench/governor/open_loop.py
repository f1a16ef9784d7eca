"""A governed server, and clients in an open loop that time each answer's tokens.

Prompts are token ids: the shapes have no tokenizer.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

from leanmoe.process.local_server import LocalServer
from leanmoe.wire import ADMIN_HEADER, CONTROL_PATH, HISTORY_PATH, READY_PATH

PROMPT, ANSWER, SEATS = 48, 24, 8
_NAME = "governed"
_ADMIN_KEY = secrets.token_hex(16)  # of this run's own servers
# The goals in times of what one client alone sees.
_TTFT_TIMES, _ITL_TIMES = 5.0, 3.0
_MOST_SECONDS = 600.0


@dataclass(frozen=True)
class Load:
    """What is sent, and for how long."""

    vocabulary: int
    seconds: float
    seed: int


@dataclass(frozen=True)
class Timed:
    """Seconds from sending to the first token and the mean between tokens; none of a failure."""

    ttft: float | None
    itl: float


@dataclass(frozen=True)
class Goals:
    """Milliseconds that an answer must keep to be good."""

    ttft_ms: float
    itl_ms: float

    def met_by(self, answer: Timed) -> bool:
        ttft = answer.ttft
        return ttft is not None and ttft * 1e3 <= self.ttft_ms and answer.itl * 1e3 <= self.itl_ms


class GovernedServer(LocalServer):
    """``leanmoe serve --governor act`` on loopback."""

    def tell(self, mode: str) -> None:
        """Hold or act, from an idle server and a fresh governor."""
        self._administer("PUT", CONTROL_PATH, {"level": 0, "governor": mode})

    def _administer(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", ADMIN_HEADER: _ADMIN_KEY}
        request = urllib.request.Request(self.url + path, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=120.0) as answer:
            return json.load(answer)

    def level(self) -> float:
        """The level of requests that name none."""
        shown = json.loads(self.get(CONTROL_PATH, timeout=120.0))
        governed = shown["governor"]["level"]
        return float(shown["level"] if governed is None else governed)

    def moves(self) -> int:
        """The governor's moves since somebody else changed something."""
        changes = self._administer("GET", HISTORY_PATH)["changes"]
        causes = [change["cause"] for change in changes]
        others = [i for i, cause in enumerate(causes) if cause != "governor"]
        return min(others, default=len(causes))

    def calibrate(
        self, load: Load, ttft_ms: float | None, itl_ms: float | None
    ) -> tuple[Goals, float]:
        """Goals from one client alone, and answers per second with all seats taken, at level 0."""
        self.tell("hold")
        asyncio.run(self._closed(load, clients=1, each=2))
        alone = asyncio.run(self._closed(load, clients=1, each=4))
        began = time.monotonic()
        full = asyncio.run(self._closed(load, clients=SEATS, each=4))
        capacity = len(full) / (time.monotonic() - began)
        busy = fmean(one.itl for one in full)
        # Alone or with all seats taken, whichever takes longer: goals that level 0 keeps then.
        itl = 1.15 * busy if itl_ms is None else itl_ms / 1e3
        first = fmean(one.ttft or 0.0 for one in alone)
        ttft = max(_TTFT_TIMES * first, 4 * busy) if ttft_ms is None else ttft_ms / 1e3
        return Goals(ttft * 1e3, itl * 1e3), capacity

    def open_loop(self, load: Load, rate: float, seed: int) -> list[Timed]:
        """Poisson arrivals for ``load.seconds``; returns when all were answered."""
        return asyncio.run(self._open(load, rate, random.Random(seed)))

    async def _open(self, load: Load, rate: float, chance: random.Random) -> list[Timed]:
        tasks, at = [], 0.0
        began = time.monotonic()
        while (at := at + chance.expovariate(rate)) < load.seconds:
            prompt = _prompt(load, chance)
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            tasks.append(asyncio.create_task(self._ask(prompt)))
        return list(await asyncio.gather(*tasks))

    async def _closed(self, load: Load, clients: int, each: int) -> list[Timed]:
        async def one(seed: int) -> list[Timed]:
            chance = random.Random(seed)
            return [await self._ask(_prompt(load, chance)) for _ in range(each)]

        found = await asyncio.gather(*(one(load.seed + 1000 + i) for i in range(clients)))
        return [timed for held in found for timed in held]

    async def _ask(self, prompt: list[int]) -> Timed:
        began = time.monotonic()
        try:
            times = await asyncio.wait_for(self._token_times(prompt), _MOST_SECONDS)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return Timed(None, 0.0)
        if not times:
            return Timed(None, 0.0)
        gaps = [after - before for before, after in pairwise(times)]
        return Timed(times[0] - began, fmean(gaps) if gaps else 0.0)

    async def _token_times(self, prompt: list[int]) -> list[float]:
        """When each event with a token of one streamed completion came."""
        body = json.dumps(_completion(prompt)).encode()
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        times = []
        try:
            writer.write(head.encode() + body)
            while line := await reader.readline():
                if line.startswith(b"data: {") and b'"token_ids":[' in line.replace(b" ", b""):
                    times.append(time.monotonic())
        finally:
            writer.close()
        return times


def _completion(prompt: list[int]) -> dict[str, Any]:
    return {
        "model": _NAME,
        "prompt": prompt,
        "max_tokens": ANSWER,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
    }


def _prompt(load: Load, chance: random.Random) -> list[int]:
    return [chance.randrange(3, load.vocabulary) for _ in range(PROMPT)]


@contextmanager
def governed_server(model: Path, log: Path, goals: Goals) -> Iterator[GovernedServer]:
    """Started and ready, the governor held until it is told to act."""
    arguments = [
        *("-m", "leanmoe.cli", "serve", str(model), "--served-model-name", _NAME),
        *("--skip-tokenizer-init", "--max-model-len", "128", "--max-num-seqs", str(SEATS)),
        *("--enforce-eager", "--kv-cache-memory-bytes", "300000000"),
        *("--governor", "act", "--governor-max-level", "1", "--governor-dwell", "8"),
        *("--slo-ttft", f"{goals.ttft_ms:g}", "--slo-itl", f"{goals.itl_ms:g}"),
    ]
    keys = {"LEANMOE_ADMIN_KEY": _ADMIN_KEY}
    with GovernedServer(_NAME, arguments, log, settings=keys) as server:
        server.wait(READY_PATH)
        yield server
