"""``leanmoe bench kernel``: arguments and tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from types import ModuleType
from typing import Any

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe.process.environment import engine_environment
from leanmoe.process.interrupts import stop_on_signals
from leanmoe.sparse.sparse_format import SparseFormat
from leanmoe_bench import options
from leanmoe_bench.gpu.fit import find_card
from leanmoe_bench.machine import environment
from leanmoe_bench.printed import printed
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.shapes import SHAPES, Shape

# One layer of Mixtral-8x7B and of Qwen3-30B-A3B: too large for an engine here, not for its kernel.
MIXTRAL = replace(SHAPES["M"], name="mixtral", hidden=4096, ffn=14336)
QWEN3 = replace(SHAPES["M"], name="qwen3", hidden=2048, ffn=768, experts=128, top_k=8)
# What is added to the name of a pattern whose values are float8.
FLOAT8 = " float8"
_LARGE = {shape.name: shape for shape in (MIXTRAL, QWEN3)}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="M", help="M (default), F, R, tiny, mixtral or qwen3")
    options.add_rounds(parser, "timings of every way, in turns")
    parser.add_argument(
        "--pattern",
        action="append",
        metavar="N:M",
        help="time packed experts of that pattern (16:32) against dense ones instead",
    )
    parser.add_argument(
        "--float8",
        action="store_true",
        help="with --pattern, on a CPU: the same with float8 values in blocks of 128 x 128, too",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where: with --pattern also an NVIDIA GPU, beside vLLM's Triton experts",
    )


def _run(args: argparse.Namespace) -> Result:
    shape = _LARGE.get(args.shape) or options.shape_of(args)
    rounds = options.rounds_of(args)
    for pattern in args.pattern or ():
        if SparseFormat.of_pattern(pattern, "bfloat16").layout == "overflow":
            raise InputError(f"--pattern {pattern} is not balanced in groups of 32; give N:32")
    _check_device(args)
    with stop_on_signals():
        patterns = args.pattern or []
        rows = measure(shape, rounds, args.seed, patterns, args.device, float8=args.float8)
    return {"environment": environment(), "rounds": rounds, "kernel": rows}


def _check_device(args: argparse.Namespace) -> None:
    if args.float8 and (args.device != "cpu" or not args.pattern):
        raise InputError("--float8 is of packed experts on a CPU; give --pattern 16:32 without it")
    if args.device == "cpu":
        return
    if not args.pattern:
        raise InputError("--device cuda times packed experts; name one with --pattern 16:32")
    if find_card() is None:
        raise InputError("no CUDA GPU is to be seen here; run on a machine with one")


def measure(
    shape: Shape, rounds: int, seed: int, patterns: list[str], device: str, *, float8: bool = False
) -> list[dict[str, Any]]:
    """What the ways take at each number of rows, timed in a process of its own."""
    from leanmoe_bench.kernel import crossover

    if patterns:
        return list(packed_rows(shape, rounds, seed, patterns, device, float8=float8))
    layer = _layer(shape, rounds, seed)
    return [_row(shape.name, row) for row in _timed(crossover, layer)]


def packed_rows(
    shape: Shape, rounds: int, seed: int, patterns: list[str], device: str, *, float8: bool = False
) -> Iterator[dict[str, Any]]:
    """Packed experts beside dense ones, a number of rows as soon as it is timed."""
    from leanmoe_bench.kernel import card_packed, packed

    more = {"patterns": patterns, "float8": FLOAT8 if float8 else ""}
    layer = {**_layer(shape, rounds, seed), **more}
    for row in _timed(packed if device == "cpu" else card_packed, layer):
        yield _packed_row(shape.name, row, patterns)


def _layer(shape: Shape, rounds: int, seed: int) -> dict[str, Any]:
    return {
        "experts": shape.experts,
        "top_k": shape.top_k,
        "hidden": shape.hidden,
        "ffn": shape.ffn,
        "rounds": rounds,
        "seed": seed,
    }


def _timed(module: ModuleType, layer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    what = f"the kernel measurement of {layer['experts']} experts"
    return printed(module.__name__, json.dumps(layer), env=engine_environment(), what=what)


def _row(shape: str, row: dict[str, Any]) -> dict[str, Any]:
    seconds = row["seconds"]
    result = {
        "shape": shape,
        "rows": row["rows"],
        "skipped": row["skipped"],
        "full_ms": median(seconds["full"]) * 1e3,
    }
    return {**result, **{way: _ratio(seconds, "full", way) for way in ("redirect", "compact")}}


def _packed_row(shape: str, row: dict[str, Any], patterns: list[str]) -> dict[str, Any]:
    seconds, found = row["seconds"], {}
    copied = row["copied_bytes"] / median(seconds["copy"])
    for pattern in patterns:
        how = SparseFormat.of_pattern(pattern, "bfloat16")
        for itemsize, name in ((2, pattern), (1, pattern + FLOAT8)):
            if name not in seconds:
                continue
            read = how.bytes_per_weight(itemsize) / 2 * row["dense_bytes"] / median(seconds[name])
            found[name] = {**_ratio(seconds, "dense", name), "of_copy": read / copied}
    dense = {"dense_ms": median(seconds["dense"]) * 1e3, "copy_gbs": copied / 1e9}
    more: dict[str, Any] = {name: row[name] for name in ("errors", "ways") if name in row}
    return {"shape": shape, "rows": row["rows"], **dense, "packed": found, **more}


def _ratio(seconds: dict[str, list[float]], base: str, way: str) -> dict[str, float]:
    ratio = paired_ratio(seconds[base], seconds[way])
    return {"ratio": ratio.middle, "low": ratio.low, "high": ratio.high}


def _show(result: Result) -> str:
    return "\n".join(map(_line, result["kernel"]))


def _line(row: dict[str, Any]) -> str:
    what = f"{row['shape']:8}{row['rows']:>5} rows"
    if "packed" in row:
        ways = [
            f"{name} {_told(one)} at {one['of_copy']:.2f} of a copy's speed"
            for name, one in row["packed"].items()
        ]
        return "  ".join([what, f"dense {row['dense_ms']:9.2f} ms", *ways])
    ways = [f"{way} {_told(row[way])}" for way in ("redirect", "compact")]
    return "  ".join(
        [what, f"{row['skipped']:>4.0%} skipped  full {row['full_ms']:9.2f} ms", *ways]
    )


def _told(found: dict[str, float]) -> str:
    return f"{found['ratio']:.2f}x ({found['low']:.2f} to {found['high']:.2f})"


COMMAND = Command(
    name="bench kernel",
    help="Time the CPU kernel's ways of leaving assignments out, or packed experts, against it.",
    example="leanmoe bench kernel --shape M --rounds 20",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
