"""``leanmoe bench memory``: does ours grow where stock vLLM does not? The same prompts to both."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from leanmoe.command import Command, Result
from leanmoe_bench import options
from leanmoe_bench.engines.control import Control
from leanmoe_bench.engines.pair import WITH_PLUGIN, RemoteArm
from leanmoe_bench.machine import environment
from leanmoe_bench.resident import resident_bytes
from leanmoe_bench.shapes import Shape, write_checkpoint

_PROMPTS, _LONGEST, _TOKENS, _READ_EVERY = 64, 100, 16, 10
_ENGINE = {
    "max_model_len": 512,
    "max_num_seqs": _PROMPTS,
    "max_num_batched_tokens": 2048,
    "kv_cache_memory_bytes": 60_000_000,
    "enforce_eager": True,
}
_BETA = 0.5


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_shape(parser)
    options.add_rounds(parser, "how often memory is read, after ten batches each time")
    options.add_work(parser, "keep checkpoints here (4.4 GB for M)")


def _run(args: argparse.Namespace) -> Result:
    shape, rounds = options.shape_of(args), options.rounds_of(args)
    with options.work_folder(args.work) as work:
        rows = _measure(shape, work, rounds, args.seed)
    return {"environment": environment(), "memory": rows}


def _measure(shape: Shape, work: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Resident bytes of an engine and its children after every ten rounds of 64 prompts."""
    model = write_checkpoint(shape, work / f"shape-{shape.name}-{seed}", seed)
    return [row for name in ("stock", "ours") for row in _engine(name, shape, model, rounds, seed)]


def _engine(name: str, shape: Shape, model: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    plugin = name == "ours"
    arm = RemoteArm(name, plugin=plugin, log=model.with_name(f"memory-{name}.log"))
    flags = {**_ENGINE, **(WITH_PLUGIN if plugin else {})}
    try:
        arm.call("start", model=str(model), engine=flags, vocabulary=shape.vocabulary, seed=seed)
        if plugin:
            control = Control(arm)
            control.set_policy(dict.fromkeys(control.layers, _BETA))
        return _rounds(name, arm, shape, rounds * _READ_EVERY, seed)
    finally:
        arm.close()


def _rounds(
    name: str, arm: RemoteArm, shape: Shape, rounds: int, seed: int
) -> list[dict[str, Any]]:
    draw, found = np.random.default_rng(seed), []
    for turn in range(1, rounds + 1):
        lengths = draw.integers(4, _LONGEST, size=_PROMPTS)
        prompts = [draw.integers(3, shape.vocabulary, size=n).tolist() for n in lengths]
        arm.call("generate", prompts=prompts, tokens=_TOKENS)
        if turn % _READ_EVERY == 0:
            size = resident_bytes(arm.group.process.pid)
            found.append({"engine": name, "round": turn, "resident_bytes": size})
    return found


def _show(result: Result) -> str:
    rows = result["memory"]
    lines = [f"{'rounds':>7}{'stock MB':>10}{'ours MB':>10}"]
    half = len(rows) // 2
    for stock, ours in zip(rows[:half], rows[half:], strict=True):
        sizes = (stock["resident_bytes"] / 1e6, ours["resident_bytes"] / 1e6)
        lines.append(f"{stock['round']:>7}{sizes[0]:>10.0f}{sizes[1]:>10.0f}")
    return "\n".join(lines)


COMMAND = Command(
    name="bench memory",
    help="Resident memory of ours and of stock vLLM over time, on the same prompts.",
    example="leanmoe bench memory --shape tiny --rounds 6 --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
