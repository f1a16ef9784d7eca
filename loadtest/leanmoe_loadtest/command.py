"""``leanmoe loadtest``: streamed chat load on a running server, and what its users felt."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any
from urllib.parse import urlsplit

import urllib3

from leanmoe.command import Command, Result
from leanmoe.errors import InputError, LeanMoEError
from leanmoe.interrupts import stop_on_signals
from leanmoe_loadtest.locust_process import Load, run_load
from leanmoe_loadtest.stats import LATENCIES, PERCENTILES, summarise

_API_KEY_VARIABLE = "OPENAI_API_KEY"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the server, as http://host:port")
    parser.add_argument("--users", type=int, default=4, help="requests under way at a time")
    parser.add_argument("--duration", type=int, default=30, help="seconds to send requests for")
    parser.add_argument("--model", help="model name (default: the first the server lists)")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer, in tokens")
    parser.add_argument("--max-requests", type=int, default=10_000, help="stop after this many")
    parser.add_argument("--request-seconds", type=float, default=120.0, help="limit per request")
    parser.add_argument(
        "--ignore-eos", action="store_true", help="answers of exactly --max-tokens (vLLM servers)"
    )


def _check(args: argparse.Namespace) -> str:
    limits = {
        "--users": (args.users, 10_000),
        "--duration": (args.duration, 86_400),
        "--max-tokens": (args.max_tokens, 1_000_000),
        "--max-requests": (args.max_requests, 10_000_000),
        "--request-seconds": (args.request_seconds, 86_400),
    }
    for name, (value, most) in limits.items():
        if not 1 <= value <= most:
            raise InputError(f"{name} is {value}, expected a number from 1 to {most}")
    if not _is_http(args.url):
        raise InputError(f"URL is {args.url!r}, expected http://host:port")
    return str(args.url).rstrip("/").removesuffix("/v1")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _first_model(url: str) -> str:
    key = os.environ.get(_API_KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = urllib3.request(
            "GET", f"{url}/v1/models", headers=headers, timeout=10.0, retries=False
        )
    except urllib3.exceptions.HTTPError as error:
        raise InputError(f"no server answers at {url} ({type(error).__name__})") from None
    if answer.status == 401:
        raise InputError(f"{url} asks for an API key; put it into {_API_KEY_VARIABLE}")
    try:
        return str(json.loads(answer.data)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise InputError(
            f"{url}/v1/models answered HTTP {answer.status} without a model; is it ready? "
            "Name one with --model"
        ) from None


def _run(args: argparse.Namespace) -> Result:
    url = _check(args)
    load = Load(
        url=url,
        model=args.model or _first_model(url),
        users=args.users,
        duration_seconds=args.duration,
        max_tokens=args.max_tokens,
        max_requests=args.max_requests,
        request_seconds=args.request_seconds,
        ignore_eos=args.ignore_eos,
        seed=args.seed,
    )
    with stop_on_signals():
        summary = summarise(run_load(load))
    if not summary["requests"]["completed"]:
        raise LeanMoEError(
            f"no request to {url} completed: {summary['requests']}, errors {summary['errors']}"
        )
    return {"url": url, "model": load.model, "users": load.users, **summary}


def _row(name: str, values: dict[str, float] | None) -> str:
    cells = [values[f"p{p}"] if values else None for p in PERCENTILES]
    return f"{name:<6}" + "".join(f"{'-' if c is None else f'{c:.1f}':>10}" for c in cells)


def _show(result: dict[str, Any]) -> str:
    requests = result["requests"]
    lines = [
        f"{result['model']} at {result['url']}, {result['users']} users",
        f"requests: {requests['completed']} completed, {requests['failed']} failed, "
        f"{requests['unfinished']} unfinished",
        f"output: {result['output_tokens_per_second']:.1f} tokens/s, "
        f"{result['requests_per_second']:.2f} requests/s over {result['measured_seconds']:.1f} s",
        "",
        f"{'ms':<6}" + "".join(f"{f'p{p}':>10}" for p in PERCENTILES),
        *(_row(name.removesuffix("_ms").upper(), result[name]) for name in LATENCIES),
        *(f"error x{count}: {error}" for error, count in result["errors"].items()),
    ]
    return "\n".join(lines)


COMMAND = Command(
    name="loadtest",
    help="Stream chat completions from a running server with Locust and report TTFT, ITL, TPOT "
    "and throughput. The key in OPENAI_API_KEY, if any, is sent to the URL.",
    example="leanmoe loadtest http://127.0.0.1:8000 --users 8 --duration 60",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
