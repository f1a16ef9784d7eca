"""``--plan PLAN``: a file decides, written by a method or by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leanmoe_pruning.cutting.layer_plan import PrunePlan, read_plan
from leanmoe_pruning.cutting.packing import check_sums
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.options import NoOptions


@dataclass(frozen=True)
class Planned:
    """A plan that was read and checked against the model."""

    plan: PrunePlan

    def settings(self) -> dict[str, Any]:
        return {"plan": self.plan.model_dump(mode="json", exclude_none=True)}

    def decide(self, dump: bool) -> Decision:
        return Decision(self.plan.layers)


def _open(request: Request, options: NoOptions, inputs: Inputs) -> Planned:
    assert request.plan is not None, "without a plan it is not asked"
    plan = read_plan(request.plan, inputs.checkpoint)
    if any(one.merge is not None and one.merge.adds_up for one in plan.layers.values()):
        check_sums(inputs.checkpoint, request.compress)
    return Planned(plan)


METHOD = Method(
    "plan",
    "what a plan file says",
    _open,
    NoOptions,
    reads_data=False,
    takes_mixed=True,
    selects=True,
)
