"""``leanmoe bench http``: what our layer over vLLM's own server costs: tokens, waiting, starting.

Two real servers of the same model and flags, ours at level 0. They are asked in turns; while one
is, the other idles.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from leanmoe.command import Command, Result
from leanmoe.process.local_server import LocalServer
from leanmoe.wire import HEALTH_PATH, READY_PATH
from leanmoe_bench import options
from leanmoe_bench.machine import environment
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.reference import reference_model
from leanmoe_server.keys.key_source import ADMIN_KEY_VARIABLE

_STOCK = ("-m", "vllm.entrypoints.launchers.api_server.entry", "--model")
_OURS = ("-m", "leanmoe.cli", "serve")
_FLAGS = (
    *("--served-model-name", "bench", "--max-model-len", "1024", "--max-num-seqs", "32"),
    *("--kv-cache-memory-bytes", "500000000"),
)
_STREAMS, _TOKENS, _ALONE = 16, 48, 10
_QUESTION = "Tell me in a few words how people measured time before there were clocks."
_STARTS = 3

Measured = dict[str, list[float]]
Ask = Callable[[LocalServer], Coroutine[Any, Any, float]]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_rounds(parser, "pairs of measurements (default 8)")
    parser.add_argument(
        "--starts", type=int, default=_STARTS, help=f"pairs of timed starts (default {_STARTS})"
    )
    options.add_work(parser, "keep the model here")


def _run(args: argparse.Namespace) -> Result:
    rounds = options.rounds_of(args)
    with options.work_folder(args.work) as work:
        model = reference_model(work)
        rows = [_row("start", "s", _starts(model, work, args.starts))] if args.starts else []
        with ExitStack() as stack:
            servers = {
                name: stack.enter_context(_server(name, model, work)) for name in ("stock", "ours")
            }
            rows += _asked(servers, rounds)
    return {"environment": environment(), "rows": rows}


@contextmanager
def _server(name: str, model: Path, work: Path) -> Iterator[LocalServer]:
    """Started and ready; ours checks its files, its layers and its keys first, as it does."""
    ours = name == "ours"
    arguments = [*(_OURS if ours else _STOCK), str(model), *_FLAGS]
    settings = {ADMIN_KEY_VARIABLE: secrets.token_urlsafe()} if ours else {}
    log = work / f"http-{name}.log"
    with LocalServer(name, arguments, log, plugin=ours, settings=settings) as server:
        server.wait(READY_PATH if ours else HEALTH_PATH)
        yield server


def _starts(model: Path, work: Path, pairs: int) -> Measured:
    """Seconds from the command to the first answer of the page that says ready."""
    found: Measured = {"stock": [], "ours": []}
    for name in found:  # what is compiled and read once is not part of a start
        with _server(name, model, work):
            pass
    for turn in range(pairs):
        for name in sorted(found, reverse=turn % 2 == 1):
            began = time.monotonic()
            with _server(name, model, work):
                found[name].append(time.monotonic() - began)
    return found


def _asked(servers: Mapping[str, LocalServer], rounds: int) -> list[dict[str, Any]]:
    measures: dict[str, tuple[str, Ask]] = {
        f"streams_{_STREAMS}": ("tokens/s", _throughput),
        "ttft": ("ms", _first_token),
    }
    rows = []
    for measure, (unit, ask) in measures.items():
        found: Measured = {name: [] for name in servers}
        for turn in range(rounds + 1):
            for name in sorted(servers, reverse=turn % 2 == 1):
                value = asyncio.run(ask(servers[name]))
                if turn:  # the first warms up
                    found[name].append(value)
        rows.append(_row(measure, unit, found))
    return rows


async def _throughput(server: LocalServer) -> float:
    """Tokens per second of streams that run at once."""
    began = time.monotonic()
    async with _client(server) as client:
        await asyncio.gather(*(_stream(client, _TOKENS) for _ in range(_STREAMS)))
    return _STREAMS * _TOKENS / (time.monotonic() - began)


async def _first_token(server: LocalServer) -> float:
    """Median milliseconds to the first event of an answer, one request after another."""
    async with _client(server) as client:
        return 1000 * median([await _stream(client, 4) for _ in range(_ALONE)])


def _client(server: LocalServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=300.0, trust_env=False)


async def _stream(client: httpx.AsyncClient, tokens: int) -> float:
    """One streamed answer, read to its end; seconds to its first event."""
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": f"{secrets.token_hex(4)} {_QUESTION}"}],
        **{"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, "stream": True},
        "stream_options": {"include_usage": True},
    }
    began, first = time.monotonic(), 0.0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and not first:
                first = time.monotonic() - began
    return first


def _row(measure: str, unit: str, found: Measured) -> dict[str, Any]:
    """The ratio of what both showed in one turn, ours to stock, and the middle difference."""
    ratio = paired_ratio(found["ours"], found["stock"])
    differences = [a - b for a, b in zip(found["ours"], found["stock"], strict=True)]
    return {
        "case": "level0",
        "measure": measure,
        "unit": unit,
        "ours": median(found["ours"]),
        "stock": median(found["stock"]),
        "ratio": round(ratio.middle, 4),
        "low": round(ratio.low, 4),
        "high": round(ratio.high, 4),
        "difference": median(differences),
    }


def _show(result: Result) -> str:
    lines = [f"{'measure':12}{'stock':>10}{'ours':>10}{'ratio':>8}  interval"]
    for row in result["rows"]:
        lines.append(
            f"{row['measure']:12}{row['stock']:>10.1f}{row['ours']:>10.1f}{row['ratio']:>8.3f}"
            f"  {row['low']:.3f} to {row['high']:.3f}  {row['unit']}"
        )
    return "\n".join(lines)


COMMAND = Command(
    name="bench http",
    help="What our layer over vLLM's own server costs: tokens per second of streams, time to the "
    "first token, time from the command to ready. Level 0, the reference model.",
    example="leanmoe bench http --rounds 8 --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
