"""``leanmoe bench methods``: the comparison of the reference model, and its page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe_bench import options
from leanmoe_bench.machine import environment
from leanmoe_bench.methods.measure import finished, measure
from leanmoe_bench.methods.page import page
from leanmoe_bench.methods.runs import Calibration, Judging, Run, every_run, source_name

_DOMAINS = ("gen", "fr", "de", "es", "c", "man", "kjv", "math")
CALIBRATION = Calibration(
    mix=",".join(f"builtin:{domain}:4" for domain in _DOMAINS),
    domain="builtin:c:16",
    tasks=("builtin:arith:48", "builtin:language:48"),
)
JUDGING = Judging(
    data=",".join(f"builtin:{domain}:4" for domain in _DOMAINS),
    tasks="builtin:arith:100,builtin:facts:100,builtin:language:100",
)
_TASKS = " or ".join(f"`{task}`" for task in CALIBRATION.tasks)
_INTRO = f"""# Results on the reference model

`leanmoe bench methods --work DIR` made this page (with `--json`:
`benchmarks/results/methods.json`, where every row's command lines stand too).

**Which cut loses least is told by [Cuts](#cuts)**: from all text that ships, on 112 windows,
window by window against chance. The tables before it are smaller and older, and hold what that has
not: tasks, times, and methods that change weights.

- Perplexity and KLD: held-out windows `{JUDGING.data}`. Cells are changes against the full model,
  paired window by window, with 95 % intervals; "all" is their geometric mean. Two rows whose
  intervals overlap are "not told apart here", which does not make them alike: their windows are the
  same, and the interval of their difference is narrower.
- "top-1 same" is the [top-1 agreement](glossary.md#top-1-agreement) with the full model.
- Tasks: `{JUDGING.tasks}`: accuracy, and the interval of
  its difference from the full model's.
- Calibrated on: "mix" is `{CALIBRATION.mix}`,
  "domain" `{CALIBRATION.domain}`; EEP on the calibration split of a task, {_TASKS}.
- Seconds of wall time and of CPU time, one thread on a machine shared with other work, which moves
  the first: deciding and writing, without the score bundle where one is taken.
"""


def selected(cases: Sequence[str] | None) -> list[Run]:
    """All runs, or those of the methods named; ``InputError`` for a name that none has."""
    runs = list(every_run(CALIBRATION))
    known = sorted({run.method for run in runs})
    wrong = sorted(set(cases or ()) - set(known))
    if wrong:
        raise InputError(f"no method {wrong[0]!r} is compared; known: {', '.join(known)}")
    return [run for run in runs if not cases or run.method in cases]


def _compare(cases: Sequence[str] | None, work: Path, done: bool = False) -> list[dict[str, Any]]:
    """Rows as they are done, the full model's first; with ``done`` those that ``work`` holds."""
    if done:
        return finished(selected(cases), work)
    rows = []
    for row in measure(selected(cases), CALIBRATION, JUDGING, work):
        rows.append(row)
        print(f"{row['method']}, {row['budget']}: done", file=sys.stderr, flush=True)
    return rows


def _show(result: Result) -> str:
    """``docs/results.md``."""
    return page(result["methods"], _INTRO, source_name(CALIBRATION.domain))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_case(parser, "methods to compare (default: all)")
    parser.add_argument(
        "--done", action="store_true", help="only the rows that --work holds, run nothing"
    )
    options.add_work(parser, "keep every finished run here, and go on from there")


def _run(args: argparse.Namespace) -> Result:
    with options.work_folder(args.work) as work:
        return {"environment": environment(), "methods": _compare(args.case, work, args.done)}


COMMAND = Command(
    name="bench methods",
    help="Every pruning method on the reference model, by the same judge.",
    example="leanmoe bench methods --work ./methods --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
