"""The most skipping could gain, from bytes read and operations done.

A step reads weights and multiplies. Skipping saves a share of each; whichever way
the two overlap on a machine, the gain stays under the larger of the two ratios,
which is the ideal. Where the other resource is the bound, less can be reached.
Every multiply-add counts alike; the experts' are dearer than the dense layers', so
a long prefill can pass its ideal by a few percent.
Routing is taken as uniform over the experts, the context's attention is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from leanmoe.sparse.sparse_format import SparseFormat
from leanmoe_bench.engines.cases import Case
from leanmoe_bench.shapes import Shape

_BYTES = 2  # bf16


@dataclass(frozen=True)
class Step:
    """One forward pass of ``rows`` tokens, of which ``logit_rows`` need the head."""

    rows: int
    logit_rows: int


class Ideal(NamedTuple):
    """Stock over ours in weight bytes and in multiply-adds."""

    bytes_ratio: float
    operations_ratio: float

    @property
    def ratio(self) -> float:
        return max(self)


def _distinct(shape: Shape, step: Step, kept: float) -> float:
    return float(shape.experts * (1.0 - (1.0 - kept / shape.experts) ** step.rows))


def bytes_read(
    shape: Shape, step: Step, kept: float, budget: int | None = None, stored: float = 1.0
) -> float:
    """Weight bytes of a step whose tokens keep ``kept`` experts on average, ``budget`` at most.

    Of an expert's bytes a share ``stored`` is left where it is packed.
    """
    distinct = _distinct(shape, step, kept)
    if budget is not None:
        # Every token's top expert is read whatever the budget says.
        distinct = min(distinct, max(budget, _distinct(shape, step, 1.0)))
    layer = shape.attention_parameters + distinct * shape.expert_parameters * stored
    return float(_BYTES * (shape.layers * layer + shape.head_parameters))


def operations(shape: Shape, step: Step, kept: float) -> float:
    """Multiply-adds of a step; attention over the context is left out."""
    layer = shape.attention_parameters + kept * shape.expert_parameters
    return float(step.rows * shape.layers * layer + step.logit_rows * shape.head_parameters)


def ideal_ratio(shape: Shape, step: Step, skip_rate: float, case: Case | None = None) -> Ideal:
    """Ratios at a measured ``skip_rate`` (share of routed assignments skipped)."""
    kept = shape.top_k * (1.0 - skip_rate)
    pruned = shape if case is None or case.keep is None else replace(shape, experts=case.keep)
    budget = None if case is None or case.union is None else case.union.experts
    pattern = None if case is None else case.pattern
    packed = None if pattern is None else SparseFormat.of_pattern(pattern, "bfloat16")
    stored = 1.0 if packed is None else packed.bytes_per_weight(_BYTES) / _BYTES
    return Ideal(
        bytes_read(shape, step, shape.top_k) / bytes_read(pruned, step, kept, budget, stored),
        operations(shape, step, shape.top_k) / operations(pruned, step, kept),
    )
