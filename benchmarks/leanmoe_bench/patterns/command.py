"""``leanmoe bench patterns``: patterns of weight sparsity on the reference model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe_bench import options
from leanmoe_bench.kept_rows import Row
from leanmoe_bench.machine import environment
from leanmoe_bench.patterns.pattern_measure import finished, measure
from leanmoe_bench.patterns.pattern_page import table
from leanmoe_bench.patterns.pattern_runs import METHODS, calibration, every_run

# The calibration windows that ship, per domain.
_MOST_WINDOWS = 64


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_case(parser, "patterns to compare, as 16:32 (default: all)")
    parser.add_argument(
        "--method", choices=METHODS, help="rows of that method alone (default: of all)"
    )
    parser.add_argument(
        "--windows",
        type=int,
        default=_MOST_WINDOWS,
        help="calibration windows of each domain (default: all that ship)",
    )
    parser.add_argument(
        "--training-windows",
        type=int,
        default=_MOST_WINDOWS,
        help="windows of each domain to distil from (default: all that ship)",
    )
    parser.add_argument(
        "--steps", type=int, default=100, help="of training, where rows are distilled"
    )
    parser.add_argument(
        "--done", action="store_true", help="only the rows that --work holds, run nothing"
    )
    options.add_work(parser, "keep every finished row here, and go on from there")


def _run(args: argparse.Namespace) -> Result:
    data = calibration(_checked("--windows", args.windows))
    training = calibration(_checked("--training-windows", args.training_windows))
    compared = every_run(training, args.steps)
    runs = [run for run in compared if args.method in (None, run.method)]
    runs = [run for run in runs if not args.case or run.pattern in args.case]
    if not runs:
        by = f" by {args.method}" if args.method else ""
        raise InputError(f"no pattern {args.case[0]!r} is compared{by}; leave --case out for all")
    with options.work_folder(args.work) as work:
        rows = finished(runs, work) if args.done else list(_told(measure(runs, data, work)))
    return {"environment": environment(), "calibration": data, "rows": rows}


def _checked(option: str, windows: int) -> int:
    if not 1 <= windows <= _MOST_WINDOWS:
        raise InputError(
            f"{option} is {windows}, expected 1 to the {_MOST_WINDOWS} that ship per domain"
        )
    return windows


def _told(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        print(f"{row['pattern']}: done", file=sys.stderr, flush=True)
        yield row


def _show(result: Result) -> str:
    return table(result["rows"])


COMMAND = Command(
    name="bench patterns",
    help="What keeping N of every M weights costs beside the same share without groups.",
    example="leanmoe bench patterns --work ./patterns --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
