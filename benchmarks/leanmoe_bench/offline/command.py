"""``leanmoe bench offline``: arguments and cases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe_bench import options
from leanmoe_bench.machine import environment
from leanmoe_bench.offline import naee, score_timing, scoring
from leanmoe_bench.shapes import SHAPES

CASES = ("naee", "memory", "score")
_TOKENS = 2048
_TINY_TOKENS = 512
LEAST_TOKENS, MOST_TOKENS = 256, 1 << 20


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_case(parser, "naee, memory or score (default: all)")
    parser.add_argument("--shape", default="M", help="tiny: small models, to see that it works")
    parser.add_argument("--tokens", type=int, help="calibration tokens (default 2048)")
    options.add_rounds(parser, "turns in which naee and score time their ways")
    options.add_work(parser, "keep the checkpoint here (11 GB)")


def _run(args: argparse.Namespace) -> Result:
    tiny = options.shape_of(args).name == "tiny"
    size = {"tokens": args.tokens, "rounds": options.rounds_of(args), "seed": args.seed}
    with options.work_folder(args.work) as work:
        rows = _measure(args.case, work, tiny=tiny, **size)
    return {"environment": environment(), "offline": rows}


def _measure(
    cases: Sequence[str] | None,
    work: Path,
    *,
    tiny: bool,
    tokens: int | None,
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    """A row per case; ``tiny`` takes small models, to see that it works."""
    unknown = sorted(set(cases or ()) - set(CASES))
    if unknown:
        raise InputError(f"bench offline has no case {unknown[0]!r}; give {' or '.join(CASES)}")
    rows: dict[str, Any] = {}
    if tokens is None:
        tokens = _TINY_TOKENS if tiny else _TOKENS
    if not LEAST_TOKENS <= tokens <= MOST_TOKENS:
        raise InputError(f"--tokens is {tokens}, expected {LEAST_TOKENS} to {MOST_TOKENS}")
    small = SHAPES["tiny"]
    if not cases or "naee" in cases:
        layer = small if tiny else replace(SHAPES["M"], name="mixtral", hidden=4096, ffn=14336)
        rows["naee"] = naee.measure(layer, tokens, rounds, seed)
    if not cases or "memory" in cases:
        model = small if tiny else replace(SHAPES["M"], name="M16", layers=16)
        rows["memory"] = scoring.measure(model, work, tokens, seed)
    if not cases or "score" in cases:
        model = small if tiny else SHAPES["R"]
        rows["score"] = score_timing.measure(model, work, tokens, rounds, seed)
    return rows


def _show(result: Result) -> str:
    shown = {"naee": naee.show, "memory": scoring.show, "score": score_timing.show}
    return "\n".join(shown[name](row) for name, row in result["offline"].items())


COMMAND = Command(
    name="bench offline",
    help="How fast experts are chosen beside the published procedure, how fast and within which "
    "memory a checkpoint is scored.",
    example="leanmoe bench offline --case naee --rounds 2 --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
