"""Arguments and exit codes of ``benchmarks/gpu_check.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError
from leanmoe.process.interrupts import stop_on_signals
from leanmoe_bench.gpu import fit
from leanmoe_bench.gpu.fit import find_card
from leanmoe_bench.gpu.models import MODELS
from leanmoe_bench.gpu.parts import Part, chosen, listed
from leanmoe_bench.gpu.run import Rows, run, say
from leanmoe_bench.gpu.settings import BATCHES, Settings
from leanmoe_bench.gpu.summary import show

_DESCRIPTION = (
    "Check on one GPU what skipping does there, and measure what it gains: stock vLLM and ours in "
    "turns, on models of whole depth made from their config alone."
)
_EXAMPLE = "example: python benchmarks/gpu_check.py speed:qwen3-30b-a3b --out gpu.jsonl"
_LARGEST_BATCH = max(BATCHES)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser("gpu_check.py", description=_DESCRIPTION, epilog=_EXAMPLE)
    add: Callable[..., Any] = parser.add_argument
    add("parts", nargs="*", metavar="PART", help="what to run (default: all); --list names them")
    add("--list", action="store_true", help="print the parts and what each needs, run nothing")
    add("--out", type=Path, metavar="FILE", help="also append the rows to this file")
    add(
        "--graphs",
        choices=("full", "compiled"),
        default="full",
        help="full CUDA graphs without a compiler (default), or vLLM's own default, compiled",
    )
    add("--layers", type=int, help="models of so many layers only, for a smaller GPU")
    add("--decode", type=_numbers, metavar="B,B", help="batch sizes (default 1,4,8,16,32,64)")
    add("--prefill", type=_numbers, metavar="N,N", help="prompt lengths (default 2048)")
    add("--rounds", type=int, help="pairs of each measure, after one to warm up (default 5)")
    add("--limit", type=float, default=235.0, help="seconds for each part (default 235)")
    add("--seed", type=int, default=0, help="of prompts")
    add(
        "--rehearse",
        action="store_true",
        help="without a GPU: the same parts with tiny models on the CPU build of vLLM",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: nothing failed; 1: a check or a part failed; 2: cannot begin."""
    args = parse(argv)
    if args.list:
        print(listed())
        return 0
    try:
        parts = chosen(args.parts)
        settings = _settings(args, sys.argv[1:] if argv is None else list(argv))
        for name in dict.fromkeys(part.model for part in parts if part.model):
            model = settings.model(MODELS[name])
            if settings.card is not None:
                fit.check(model, settings.card)
    except InputError as error:
        say(str(error))
        return error.exit_code
    return _run(parts, settings, args.out)


def _run(parts: Sequence[Part], settings: Settings, out: Path | None) -> int:
    with nullcontext() if out is None else out.open("a", encoding="utf-8") as file:
        rows = Rows(file)
        try:
            with stop_on_signals():
                run(parts, settings, rows)
        except KeyboardInterrupt:
            say("stopped; the rows so far are written")
            return 1
        finally:
            print(show(rows.kept), file=sys.stderr, flush=True)
    return 1 if rows.failed else 0


def _settings(args: argparse.Namespace, command_line: list[str]) -> Settings:
    """The options, checked, with the sizes that fit a GPU or a rehearsal."""
    if args.out is not None and not args.out.parent.is_dir():
        raise InputError(
            f"--out is {args.out}, and {args.out.parent} is no folder; name a file in one"
        )
    _check_sizes(args)
    card = None if args.rehearse else find_card()
    if card is None and not args.rehearse:
        raise InputError(
            "no CUDA GPU is to be seen here; run on a machine with one, or give --rehearse"
        )
    small = args.rehearse
    return Settings(
        card=card,
        graphs=args.graphs,
        rounds=args.rounds or (2 if small else 5),
        decode=((1, 4) if small else BATCHES) if args.decode is None else args.decode,
        prefill=((64,) if small else (2048,)) if args.prefill is None else args.prefill,
        layers=args.layers,
        seed=args.seed,
        limit=args.limit,
        command_line=command_line,
    )


def _check_sizes(args: argparse.Namespace) -> None:
    bad = [batch for batch in args.decode or () if not 1 <= batch <= _LARGEST_BATCH]
    if bad:
        raise InputError(f"--decode has {bad[0]}, expected 1 to {_LARGEST_BATCH} sequences")
    bad = [length for length in args.prefill or () if not 1 <= length <= 8000]
    if bad:
        raise InputError(f"--prefill has {bad[0]}, expected 1 to 8000 tokens")
    if args.rounds is not None and args.rounds < 1:
        raise InputError(f"--rounds is {args.rounds}, expected at least 1")
    if args.limit <= 0:
        raise InputError(f"--limit is {args.limit:g}, expected seconds above 0")
