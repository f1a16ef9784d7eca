"""``leanmoe bench tools``: arguments and table."""

from __future__ import annotations

import argparse

from leanmoe.command import Command, Result
from leanmoe_bench import options
from leanmoe_bench.machine import environment
from leanmoe_bench.tools.turns import measure


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_rounds(parser, "turns of every tool")
    parser.add_argument("--url", help="a live server (default: one of known pace)")
    parser.add_argument("--guidellm", metavar="PROGRAM", help="default guidellm, if any")
    options.add_work(parser, "keep prompts and the tools' own reports here")


def _run(args: argparse.Namespace) -> Result:
    rounds = options.rounds_of(args)
    with options.work_folder(args.work) as work:
        found = measure(work, rounds, args.url, args.guidellm)
    return {"environment": environment(), "tools": found}


def _show(result: Result) -> str:
    """A table of ratios."""
    found = result["tools"]
    lines = [f"{'tool':10}{'figure':20}{'ours':>10}{'theirs':>10}{'ratio':>8}  over the rounds"]
    lines += [
        f"{row['tool']:10}{row['figure']:20}{row['ours']:>10.2f}{row['theirs']:>10.2f}"
        f"{row['ratio']:>8.3f}  {row['low']:.3f} to {row['high']:.3f}"
        for row in found["rows"]
    ]
    if found["against_server"]:
        lines += ["", f"{'tool':10}{'figure':20}{'client':>10}{'server':>10}{'ratio':>8}  its own"]
    lines += [
        f"{row['tool']:10}{row['figure']:20}{row['client']:>10.2f}{row['server']:>10.2f}"
        f"{row['ratio']:>8.3f}  {row['low']:.3f} to {row['high']:.3f}"
        for row in found["against_server"]
    ]
    lines += [f"left out, as it is not installed: {name}" for name in found["left_out"]]
    return "\n".join(lines)


COMMAND = Command(
    name="bench tools",
    help="Whether other load generators see on one server what leanmoe loadtest sees.",
    example="leanmoe bench tools --rounds 3 --guidellm guidellm/bin/guidellm",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
