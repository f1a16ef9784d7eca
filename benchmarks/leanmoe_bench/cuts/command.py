"""``leanmoe bench cuts``: layers chosen together, layers chosen alone, and chance."""

from __future__ import annotations

import argparse
import sys

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe_bench import options
from leanmoe_bench.cuts.cut_measure import finished, measure
from leanmoe_bench.cuts.cut_page import tables
from leanmoe_bench.cuts.cut_runs import HELD_OUT, KEEPS, Run, calibration, every_run
from leanmoe_bench.machine import environment

# The calibration windows that ship, per domain.
_MOST_WINDOWS = 64


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
        "--done", action="store_true", help="only the rows that --work holds, run nothing"
    )
    options.add_work(parser, "keep every finished row here, and go on from there")


def _selected(args: argparse.Namespace) -> list[Run]:
    runs = [run for run in every_run(args.model) if not args.case or run.method in args.case]
    if not runs:
        raise InputError(f"no method {args.case[0]!r} is compared; leave --case out for all")
    return runs


def _run(args: argparse.Namespace) -> Result:
    if not 1 <= args.windows <= _MOST_WINDOWS:
        raise InputError(
            f"--windows is {args.windows}, expected 1 to the {_MOST_WINDOWS} that ship per domain"
        )
    runs, data = _selected(args), calibration(args.windows)
    with options.work_folder(args.work) as work:
        rows = finished(runs, work) if args.done else []
        if not args.done:
            for row in measure(args.model, runs, data, work):
                rows.append(row)
                print(f"{row['method']}: done", file=sys.stderr, flush=True)
    told = {"model": args.model, "calibration": data, "held_out": HELD_OUT}
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
