"""``--plan PLAN``: a file decides, written by a method or by hand."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from leanmoe_pruning.cutting.plan import PrunePlan, read_plan
from leanmoe_pruning.methods.method import Decision, Inputs, Method


@dataclass(frozen=True)
class Planned:
    """A plan that was read and checked against the model."""

    plan: PrunePlan

    def settings(self) -> dict[str, Any]:
        return {"plan": self.plan.model_dump(mode="json", exclude_none=True)}

    def decide(self, dump: bool) -> Decision:
        return Decision(self.plan.layers)


def _open(args: argparse.Namespace, inputs: Inputs) -> Planned:
    return Planned(read_plan(args.plan, inputs.checkpoint))


METHOD = Method("plan", "what a plan file says", _open, reads_data=False, takes_mixed=True)
