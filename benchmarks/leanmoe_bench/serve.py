"""``leanmoe bench serve``: throughput of ours against stock vLLM, one run, interleaved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe.messages import HandshakeReport, PolicyUpdate, SkipSnapshot
from leanmoe_bench.ideal import Step, ideal_ratio
from leanmoe_bench.pair import Pair, engine_pair
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.shapes import Shape, write_checkpoint

CASES = ("level0", "median", "top1")
PREFILL = 1024
_CALIBRATION_TOKENS = 256
_CALIBRATION_ROUNDS = 7


@dataclass(frozen=True)
class Measure:
    """One operation of an arm and the forward step it repeats."""

    name: str
    operation: str
    arguments: dict[str, int]
    step: Step
    share: float = 1.0

    def rounds(self, wished: int) -> int:
        """Pairs to take: a long operation averages by itself and needs fewer."""
        return max(1, round(wished * self.share))


def _decode(batch: int, tokens: int) -> Measure:
    return Measure(
        f"decode_b{batch}", "decode", {"batch": batch, "tokens": tokens}, Step(batch, batch)
    )


MEASURES = (
    _decode(1, 32),
    _decode(8, 10),
    _decode(32, 6),
    Measure(f"prefill_{PREFILL}", "prefill", {"length": PREFILL}, Step(PREFILL, 1), share=0.5),
)


@dataclass(frozen=True)
class Row:
    """One line of the result; the ideals are computed, everything else measured."""

    shape: str
    mode: str
    case: str
    measure: str
    ratio: float
    low: float
    high: float
    ideal: float
    ideal_bytes: float
    ideal_operations: float
    skip_rate: float
    ours: float
    stock: float
    pairs: int
    unit: str = "tokens/s"


@dataclass
class Sample:
    """Paired throughputs of one case and measure, over every start of the engines."""

    stock: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    routed: int = 0
    skipped: int = 0

    def row(self, shape: Shape, mode: str, case: str, measure: Measure) -> Row:
        """The line of the result."""
        skip_rate = self.skipped / self.routed
        ratio = paired_ratio(self.ours, self.stock)
        ideal = ideal_ratio(shape, measure.step, skip_rate)
        return Row(
            shape=shape.name,
            mode=mode,
            case=case,
            measure=measure.name,
            ratio=round(ratio.middle, 3),
            low=round(ratio.low, 3),
            high=round(ratio.high, 3),
            ideal=round(ideal.ratio, 3),
            ideal_bytes=round(ideal.bytes_ratio, 3),
            ideal_operations=round(ideal.operations_ratio, 3),
            skip_rate=round(skip_rate, 4),
            ours=round(median(self.ours), 2),
            stock=round(median(self.stock), 2),
            pairs=len(self.ours),
        )


class Comparison:
    """A running pair of engines on one shape."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        answer = pair.ours.call("rpc", method="leanmoe_handshake", args=[])["results"]
        reports = [HandshakeReport.model_validate_json(text) for text in answer]
        if reports[0].problems:
            raise LeanMoEError(f"ours would not skip: {reports[0].problems[0]}")
        self._layers = [layer.layer for layer in reports[0].layers]
        self._version = 0

    def set_betas(self, betas: dict[int, float]) -> SkipSnapshot:
        self._version += 1
        update = PolicyUpdate(level=max(betas.values()), betas=betas, version=self._version)
        return self._snapshot("leanmoe_set_policy", update.model_dump_json())

    def betas_of(self, case: str, top_k: int) -> dict[int, float]:
        """Level 0, top-1 only, or each layer's median ratio found on the running engine."""
        if case == "median":
            return self._median_betas(top_k)
        return dict.fromkeys(self._layers, 0.0 if case == "level0" else 1.0)

    def take(self, measure: Measure, rounds: int, sample: Sample) -> None:
        """Add interleaved pairs of one measure with the betas already set."""
        before = self._counts()
        stock, ours = self._pair.ratios(
            measure.operation, measure.rounds(rounds), **measure.arguments
        )
        after = self._counts()
        sample.stock += stock
        sample.ours += ours
        sample.routed += sum(c.routed for c in after) - sum(c.routed for c in before)
        sample.skipped += sum(c.skipped for c in after) - sum(c.skipped for c in before)

    def _median_betas(self, top_k: int) -> dict[int, float]:
        """Bisect every layer's beta at once until half its tokens lose their second expert."""
        low, high = dict.fromkeys(self._layers, 0.0), dict.fromkeys(self._layers, 1.0)
        for turn in range(_CALIBRATION_ROUNDS):
            betas = {layer: (low[layer] + high[layer]) / 2 for layer in self._layers}
            before = {c.layer: c for c in self.set_betas(betas).layers}
            self._pair.alone(self._pair.ours, "prefill", length=_CALIBRATION_TOKENS, turn=turn)
            for after in self._counts():
                tokens = after.tokens - before[after.layer].tokens
                skipped = after.skipped - before[after.layer].skipped
                side = high if skipped > tokens * (top_k - 1) / 2 else low
                side[after.layer] = betas[after.layer]
        return {layer: (low[layer] + high[layer]) / 2 for layer in self._layers}

    def _snapshot(self, method: str, *args: str) -> SkipSnapshot:
        results = self._pair.ours.call("rpc", method=method, args=list(args))["results"]
        return SkipSnapshot.model_validate_json(results[0])

    def _counts(self) -> list[Any]:
        return self._snapshot("leanmoe_snapshot").layers


def compare(
    shape: Shape,
    work: Path,
    *,
    eager: bool,
    cases: Sequence[str],
    measures: Sequence[Measure],
    rounds: int,
    seed: int,
) -> Iterator[Row]:
    """Rows of one mode (compiled or eager).

    The engines are started twice, each first once: where an engine's weights come to
    lie in memory shifts its speed by some percent for as long as it lives.
    """
    model = write_checkpoint(shape, work / f"shape-{shape.name}-{seed}", seed)
    keys = [(case, measure) for case in cases for measure in measures]
    samples = {(case, measure.name): Sample() for case, measure in keys}
    betas: dict[str, dict[int, float]] = {}
    for turn, first in enumerate(("stock", "ours")):
        with engine_pair(model, engine_flags(eager), shape.vocabulary, seed, first=first) as pair:
            comparison = Comparison(pair)
            for case, measure in keys:
                if case not in betas:
                    betas[case] = comparison.betas_of(case, shape.top_k)
                comparison.set_betas(betas[case])
                sample = samples[case, measure.name]
                comparison.take(measure, (rounds + 1 - turn) // 2, sample)
                yield sample.row(shape, "eager" if eager else "compiled", case, measure)


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


def rows_to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def environment() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    import os
    import platform

    from leanmoe.provenance import tool_versions

    cpu = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (cpu.read_text().splitlines() if cpu.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "tools": json.loads(json.dumps(tool_versions())),
    }
