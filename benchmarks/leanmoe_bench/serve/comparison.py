"""Throughput of ours against stock vLLM: one run, measured in turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from leanmoe_bench.engines.cases import Case
from leanmoe_bench.engines.control import Betas, PairControl
from leanmoe_bench.engines.measures import PREFILL, Measure, Row, Sample
from leanmoe_bench.engines.pair import Pair, engine_pair
from leanmoe_bench.reference import leanmoe
from leanmoe_bench.shapes import Shape, write_checkpoint


class Comparison(PairControl):
    """Stock and ours on one shape."""

    def __init__(self, pair: Pair, stock_bytes: int) -> None:
        super().__init__(pair)
        self._bytes_ratio = self.report.weight_bytes / stock_bytes

    def take(self, measure: Measure, rounds: int, sample: Sample) -> None:
        """Add interleaved pairs of one measure under the policy already set."""
        sample.counted.add(self.counted(), sign=-1)
        stock, ours = self.pair.ratios(
            measure.operation, measure.rounds(rounds), **measure.arguments
        )
        sample.counted.add(self.counted())
        sample.stock += stock
        sample.ours += ours
        sample.weight_bytes_ratio = self._bytes_ratio


def compare(
    shape: Shape,
    work: Path,
    *,
    eager: bool,
    cases: Sequence[Case],
    measures: Sequence[Measure],
    rounds: int,
    seed: int,
) -> Iterator[Row]:
    """Rows of one mode (compiled or eager); a row comes again with more pairs.

    The engines are started twice, each first once: where an engine's weights come to
    lie in memory shifts its speed by some percent for as long as it lives.
    """
    whole = write_checkpoint(shape, work / f"shape-{shape.name}-{seed}", seed)
    samples = {(case.name, m.name): Sample() for case in cases for m in measures}
    betas: dict[str, Betas] = {}
    for _, alike in groupby(sorted(cases, key=_model), key=_model):
        some = list(alike)
        ours = _made(whole, some[0], seed)
        for turn, first in enumerate(("stock", "ours")):
            models = {"stock": whole, "ours": ours}
            flags = engine_flags(eager)
            with engine_pair(models, flags, shape.vocabulary, seed, first=first) as pair:
                comparison = Comparison(pair, weight_bytes(whole))
                for case in some:
                    if case.name not in betas:
                        betas[case.name] = comparison.betas_of(case)
                    comparison.set_policy(betas[case.name], case)
                    for measure in measures:
                        sample = samples[case.name, measure.name]
                        comparison.take(measure, (rounds + 1 - turn) // 2, sample)
                        yield sample.row(shape, "eager" if eager else "compiled", case, measure)


def _model(case: Case) -> tuple[int, str]:
    return case.keep or 0, case.pattern or ""


def _made(whole: Path, case: Case, seed: int) -> Path:
    """The model that a case runs; which experts and weights are left does not matter to speed."""
    made = whole
    if case.keep is not None:
        chosen = ("--method", "random", "--keep", str(case.keep), "--seed", str(seed))
        made = _pruned(made, f"keep{case.keep}", *chosen)
    if case.pattern is not None:
        name = case.pattern.replace(":", "of")
        # The search for orders takes long and what they are costs the same.
        how = ("--method", "magnitude", "--pattern", case.pattern, "--no-permute", "--compress")
        made = _pruned(made, name, *how)
    return made


def _pruned(model: Path, name: str, *how: str) -> Path:
    target = model.with_name(f"{model.name}-{name}")
    if not (target / "leanmoe.json").exists():
        leanmoe("prune", str(model), *how, "-o", str(target))
    return target


def weight_bytes(model: Path) -> int:
    """Bytes of a checkpoint's shards; their headers are a millionth of it."""
    return sum(shard.stat().st_size for shard in model.glob("*.safetensors"))


def engine_flags(eager: bool) -> dict[str, Any]:
    """The flags both engines get."""
    return {
        "dtype": "bfloat16",
        "max_model_len": PREFILL + 64,
        "max_num_seqs": 32,
        "max_num_batched_tokens": PREFILL + 64,
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": 1 << 30,
        "enforce_eager": eager,
    }
