"""``leanmoe bench goldens``: arguments, table, and failure where a case differs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from leanmoe.command import Command, Result
from leanmoe.errors import InputError, LeanMoEError
from leanmoe_bench import options
from leanmoe_bench.goldens.check import check_set


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", type=Path, metavar="DIR", help="the set to compare with")


def _run(args: argparse.Namespace) -> Result:
    if args.set is None:
        raise InputError("bench goldens compares with --set DIR; give the directory of a set")
    with options.work_folder() as work:
        rows = [asdict(row) for row in check_set(args.set, work)]
    wrong = [row for row in rows if row["wrong"]]
    for row in wrong:
        print(f"{row['case']}: {'; '.join(row['wrong'][:4])}", file=sys.stderr)
    if wrong:
        raise LeanMoEError(f"{len(wrong)} of {len(rows)} cases differ from {args.set}, see above")
    return {"goldens": rows}


def _show(result: Result) -> str:
    lines = [f"{'case':<42}{'equal':>7}{'close':>7}{'worst':>9}"]
    for row in result["goldens"]:
        lines.append(f"{row['case']:<42}{row['equal']:>7}{row['close']:>7}{row['worst']:>9.0e}")
        lines += [f"  {fault}" for fault in row["wrong"][:4]]
    return "\n".join(lines)


COMMAND = Command(
    name="bench goldens",
    help="Run every case of a golden set and compare what is decided with the published code's "
    "numbers.",
    example="leanmoe bench goldens --set tests/golden/data",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
