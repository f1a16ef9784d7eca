"""Time to the first token beside hundreds of connections, idle ones and streaming ones."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any

import httpx

from leanmoe_bench.overload.pressed_server import MODEL, PressedServer

IDLE, STREAMS = 256, 64
# Beside the streams a step of the engine takes twenty times as long.
_PROBES, _PROBES_BESIDE = 12, 4
_STREAM_TOKENS = 96


def _body(tokens: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": "the water of the river",
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }


async def _first_token_ms(client: httpx.AsyncClient) -> float:
    started = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=_body(2)) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                return (time.perf_counter() - started) * 1000
    raise RuntimeError("a stream had no token")


async def _idle(url: str, count: int) -> list[asyncio.StreamWriter]:
    """Connections that asked something once and stay open."""
    host, port = url.removeprefix("http://").split(":")
    writers = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writers.append(writer)
    return writers


async def _streaming(client: httpx.AsyncClient, until: asyncio.Event) -> None:
    """One long answer after another."""
    while not until.is_set():
        async with client.stream("POST", "/v1/completions", json=_body(_STREAM_TOKENS)) as answer:
            async for _ in answer.aiter_lines():
                if until.is_set():
                    return


async def _round(client: httpx.AsyncClient, url: str, probes: int) -> tuple[float, float]:
    without = [await _first_token_ms(client) for _ in range(probes)]
    writers = await _idle(url, IDLE)
    beside = [await _first_token_ms(client) for _ in range(probes)]
    for writer in writers:
        writer.close()
    return median(without), median(beside)


async def _rounds(client: httpx.AsyncClient, url: str, rounds: int, probes: int) -> dict[str, Any]:
    pairs = [await _round(client, url, probes) for _ in range(rounds)]
    ratios = sorted(beside / without for without, beside in pairs)
    return {
        "rounds": rounds,
        "ttft_ms_without_idle": round(median(without for without, _ in pairs), 2),
        "ttft_ms_beside_idle": round(median(beside for _, beside in pairs), 2),
        "ratio": round(median(ratios), 4),
        "ratio_from_to": [round(ratios[0], 4), round(ratios[-1], 4)],
    }


async def _all(server: PressedServer, rounds: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.url, timeout=300.0, limits=limits, trust_env=False
    ) as client:
        alone = await _rounds(client, server.url, rounds, _PROBES)
        over = asyncio.Event()
        streams = [asyncio.create_task(_streaming(client, over)) for _ in range(STREAMS)]
        while server.sampled("vllm:num_requests_running") < STREAMS:
            await asyncio.sleep(0.2)
        beside = await _rounds(client, server.url, rounds, _PROBES_BESIDE)
        over.set()
        await asyncio.gather(*streams)
    return {"idle": IDLE, "streams": STREAMS, "alone": alone, "beside_streams": beside}


def crowd(server: PressedServer, rounds: int) -> dict[str, Any]:
    """TTFT with and without 256 idle connections, interleaved; alone and beside 64 streams."""
    return asyncio.run(_all(server, rounds))
