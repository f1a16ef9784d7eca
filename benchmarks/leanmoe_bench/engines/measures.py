"""The operations that are timed, and one line of the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from leanmoe_bench.engines.cases import Case
from leanmoe_bench.engines.ideal import Step, ideal_ratio
from leanmoe_bench.ratio import paired_ratio
from leanmoe_bench.shapes import Shape

PREFILL = 1024


@dataclass(frozen=True)
class Measure:
    """One operation of an arm and the forward step it repeats."""

    name: str
    operation: str
    arguments: dict[str, int]
    step: Step
    share: float = 1.0

    def rounds(self, asked: int) -> int:
        """Pairs to take: a long operation averages by itself and needs fewer."""
        return max(1, round(asked * self.share))


def decode(batch: int, tokens: int, **more: int) -> Measure:
    """Steps of ``batch`` sequences."""
    arguments = {"batch": batch, "tokens": tokens, **more}
    return Measure(f"decode_b{batch}", "decode", arguments, Step(batch, batch))


def prefill(length: int, share: float = 1.0) -> Measure:
    """One prompt of ``length`` tokens."""
    return Measure(f"prefill_{length}", "prefill", {"length": length}, Step(length, 1), share)


MEASURES = (decode(1, 32), decode(8, 10), decode(32, 6), prefill(PREFILL, share=0.5))


@dataclass(frozen=True)
class Row:
    """One line of the result; the ideals are computed, everything else measured.

    ``distinct`` is ours: experts read per step and layer, the prompt's step among them.
    """

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
    weight_bytes_ratio: float
    skip_rate: float
    distinct: float
    ours: float
    stock: float
    pairs: int
    unit: str = "tokens/s"


@dataclass
class Counted:
    """What the workers counted, over all layers."""

    routed: int = 0
    skipped: int = 0
    steps: int = 0
    distinct: int = 0

    def add(self, other: Counted, sign: int = 1) -> None:
        """Add, or with ``sign`` -1 take away."""
        for name in ("routed", "skipped", "steps", "distinct"):
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))


@dataclass
class Sample:
    """Paired throughputs of one case and measure, over every start of the engines."""

    stock: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    counted: Counted = field(default_factory=Counted)
    weight_bytes_ratio: float = 1.0

    def row(self, shape: Shape, mode: str, case: Case, measure: Measure) -> Row:
        """The line of the result."""
        skip_rate = self.counted.skipped / self.counted.routed
        ratio = paired_ratio(self.ours, self.stock)
        ideal = ideal_ratio(shape, measure.step, skip_rate, case)
        return Row(
            shape=shape.name,
            mode=mode,
            case=case.name,
            measure=measure.name,
            ratio=round(ratio.middle, 3),
            low=round(ratio.low, 3),
            high=round(ratio.high, 3),
            ideal=round(ideal.ratio, 3),
            ideal_bytes=round(ideal.bytes_ratio, 3),
            ideal_operations=round(ideal.operations_ratio, 3),
            weight_bytes_ratio=round(self.weight_bytes_ratio, 3),
            skip_rate=round(skip_rate, 4),
            distinct=round(self.counted.distinct / self.counted.steps, 2),
            ours=round(median(self.ours), 2),
            stock=round(median(self.stock), 2),
            pairs=len(self.ours),
        )
