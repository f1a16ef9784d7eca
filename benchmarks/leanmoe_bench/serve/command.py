"""``leanmoe bench serve``: arguments and table."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe_bench import options
from leanmoe_bench.engines.cases import Case, cases_for
from leanmoe_bench.engines.measures import MEASURES, Row
from leanmoe_bench.machine import environment
from leanmoe_bench.serve.comparison import compare
from leanmoe_bench.shapes import Shape

_MEASURES = [measure.name for measure in MEASURES]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_shape(parser)
    options.add_case(parser, "default: all that fit the shape")
    parser.add_argument("--measure", action="append", choices=_MEASURES, help="default: all")
    options.add_rounds(parser, "interleaved pairs per measure")
    parser.add_argument(
        "--mode",
        choices=["compiled", "eager", "both"],
        default="both",
        help="torch.compile on, off, or one after the other (default)",
    )
    options.add_work(parser, "keep checkpoints here (4.4 GB for M)")


def _run(args: argparse.Namespace) -> Result:
    shape, rounds = options.shape_of(args), options.rounds_of(args)
    cases = _cases(shape, args.case)
    with options.work_folder(args.work) as work:
        rows = _rows(args, shape, cases, rounds, work)
    return {"environment": environment(), "rounds": rounds, "rows": [asdict(row) for row in rows]}


def _rows(
    args: argparse.Namespace, shape: Shape, cases: list[Case], rounds: int, work: Path
) -> list[Row]:
    final: dict[tuple[str, str, str], Row] = {}
    for mode in ("compiled", "eager") if args.mode == "both" else (args.mode,):
        for row in compare(
            shape,
            work,
            eager=mode == "eager",
            cases=cases,
            measures=[m for m in MEASURES if m.name in (args.measure or _MEASURES)],
            rounds=rounds,
            seed=args.seed,
        ):
            # A row comes again, with more pairs, after the engines' second start.
            final[row.mode, row.case, row.measure] = row
            print(_line(asdict(row)), file=sys.stderr, flush=True)
    return list(final.values())


def _cases(shape: Shape, names: list[str] | None) -> list[Case]:
    fitting = {case.name: case for case in cases_for(shape.experts, shape.top_k)}
    for name in names or ():
        if name not in fitting:
            raise InputError(f"--case is {name!r}; shape {shape.name} has: {', '.join(fitting)}")
    return [fitting[name] for name in names or fitting]


_HEAD = (
    f"{'shape':6}{'mode':10}{'case':17}{'measure':14}{'ratio':>7}  {'spread':15}"
    f"{'ideal':>6}  {'bytes, ops':12}{'skipped':>7}{'read':>7}{'ours':>10}{'stock':>10}  tokens/s"
)


def _line(row: dict[str, object]) -> str:
    spread = f"{row['low']:.2f} to {row['high']:.2f}"
    ideals = f"{row['ideal_bytes']:.2f}, {row['ideal_operations']:.2f}"
    return (
        f"{row['shape']:6}{row['mode']:10}{row['case']:17}{row['measure']:14}"
        f"{row['ratio']:>7.2f}  {spread:15}{row['ideal']:>6.2f}  {ideals:12}"
        f"{row['skip_rate']:>7.1%}{row['distinct']:>7.1f}"
        f"{row['ours']:>10.1f}{row['stock']:>10.1f}"
    )


def _show(result: Result) -> str:
    return "\n".join([_HEAD, *(_line(row) for row in result["rows"])])


COMMAND = Command(
    name="bench serve",
    help="Tokens per second of ours and of stock vLLM: one run, interleaved, ratios with spread.",
    example="leanmoe bench serve --shape M --case median --measure decode_b1 --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
