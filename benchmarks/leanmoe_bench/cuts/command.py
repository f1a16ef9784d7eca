"""``leanmoe bench cuts``: layers chosen together, layers chosen alone, and chance."""

from __future__ import annotations

import argparse
import sys

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe_bench import options
from leanmoe_bench.cuts.cut_measure import Text, finished, measure
from leanmoe_bench.cuts.cut_page import tables
from leanmoe_bench.cuts.cut_runs import (
    DOMAINS,
    HEALED_AT_ONCE,
    KEEPS,
    Run,
    every_run,
    windows_of,
)
from leanmoe_bench.machine import environment

# The windows that ship, per domain: for calibration, and the fewest that one holds out.
_MOST_WINDOWS, _HELD_OUT = 64, 14
# All of the calibration windows once.
_MOST_STEPS = _MOST_WINDOWS * len(DOMAINS) // HEALED_AT_ONCE


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_case(parser, "methods to compare, as 'naee, spread' (default: all)")
    parser.add_argument(
        "--model", choices=tuple(KEEPS), default="mixtral", help="reference model (default mixtral)"
    )
    parser.add_argument(
        "--windows",
        type=int,
        default=_MOST_WINDOWS,
        help="calibration windows of each domain (default: all that ship)",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=_HELD_OUT,
        help=f"held-out windows of each domain (default {_HELD_OUT}, as many as all have)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=0,
        help="decide every scored cut as many times more, each from another part of the windows",
    )
    parser.add_argument(
        "--heal", type=int, default=0, metavar="STEPS", help="distil the first cut's routers, too"
    )
    parser.add_argument("--keep", type=int, help="only this number of experts")
    parser.add_argument(
        "--done", action="store_true", help="only the rows that --work holds, run nothing"
    )
    options.add_work(parser, "keep every finished row here, and go on from there")


def _selected(args: argparse.Namespace) -> list[Run]:
    if args.keep not in (None, *KEEPS[args.model]):
        known = " and ".join(map(str, KEEPS[args.model]))
        raise InputError(f"--keep is {args.keep}, compared are {known} of {args.model}")
    every = [
        run
        for run in every_run(args.model, args.samples, args.heal)
        if args.keep in (None, run.keep)
    ]
    runs = [run for run in every if not args.case or run.method in args.case]
    if not runs:
        raise InputError(f"no method {args.case[0]!r} is compared; leave --case out for all")
    return runs


def _check_windows(option: str, windows: int, most: int) -> None:
    if not 1 <= windows <= most:
        raise InputError(f"{option} is {windows}, expected 1 to the {most} that ship per domain")


def _run(args: argparse.Namespace) -> Result:
    _check_windows("--windows", args.windows, _MOST_WINDOWS)
    _check_windows("--held-out", args.held_out, _HELD_OUT)
    if not 0 <= args.samples <= args.windows:
        raise InputError(f"--samples is {args.samples}, expected 0 to --windows ({args.windows})")
    if not 0 <= args.heal <= _MOST_STEPS:
        raise InputError(f"--heal is {args.heal}, expected 0 to {_MOST_STEPS} steps")
    runs, text = _selected(args), Text(args.windows, args.held_out, args.samples)
    with options.work_folder(args.work) as work:
        rows = finished(runs, args.held_out, work) if args.done else []
        if not args.done:
            for row in measure(args.model, runs, text, work):
                rows.append(row)
                print(f"{row['method']}: done", file=sys.stderr, flush=True)
    data = {name: windows_of(getattr(text, name)) for name in ("windows", "held_out")}
    told = {"model": args.model, "calibration": data["windows"], "held_out": data["held_out"]}
    return {"environment": environment(), **told, "rows": rows}


def _show(result: Result) -> str:
    return tables(result["rows"])


COMMAND = Command(
    name="bench cuts",
    help="Cuts whose layers are chosen together, beside those chosen alone and by chance.",
    example="leanmoe bench cuts --work ./cuts --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
