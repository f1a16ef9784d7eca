"""What a budget is: the same number of experts in every layer, or a total to share out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leanmoe.errors import InputError
from leanmoe.families import MoEShape
from leanmoe_pruning.amounts import parse_bytes, show_bytes
from leanmoe_pruning.checkpoints.opening import OpenedModel, check_uniform
from leanmoe_pruning.cutting.cutter import Cutter
from leanmoe_pruning.cutting.layer_plan import LayerPlan
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.replacing.replacement import Replacement

_MARKER_BYTES = 8  # of the tensor that marks a layer with a count of its own


@dataclass(frozen=True)
class Budget:
    """``keep`` experts in each layer, or, where that is ``None``, ``total`` in all layers."""

    keep: int | None
    total: int

    @classmethod
    def uniform(cls, keep: int, shape: MoEShape) -> Budget:
        return cls(keep, keep * len(shape.moe_layers))

    def settings(self) -> dict[str, Any]:
        """What the manifest records."""
        if self.keep is not None:
            return {"keep": self.keep}
        return {"budget": "adaptive", "experts_in_all": self.total}

    @property
    def name(self) -> str:
        """What a dump calls a run with it."""
        return f"r{self.keep}" if self.keep is not None else f"total{self.total}"


def allowed_counts(shape: MoEShape) -> list[int]:
    """Numbers of experts the router can serve, groups equally large, ascending."""
    return list(range(shape.least_keep, shape.n_routed_experts + 1, shape.n_groups))


def budget_of(request: Request, checkpoint: OpenedModel, merged: bool = False) -> Budget:
    """The budget that was asked for, of ``merged`` experts where they are not simply kept; raise
    where the router cannot serve it."""
    if request.total_bytes is None:
        budget = Budget.uniform(request.experts_to_keep(checkpoint), checkpoint.shape)
        return Budget(None, budget.total) if request.adaptive else budget
    if not request.adaptive:
        raise InputError("--total-bytes is shared out among layers; give --budget adaptive with it")
    if request.keep is not None or request.ratio is not None:
        raise InputError("--total-bytes and --keep or --ratio both say how much stays; drop one")
    check_uniform(checkpoint)
    return Budget(None, _affordable(_Sizes(checkpoint, request, merged), request.total_bytes))


def _affordable(sizes: _Sizes, size: str) -> int:
    """Experts over all layers that ``size`` has room for."""
    limit, shape = parse_bytes(size, "--total-bytes"), sizes.shape
    counts, layers = allowed_counts(shape), len(shape.moe_layers)
    if len(counts) == 1:
        return counts[0] * layers
    # Between these two an expert costs the same: a whole layer has nothing that says what it lacks.
    more, less = (sizes.with_each(count) for count in (counts[1], counts[0]))
    each = (more - less) // ((counts[1] - counts[0]) * layers)
    fixed = less - each * counts[0] * layers + _MARKER_BYTES * layers
    if limit < fixed + each * counts[0] * layers:
        raise InputError(
            f"--total-bytes {size} is too small for {sizes.checkpoint.path}: with the {counts[0]} "
            f"experts per layer that its router needs it has {show_bytes(less)} of weights"
        )
    return min((limit - fixed) // each, counts[-1] * layers)


class _Sizes:
    """Bytes of weights of a cut, with what stands in for removed experts or maps merged ones."""

    def __init__(self, checkpoint: OpenedModel, request: Request, merged: bool) -> None:
        self.checkpoint, self.shape, self._merged = checkpoint, checkpoint.shape, merged
        replacement = Replacement.of(request.replace, checkpoint)
        self._rank = None if replacement is None else replacement.rank

    def with_each(self, count: int) -> int:
        """With as many experts in every layer."""
        shape = self.shape
        size, share = shape.n_routed_experts // shape.n_groups, count // shape.n_groups
        kept = [group * size + place for group in range(shape.n_groups) for place in range(share)]
        plans = dict.fromkeys(shape.moe_layers, LayerPlan(keep=tuple(kept)))
        cut = Cutter(self.checkpoint, plans, rank=self._rank).weight_bytes
        return cut + (self._of_maps(count) if self._merged else 0)

    def _of_maps(self, count: int) -> int:
        """The rows that routers keep, and the map of each, float32 ``[count, E]``."""
        model, whole = self.checkpoint, self.shape.n_routed_experts
        gates = [model.reader.info(model.family.gate_name(i)) for i in self.shape.moe_layers]
        return sum(one.nbytes // whole * (whole - count) + 4 * count * whole for one in gates)
