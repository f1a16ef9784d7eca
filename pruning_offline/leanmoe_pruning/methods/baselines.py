"""The yardstick a method must beat: any experts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leanmoe.families import MoEShape
from leanmoe_pruning.methods.gate_ratios import evidence_of
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.request import Request
from leanmoe_pruning.methods.selection import LayerChoice, plans_of
from leanmoe_pruning.options import NoOptions


def at_random(shape: MoEShape, keep: int, seed: int) -> Iterator[LayerChoice]:
    """Keep ``keep`` experts per layer, as many of each group, drawn from one seeded generator."""
    generator = random.Random(seed)
    size, share = shape.n_routed_experts // shape.n_groups, keep // shape.n_groups
    for layer in shape.moe_layers:
        kept = [
            group * size + expert
            for group in range(shape.n_groups)
            for expert in generator.sample(range(size), share)
        ]
        yield LayerChoice(layer, tuple(sorted(kept)))


@dataclass(frozen=True)
class AtRandom:
    """A checked run of ``--method random``."""

    inputs: Inputs
    keep: int

    def settings(self) -> dict[str, Any]:
        return {"keep": self.keep, "seed": self.inputs.seed}

    def decide(self, dump: bool) -> Decision:
        choices = list(at_random(self.inputs.shape, self.keep, self.inputs.seed))
        if not dump:
            return Decision(plans_of(choices))
        evidence = evidence_of(self.inputs, f"random_r{self.keep}", choices)
        return Decision(plans_of(choices), *evidence)


def _open_random(request: Request, options: NoOptions, inputs: Inputs) -> AtRandom:
    return AtRandom(inputs, request.experts_to_keep(inputs.checkpoint))


RANDOM = Method(
    "random",
    "any experts, drawn by --seed",
    _open_random,
    NoOptions,
    reads_data=False,
    selects=True,
)
