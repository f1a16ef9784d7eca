"""Requests with pauses through nginx, which keeps connections to the server and reuses them."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from leanmoe.errors import LeanMoEError
from leanmoe.process.ports import free_port
from leanmoe_bench.overload.pressed_server import MODEL, PressedServer

_CLIENTS = 100
LONGEST_PAUSE = 20.0
_CONFIGURATION = """
daemon off;
worker_processes 1;
error_log {folder}/error.log;
pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream leanmoe {{ server {server}; keepalive {clients}; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://leanmoe;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_next_upstream off;
      proxy_read_timeout 300;
    }}
  }}
}}
"""


@contextmanager
def _nginx(binary: Path, server: PressedServer, folder: Path) -> Iterator[str]:
    port, file = free_port(), folder / "nginx.conf"
    target = server.url.removeprefix("http://")
    file.write_text(
        _CONFIGURATION.format(folder=folder, server=target, port=port, clients=_CLIENTS)
    )
    process = subprocess.Popen([binary, "-p", folder, "-c", file], stderr=subprocess.DEVNULL)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/health", timeout=5.0, trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            raise LeanMoEError(f"nginx did not start; see {folder}/error.log")
        yield url
    finally:
        process.terminate()
        process.wait()


async def _client(url: str, requests: int, draw: random.Random, seen: Counter[str]) -> None:
    body = {"model": MODEL, "prompt": "water", "max_tokens": 1}
    async with httpx.AsyncClient(base_url=url, timeout=300.0, trust_env=False) as client:
        for _ in range(requests):
            await asyncio.sleep(draw.uniform(0, LONGEST_PAUSE))
            try:
                answer = await client.post("/v1/completions", json=body)
                seen[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                seen[type(error).__name__] += 1


async def _all(url: str, requests: int, seed: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    each = requests // _CLIENTS
    await asyncio.gather(
        *(_client(url, each, random.Random(seed + one), seen) for one in range(_CLIENTS))
    )
    return seen


def through_proxy(
    server: PressedServer, binary: Path, folder: Path, requests: int, seed: int
) -> dict[str, Any]:
    """The statuses that clients of nginx saw."""
    folder.mkdir(exist_ok=True)
    with _nginx(binary, server, folder) as url:
        seen = asyncio.run(_all(url, requests, seed))
    return {
        "requests": sum(seen.values()),
        "clients": _CLIENTS,
        "longest_pause_seconds": LONGEST_PAUSE,
        "statuses": dict(sorted(seen.items())),
    }
