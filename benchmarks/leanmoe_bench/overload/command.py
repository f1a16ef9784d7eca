"""``leanmoe bench overload``: a server under more than it can do, and behind a proxy."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from leanmoe.command import Command, Result
from leanmoe.errors import CheckError, InputError
from leanmoe_bench import options
from leanmoe_bench.machine import environment
from leanmoe_bench.overload.connections import STREAMS, crowd
from leanmoe_bench.overload.endurance import endure
from leanmoe_bench.overload.pressed_server import pressed_server
from leanmoe_bench.overload.proxy import through_proxy
from leanmoe_bench.reference import reference_model

_CASES = ("endurance", "connections", "proxy")
_SEATS = 16


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_case(parser, f"one of {', '.join(_CASES)}; may be repeated (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of endurance (default 10)")
    parser.add_argument(
        "--factor", type=float, default=1.2, help="arrivals over capacity in endurance (1.2)"
    )
    parser.add_argument(
        "--stock", action="store_true", help="endurance of stock vLLM, whose level never changes"
    )
    options.add_rounds(parser, "interleaved pairs of connections (default 8)")
    parser.add_argument(
        "--requests", type=int, default=2000, help="through the proxy (default 2000)"
    )
    parser.add_argument("--nginx", type=Path, metavar="FILE", help="its program, if not on PATH")
    options.add_work(parser, "keep the model and the logs here")


def _cases(args: argparse.Namespace) -> list[str]:
    asked: list[str] = args.case or list(_CASES)
    unknown = [one for one in asked if one not in _CASES]
    if unknown:
        raise InputError(f"no case {unknown[0]!r}; expected some of {', '.join(_CASES)}")
    if not (0.1 <= args.minutes <= 600 and 0.1 <= args.factor <= 10 and args.requests >= 100):
        raise InputError("expected --minutes 0.1 to 600, --factor 0.1 to 10, --requests from 100")
    return asked


def _nginx(given: Path | None) -> Path:
    found = shutil.which("nginx") if given is None else str(given)
    if found is None or not Path(found).is_file():
        raise InputError("the case proxy needs nginx: install it, or name it with --nginx FILE")
    return Path(found).resolve()


def _run(args: argparse.Namespace) -> Result:
    cases, found = _cases(args), {"environment": environment()}
    nginx = _nginx(args.nginx) if "proxy" in cases else None
    with options.work_folder(args.work) as work:
        model = reference_model(work)
        if "endurance" in cases:
            found["endurance"] = _endurance(model, work, args)
        if "connections" in cases:
            # All streams keep their places: one that waits for memory would hold up the probes.
            room = ("--kv-cache-memory-bytes", "1200000000")
            with pressed_server(model, work / "connections.log", STREAMS + 8, *room) as server:
                found["connections"] = crowd(server, options.rounds_of(args))
        if nginx is not None:
            with pressed_server(model, work / "proxy.log", _SEATS) as server:
                found["proxy"] = through_proxy(
                    server, nginx, work / "nginx", args.requests, args.seed
                )
    if problems := _problems(found):
        raise CheckError(problems[0], found)
    return found


def _endurance(model: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    log = work / "endurance.log"
    extra = () if args.stock else ("--client-seconds", "20")
    with pressed_server(model, log, _SEATS, *extra, stock=args.stock) as server:
        kind = {"engine": "stock vLLM" if args.stock else "leanmoe"}
        seconds = 60.0 * args.minutes
        return kind | endure(server, _SEATS, seconds, args.factor, args.seed, args.stock)


def _problems(found: Result) -> list[str]:
    problems = []
    if one := found.get("endurance"):
        if one["wrong"]:
            problems.append(f"{len(one['wrong'])} requests ended wrongly: {one['wrong'][0]}")
        if not (one["consistent"] and one["nothing_left_over"]):
            problems.append("the server's counters are not those of its clients")
    statuses = found.get("proxy", {}).get("statuses", {})
    if set(statuses) - {"200"}:
        problems.append(f"through nginx came {statuses}")
    return problems


def _show(found: Result) -> str:
    lines = []
    if one := found.get("endurance"):
        lines.append(
            f"{one['engine']}, {one['seconds']:.0f} s at {one['arrivals_per_second']} requests/s "
            f"(capacity {one['capacity_per_second']}): {one['completed']} completed, "
            f"{one['refused']} refused, {one['left']} left, {len(one['wrong'])} wrong; memory "
            f"{one['growth']:+.1%} from the second quarter to the last"
        )
    if one := found.get("connections"):
        lines.append(
            f"TTFT beside {one['idle']} idle connections: {one['alone']['ratio']:.3f} alone, "
            f"{one['beside_streams']['ratio']:.3f} beside {one['streams']} streams"
        )
    if one := found.get("proxy"):
        lines.append(f"{one['requests']} requests through nginx: {one['statuses']}")
    return "\n".join(lines)


COMMAND = Command(
    name="bench overload",
    help="Press a server past its capacity while clients leave, stop and change the level; count "
    "what idle connections cost; look for 502s behind nginx.",
    example="leanmoe bench overload --case endurance --minutes 10 --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
