"""``leanmoe bench same-tokens``: packed experts served beside the dense model that they stand for.

The reference model is pruned (MoE-Pruner, 16:32, permuted) and packed. Stock vLLM serves the dense
model, ours the packed one, one after the other, and both continue held-out text greedily.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from leanmoe.command import Command, Result
from leanmoe_bench import options
from leanmoe_bench.engines.pair import WITH_PLUGIN, RemoteArm
from leanmoe_bench.machine import environment
from leanmoe_bench.reference import leanmoe, reference_model
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.data.builtin import builtin_ids

Tokens = list[list[int]]
# In float32 the same sums in another order tip no choice; bfloat16 is what is served.
DTYPES = ("float32", "bfloat16")
_DOMAINS = ("gen", "fr", "c", "man", "kjv")
_PER_DOMAIN, _PROMPT, _TOKENS = 4, 32, 24
_CALIBRATION = ",".join(f"builtin:{domain}:2" for domain in _DOMAINS)
_ENGINE = {
    "max_model_len": 128,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 256,
    "kv_cache_memory_bytes": 200_000_000,
    "enforce_eager": True,
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_work(parser, "keep the reference model, pruned and packed, here")


def _run(args: argparse.Namespace) -> Result:
    with options.work_folder(args.work) as work:
        dense, packed = _models(work)
        rows = [_row(dtype, dense, packed, work, args.seed) for dtype in DTYPES]
        size = {path.name: ShardReader(path).weight_bytes for path in (dense, packed)}
    return {"environment": environment(), "weight_bytes": size, "rows": rows}


def _models(work: Path) -> tuple[Path, Path]:
    """The masked model, dense and packed."""
    model, dense, packed = reference_model(work), work / "dense", work / "packed"
    if not dense.exists():
        leanmoe(
            *("prune", str(model), "--method", "moe-pruner", "--pattern", "16:32"),
            *("--data", _CALIBRATION, "-o", str(dense)),
        )
    if not packed.exists():
        leanmoe("pack", str(dense), "-o", str(packed))
    return dense, packed


def prompts() -> Tokens:
    """The first tokens of held-out windows, a few of each domain."""
    return [
        ids_T[:_PROMPT].tolist()
        for domain in _DOMAINS
        for ids_T in builtin_ids(domain, "heldout")[:_PER_DOMAIN]
    ]


def _row(dtype: str, dense: Path, packed: Path, work: Path, seed: int) -> dict[str, Any]:
    expected = _answers("stock", dense, dtype, work, seed)
    found = _answers("ours", packed, dtype, work, seed)
    return {"dtype": dtype, **compared(expected, found)}


def _answers(name: str, model: Path, dtype: str, work: Path, seed: int) -> Tokens:
    plugin = name == "ours"
    arm = RemoteArm(name, plugin=plugin, log=work / f"same-tokens-{name}.log")
    flags = {**_ENGINE, "dtype": dtype, **(WITH_PLUGIN if plugin else {})}
    try:
        arm.call("start", model=str(model), engine=flags, vocabulary=1000, seed=seed)
        answers: Tokens = arm.call("generate", prompts=prompts(), tokens=_TOKENS)["ids"]
    finally:
        arm.close()
    return answers


def compared(expected: Tokens, found: Tokens) -> dict[str, int]:
    """Prompts, how many were continued alike, and how many tokens before the first difference."""
    agreed = [
        next((i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b), len(one))
        for one, two in zip(expected, found, strict=True)
    ]
    alike = sum(count == len(one) for count, one in zip(agreed, expected, strict=True))
    tokens = sum(map(len, expected))
    return {"prompts": len(expected), "alike": alike, "tokens": tokens, "agreed": sum(agreed)}


def _show(result: Result) -> str:
    return "\n".join(
        f"{row['dtype']}: {row['alike']} of {row['prompts']} prompts continued alike, "
        f"{row['agreed']} of {row['tokens']} tokens before a first difference"
        for row in result["rows"]
    )


COMMAND = Command(
    name="bench same-tokens",
    help="Whether packed experts give the greedy tokens of the dense model in stock vLLM.",
    example="leanmoe bench same-tokens --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
