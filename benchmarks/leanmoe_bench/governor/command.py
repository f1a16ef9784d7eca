"""``leanmoe bench governor``: arguments, the interleaved rounds, the table."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe_bench import options
from leanmoe_bench.governor.open_loop import Goals, GovernedServer, Load, governed_server
from leanmoe_bench.machine import environment
from leanmoe_bench.shapes import Shape, write_checkpoint

ARMS = {"fixed": "hold", "governed": "act"}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_shape(parser)
    options.add_rounds(parser, "pairs of a fixed and a governed load")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each load (default 120)")
    parser.add_argument(
        "--overload", type=float, default=1.3, help="load over the capacity at level 0 (1.3)"
    )
    parser.add_argument("--ttft", type=float, metavar="MS", help="goal (default: from one client)")
    parser.add_argument("--itl", type=float, metavar="MS", help="goal (default: from one client)")
    options.add_work(parser, "keep the checkpoint here (4.4 GB for M)")


def _run(args: argparse.Namespace) -> Result:
    shape, rounds = options.shape_of(args), options.rounds_of(args)
    if not (20 <= args.seconds <= 3600 and 1.0 < args.overload <= 5.0):
        raise InputError("a load takes 20 to 3600 --seconds and an --overload above 1, up to 5")
    with options.work_folder(args.work) as work:
        found = _measured(args, shape, rounds, work)
    return {"environment": environment(), "load_average": os.getloadavg(), **found}


def _measured(args: argparse.Namespace, shape: Shape, rounds: int, work: Path) -> dict[str, Any]:
    model = write_checkpoint(shape, work / f"shape-{shape.name}-{args.seed}", args.seed)
    load = Load(vocabulary=shape.vocabulary, seconds=args.seconds, seed=args.seed)
    with governed_server(model, work / "calibrating.log", Goals(1e6, 1e6)) as server:
        goals, capacity = server.calibrate(load, args.ttft, args.itl)
    rate = args.overload * capacity
    rows: list[dict[str, Any]] = []
    with governed_server(model, work / "server.log", goals) as server:
        for turn in range(rounds):
            order = list(ARMS) if turn % 2 == 0 else list(reversed(ARMS))
            for arm in order:
                rows.append(_row(server, load, goals, rate, turn, arm))
                print(_line(rows[-1]), file=sys.stderr, flush=True)
    return {
        "shape": shape.name,
        "goals": {"ttft_ms": goals.ttft_ms, "itl_ms": goals.itl_ms},
        "capacity_at_level_0": capacity,
        "rate": rate,
        "rounds": rounds,
        "rows": rows,
        **_ratio(rows),
    }


def _row(
    server: GovernedServer, load: Load, goals: Goals, rate: float, turn: int, arm: str
) -> dict[str, Any]:
    server.tell(ARMS[arm])
    answers = server.open_loop(load, rate, seed=load.seed + turn)
    good = sum(goals.met_by(one) for one in answers)
    return {
        "arm": arm,
        "round": turn,
        "sent": len(answers),
        "good": good,
        "goodput_per_second": good / load.seconds,
        "level_at_end": server.level(),
        "moves": server.moves(),
    }


def _ratio(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the goodputs of all rounds, and of each round for the spread."""
    good = {arm: [row["good"] for row in rows if row["arm"] == arm] for arm in ARMS}
    pairs = sorted(
        governed / max(fixed, 1)
        for fixed, governed in zip(good["fixed"], good["governed"], strict=True)
    )
    return {
        "ratio": sum(good["governed"]) / max(sum(good["fixed"]), 1),
        "median": median(pairs),
        "low": pairs[0],
        "high": pairs[-1],
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['round']:>5} {row['arm']:10}{row['sent']:>6}{row['good']:>6}"
        f"{row['goodput_per_second']:>10.3f}{row['level_at_end']:>7.2f}"
    )


def _show(result: Result) -> str:
    head = f"round {'arm':10}{'sent':>6}{'good':>6}{'good/s':>10}{'level':>7}"
    ratio = f"goodput {result['ratio']:.2f} ({result['low']:.2f} to {result['high']:.2f})"
    return "\n".join([head, *(_line(row) for row in result["rows"]), ratio])


COMMAND = Command(
    name="bench governor",
    help="Answers within their goals per second under overload: the governor beside level 0.",
    example="leanmoe bench governor --shape M --rounds 2 --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
