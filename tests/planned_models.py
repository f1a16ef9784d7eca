"""Plans that use every way of cutting a layer a family allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe.cli import main
from leanmoe_pruning.cutting.layer_plan import LayerPlan, Merge, PrunePlan


def mixed_plan(checkpoint: Checkpoint) -> PrunePlan:
    """Its first MoE layer keeps some, the second is condensed, the third merged or cut to top-1."""
    kept = LayerPlan(keep=(0, 2, 3, 4, 6, 7))
    condensed = LayerPlan(condense={1: 0.3, 4: 0.5, 5: 0.15})
    count = checkpoint.shape.n_routed_experts
    generator = torch.Generator().manual_seed(5)

    def drawn(low: float) -> list[list[float]]:
        matrix = torch.rand(5, count, generator=generator) * (1 - low) + low
        return [[round(value, 4) for value in row] for row in (matrix * 0.4).tolist()]

    merged = LayerPlan(merge=Merge(router=drawn(0.0), experts=drawn(-0.3)))
    last = merged if checkpoint.family.transfers else LayerPlan(keep=(0, 1, 4, 5), top_k=1)
    return PrunePlan(
        layers=dict(zip(checkpoint.shape.moe_layers, (kept, condensed, last), strict=False))
    )


def condensed_plan(checkpoint: Checkpoint) -> PrunePlan:
    """Its first MoE layer is left with the shared expert alone, the last with three more."""
    gated = checkpoint.family.parts.shared_gate is not None
    bare = LayerPlan(condense={}, shared_gate=0.3 if gated else None)
    rich = LayerPlan(condense={1: 0.3, 4: 0.5, 5: 0.15}, shared_gate=0.7 if gated else None)
    first, *_, last = checkpoint.shape.moe_layers
    return PrunePlan(layers={first: bare, last: rich})


def write_planned(
    source: Path, out: Path, plan_of: Callable[[Checkpoint], PrunePlan] = mixed_plan
) -> PrunePlan:
    """Cut ``source`` by a plan with the command; return the plan."""
    plan = plan_of(open_checkpoint(source))
    file = out.with_suffix(".plan.json")
    file.write_text(plan.model_dump_json(exclude_none=True))
    assert main(["prune", str(source), "--plan", str(file), "-o", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["leanmoe"]["layers"]
    return plan
