"""Stock vLLM beside ours with captured graphs: level 0 and a level that skips, in turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from leanmoe_bench.cases import Case, cases_for
from leanmoe_bench.comparison import Comparison
from leanmoe_bench.ideal import Step, ideal_ratio
from leanmoe_bench.measures import PREFILL, Measure, Sample
from leanmoe_bench.pair import Pair, engine_pair
from leanmoe_bench.serve import engine_flags, weight_bytes
from leanmoe_bench.shapes import Shape, write_checkpoint

_CASES = ("level0", "median", "skip40")
NEEDS_SECONDS = 120.0
_ROUNDS = 6
_PROMPTS = 8


def _decode(batch: int, tokens: int) -> Measure:
    arguments = {"batch": batch, "tokens": tokens}
    return Measure(f"decode_b{batch}", "decode", arguments, Step(batch, batch))


MEASURES = (
    _decode(1, 128),
    _decode(8, 128),
    _decode(32, 64),
    Measure(f"prefill_{PREFILL}", "prefill", {"length": PREFILL}, Step(PREFILL, 1)),
)


def flags() -> dict[str, Any]:
    """What both engines get: captured graphs, each with its share of one GPU."""
    return {
        **engine_flags(eager=False),
        "moe_backend": "triton",
        "gpu_memory_utilization": 0.4,
        "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]},
    }


def compare(shape: Shape, work: Path, seed: int) -> Iterator[dict[str, Any]]:
    """One row per case and measure, and one on whether level 0 gave stock's tokens.

    A generator, so that what was measured before the time ran out is kept.
    """
    model = write_checkpoint(shape, work / f"shape-{shape.name}-{seed}", seed, "cuda")
    both = {"stock": model, "ours": model}
    with engine_pair(both, flags(), shape.vocabulary, seed) as pair:
        comparison = Comparison(pair, weight_bytes(model))
        for case in cases(shape):
            comparison.set_policy(comparison.betas_of(case), case)
            if case.name == "level0":
                yield _same_tokens(pair, shape, seed)
            for measure in MEASURES:
                sample = Sample()
                comparison.take(measure, _ROUNDS, sample)
                yield asdict(sample.row(shape, "graphs", case, measure))


def cases(shape: Shape) -> list[Case]:
    """Level 0, and the level that suits the shape's top-k."""
    return [one for one in cases_for(shape.experts, shape.top_k) if one.name in _CASES]


def _same_tokens(pair: Pair, shape: Shape, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    prompts = random.integers(3, shape.vocabulary, size=(_PROMPTS, 16)).tolist()
    stock, ours = (
        pair.alone(arm, "generate", prompts=prompts, tokens=32)["ids"]
        for arm in (pair.stock, pair.ours)
    )
    equal = sum(a == b for a, b in zip(stock, ours, strict=True))
    return {
        "shape": shape.name,
        "case": "level0",
        "measure": "greedy_tokens_equal_to_stock",
        "equal": equal,
        "of": _PROMPTS,
        "passed": equal == _PROMPTS,
    }


def planned(shape: Shape) -> list[dict[str, Any]]:
    """The rows a run would measure, and the ideal ratio at each case's skip rate."""
    return [
        {
            "shape": shape.name,
            "case": case.name,
            "measure": measure.name,
            "ideal": round(ideal_ratio(shape, measure.step, case.skipped or 0.0).ratio, 3),
        }
        for case in cases(shape)
        for measure in MEASURES
    ]
