"""Arguments and exit codes of ``benchmarks/gpu_check.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from leanmoe.interrupts import stop_on_signals
from leanmoe_bench.gpu.run import dry_run, run, say

_DESCRIPTION = "Check on one GPU, in under ten minutes, what skipping does there and what it gains."
_EXAMPLE = "example: python benchmarks/gpu_check.py --out gpu.json"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser("gpu_check.py", description=_DESCRIPTION, epilog=_EXAMPLE)
    parser.add_argument("--out", type=Path, help="also write the JSON object to this file")
    parser.add_argument("--seed", type=int, default=0, help="of models and inputs")
    parser.add_argument("--budget", type=float, default=570.0, help="seconds for the whole run")
    parser.add_argument("--work", type=Path, help="keep the random checkpoints here (12 GB)")
    parser.add_argument(
        "--dry-run", action="store_true", help="without a GPU: the kernel interpreted, and the plan"
    )
    return parser.parse_args(argv)


def has_gpu() -> bool:
    """True where torch can compute on a CUDA device."""
    import torch

    return torch.cuda.is_available()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: passed; 1: a check failed; 2: no GPU, or an output that cannot be written."""
    args = parse(argv)
    if args.out is not None and not args.out.parent.is_dir():
        say(f"--out is {args.out}, and {args.out.parent} is no folder; name a file in one")
        return 2
    if not args.dry_run and not has_gpu():
        say("no CUDA GPU is to be seen here; run on a machine with one, or give --dry-run")
        return 2
    with stop_on_signals():
        report = dry_run(args.budget) if args.dry_run else run(args.budget, args.seed, args.work)
    text = json.dumps(report, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    return 0 if report["passed"] else 1
