"""``leanmoe bench hostile``: a running server under requests that mean harm or make no sense."""

from __future__ import annotations

import argparse
import os

import httpx

from leanmoe.command import Command, Result
from leanmoe.errors import CheckError, InputError
from leanmoe_bench.hostile.ammunition import shots
from leanmoe_bench.hostile.barrage import barrage

_KEY, _ADMIN_KEY = "LEANMOE_API_KEY", "LEANMOE_ADMIN_KEY"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="a server of your own, as http://host:port")
    parser.add_argument("--requests", type=int, default=2000, help="how many (default 2000)")


def _model(url: str, key: str) -> str:
    try:
        answer = httpx.get(
            f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=30.0
        )
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError) as error:
        raise InputError(f"{url} does not name its model: {error!r}") from None


def _run(args: argparse.Namespace) -> Result:
    if not 1 <= args.requests <= 1_000_000:
        raise InputError(f"--requests is {args.requests}, expected 1 to 1000000")
    url = args.url.rstrip("/")
    key, admin_key = os.environ.get(_KEY, "unused"), os.environ.get(_ADMIN_KEY, "unused")
    model = _model(url, key)
    damage = barrage(url, shots(args.requests, args.seed, model, key, admin_key))
    statuses = {str(status): count for status, count in sorted(damage.statuses.items())}
    result = {
        "requests": args.requests,
        "seed": args.seed,
        "statuses": statuses,
        "faults": damage.faults,
        "healthy": damage.healthy,
    }
    if damage.faults or not damage.healthy:
        raise CheckError(
            f"{len(damage.faults)} of {args.requests} answers should not have been, and the server "
            f"is {'healthy' if damage.healthy else 'NOT healthy'} afterwards",
            result,
        )
    return result


def _show(result: Result) -> str:
    told = ", ".join(f"{count} of {status}" for status, count in result["statuses"].items())
    faults = "".join(f"\n  {one}" for one in result["faults"][:20])
    return f"{result['requests']} requests: {told}; {len(result['faults'])} faults{faults}"


COMMAND = Command(
    name="bench hostile",
    help="Send requests that mean harm or make no sense to a running server: none may get a "
    f"status of 5xx, a path or a traceback. Keys come from {_KEY} and {_ADMIN_KEY}.",
    example="leanmoe bench hostile http://127.0.0.1:8000 --requests 2000 --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
