"""``leanmoe bench``: arguments and tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanmoe.command import Command, Result
from leanmoe.errors import InputError, LeanMoEError
from leanmoe.process.interrupts import stop_on_signals

if TYPE_CHECKING:
    from leanmoe_bench.engines.cases import Case

_MEASURES = ("decode_b1", "decode_b8", "decode_b32", "prefill_1024")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=[
            *("serve", "kernel", "soak", "drafts", "memory", "offline", "goldens", "methods"),
            *("load", "tools", "tune"),
        ],
        help="whole engines, the CPU kernel, many mixed requests against a recount, how many "
        "drafts are accepted, resident memory over time, how fast and within which memory "
        "experts are chosen, what methods decide against the published code's numbers, every "
        "pruning method on the reference model, whether the load test's figures are true, "
        "whether other load generators see the same, or which tiles of the experts kernel are the "
        "fastest for a model on this card",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="tune: the model's directory")
    parser.add_argument("--shape", default="M", help="M (default), F, R or tiny")
    parser.add_argument("--case", action="append", help="default: all that fit the shape")
    parser.add_argument("--measure", action="append", choices=_MEASURES, help="default: all")
    parser.add_argument("--rounds", type=int, default=8, help="interleaved pairs per measure")
    parser.add_argument(
        "--mode",
        choices=["compiled", "eager", "both"],
        default="both",
        help="torch.compile on, off, or one after the other (default)",
    )
    parser.add_argument("--concurrency", type=int, default=64, help="soak: clients (default 64)")
    parser.add_argument("--seconds", type=float, default=120.0, help="soak: how long (default 120)")
    parser.add_argument("--set", type=Path, metavar="DIR", help="goldens: the set to compare with")
    parser.add_argument("--tokens", type=int, help="offline: calibration tokens (default 2048)")
    parser.add_argument("--url", help="tools: a live server (default: one of known pace)")
    parser.add_argument("--guidellm", metavar="PROGRAM", help="tools: default guidellm, if any")
    parser.add_argument(
        "--done", action="store_true", help="methods: only the rows that --work holds, run nothing"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="tune: for the table")
    parser.add_argument(
        "--into-checkpoint", action="store_true", help="tune: MODEL itself carries the table"
    )
    parser.add_argument("--batch", metavar="1,2,4", help="tune: numbers of tokens (1 to 4096)")
    parser.add_argument("--tp", type=int, default=1, help="tune: ranks an expert is cut into")
    parser.add_argument("--limit", type=float, help="tune: seconds in all (default 1800)")
    parser.add_argument("--work", type=Path, help="keep checkpoints here (4.4 GB for M)")


def _run(args: argparse.Namespace) -> Result:
    if args.what == "goldens":
        return _goldens(args)
    if args.model is not None and args.what != "tune":
        raise InputError(f"bench {args.what} takes no MODEL, and {args.model} was given")
    from leanmoe_bench.shapes import SHAPES

    if args.shape not in SHAPES:
        raise InputError(f"no shape {args.shape!r}; expected one of {', '.join(SHAPES)}")
    if args.rounds < 2:
        raise InputError(f"--rounds is {args.rounds}, expected at least 2: one per engine order")
    if args.what == "tune":
        with stop_on_signals():
            return _tune(args)
    if args.what == "kernel":
        with stop_on_signals():
            return _kernel(args)
    with stop_on_signals(), tempfile.TemporaryDirectory(prefix="leanmoe-bench-") as temporary:
        work = args.work or Path(temporary)
        return _RUNS[args.what](args, work)


def _tune(args: argparse.Namespace) -> Result:
    from leanmoe_bench.tune.command import measure

    return measure(args)


def _goldens(args: argparse.Namespace) -> Result:
    from leanmoe_bench.goldens.check import check_set

    if args.set is None:
        raise InputError("bench goldens compares with --set DIR; give the directory of a set")
    with tempfile.TemporaryDirectory(prefix="leanmoe-goldens-") as work:
        rows = [asdict(row) for row in check_set(args.set, Path(work))]
    wrong = [row for row in rows if row["wrong"]]
    for row in wrong:
        print(f"{row['case']}: {'; '.join(row['wrong'][:4])}", file=sys.stderr)
    if wrong:
        raise LeanMoEError(f"{len(wrong)} of {len(rows)} cases differ from {args.set}, see above")
    return {"goldens": rows}


def _offline(args: argparse.Namespace, work: Path) -> Result:
    from leanmoe_bench.offline.command import measure
    from leanmoe_bench.serve import environment

    size = {"tiny": args.shape == "tiny", "tokens": args.tokens}
    rows = measure(args.case, work, rounds=args.rounds, seed=args.seed, **size)
    return {"environment": environment(), "offline": rows}


def _methods(args: argparse.Namespace, work: Path) -> Result:
    from leanmoe_bench.methods.command import compare
    from leanmoe_bench.serve import environment

    return {"environment": environment(), "methods": compare(args.case, work, args.done)}


def _load(args: argparse.Namespace, work: Path) -> Result:
    from leanmoe_bench.load.command import measure
    from leanmoe_bench.serve import environment

    return {"environment": environment(), "load": measure(args.seed)}


def _tools(args: argparse.Namespace, work: Path) -> Result:
    from leanmoe_bench.serve import environment
    from leanmoe_bench.tools import measure

    work.mkdir(parents=True, exist_ok=True)
    found = measure(work, args.rounds, args.url, args.guidellm)
    return {"environment": environment(), "tools": found}


def _memory(args: argparse.Namespace, work: Path) -> Result:
    from leanmoe_bench.memory import measure
    from leanmoe_bench.serve import environment
    from leanmoe_bench.shapes import SHAPES

    rows = measure(SHAPES[args.shape], work, args.rounds, args.seed)
    return {"environment": environment(), "memory": rows}


def _drafts(args: argparse.Namespace, work: Path) -> Result:
    from leanmoe_bench.drafts import measure
    from leanmoe_bench.serve import environment

    work.mkdir(parents=True, exist_ok=True)
    return {"environment": environment(), "drafts": measure(work, args.seed)}


def _soak(args: argparse.Namespace, work: Path) -> Result:
    from leanmoe_bench.serve import environment
    from leanmoe_bench.soak.report import soak

    if not (1 <= args.concurrency <= 1024 and 1 <= args.seconds <= 3600):
        raise InputError("a soak takes 1 to 1024 clients (--concurrency) and 1 to 3600 --seconds")
    work.mkdir(parents=True, exist_ok=True)
    found = soak(work, args.concurrency, args.seconds, args.seed)
    if found["errors"] or not found["exact"]:
        raise LeanMoEError(f"the soak failed: {found['errors'][:3]} {found['differences'][:3]}")
    return {"environment": environment(), "soak": found}


def _kernel(args: argparse.Namespace) -> Result:
    from leanmoe_bench.kernel.command import measure
    from leanmoe_bench.serve import environment
    from leanmoe_bench.shapes import SHAPES

    rows = measure(SHAPES[args.shape], args.rounds, args.seed)
    return {"environment": environment(), "rounds": args.rounds, "kernel": rows}


def _measure(args: argparse.Namespace, work: Path) -> Result:
    from leanmoe_bench.engines.measures import MEASURES
    from leanmoe_bench.serve import compare, environment, rows_to_json
    from leanmoe_bench.shapes import SHAPES

    final, cases = {}, _cases(args)
    for mode in ("compiled", "eager") if args.mode == "both" else (args.mode,):
        for row in compare(
            SHAPES[args.shape],
            work,
            eager=mode == "eager",
            cases=cases,
            measures=[m for m in MEASURES if m.name in (args.measure or _MEASURES)],
            rounds=args.rounds,
            seed=args.seed,
        ):
            # A row comes again, with more pairs, after the engines' second start.
            final[row.mode, row.case, row.measure] = row
            print(_line(asdict(row)), file=sys.stderr, flush=True)
    rows = rows_to_json(list(final.values()))
    return {"environment": environment(), "rounds": args.rounds, "rows": rows}


def _cases(args: argparse.Namespace) -> list[Case]:
    from leanmoe_bench.engines.cases import cases_for
    from leanmoe_bench.shapes import SHAPES

    shape = SHAPES[args.shape]
    fitting = {case.name: case for case in cases_for(shape.experts, shape.top_k)}
    for name in args.case or ():
        if name not in fitting:
            raise InputError(f"--case is {name!r}; shape {args.shape} has: {', '.join(fitting)}")
    return [fitting[name] for name in args.case or fitting]


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


_RUNS = {
    "load": _load,
    "tools": _tools,
    "methods": _methods,
    "drafts": _drafts,
    "memory": _memory,
    "offline": _offline,
    "serve": _measure,
    "soak": _soak,
}


def _show(result: Result) -> str:
    if "tune" in result:
        from leanmoe_bench.tune.command import show as show_tune

        return show_tune(result)
    if "tools" in result:
        from leanmoe_bench.tools import show as show_tools

        return show_tools(result["tools"])
    if "load" in result:
        from leanmoe_bench.load.command import show as show_load

        return show_load(result["load"])
    if "methods" in result:
        from leanmoe_bench.methods.command import show as show_methods

        return show_methods(result["methods"])
    if "goldens" in result:
        from leanmoe_bench.goldens.check import show as show_goldens

        return show_goldens(result["goldens"])
    if "offline" in result:
        from leanmoe_bench.offline.command import show as show_offline

        return show_offline(result["offline"])
    if "memory" in result:
        from leanmoe_bench.memory import show as show_memory

        return show_memory(result["memory"])
    if "drafts" in result:
        from leanmoe_bench.drafts import show as show_drafts

        return show_drafts(result["drafts"])
    if "soak" in result:
        from leanmoe_bench.soak.report import show

        return show(result["soak"])
    if "kernel" in result:
        return "\n".join(_kernel_line(row) for row in result["kernel"])
    return "\n".join([_HEAD, *(_line(row) for row in result["rows"])])


def _kernel_line(row: dict[str, Any]) -> str:
    ways = [
        f"{way} {row[way]['ratio']:.2f}x ({row[way]['low']:.2f} to {row[way]['high']:.2f})"
        for way in ("redirect", "compact")
    ]
    what = f"{row['shape']:6}{row['rows']:>5} rows  {row['skipped']:>4.0%} skipped"
    return "  ".join([what, f"full {row['full_ms']:9.2f} ms", *ways])


COMMAND = Command(
    name="bench",
    help="Measure LeanMoE beside stock vLLM: same flags, interleaved, ratios with spread.",
    example="leanmoe bench serve --shape M --case median --measure decode_b1 --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
