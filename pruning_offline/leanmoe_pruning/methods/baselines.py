"""Yardsticks a method must beat: keep the most routed experts, or any."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe.families import MoEShape
from leanmoe_pruning.methods.evidence import measure_model_ratios, ratio_tensors
from leanmoe_pruning.methods.method import Decision, Inputs, Method
from leanmoe_pruning.methods.options import experts_to_keep
from leanmoe_pruning.methods.selection import LayerChoice, first_of_groups, plans_of
from leanmoe_pruning.scores.scoring import LayerScores


def frequency(layers: Iterable[LayerScores], keep: int) -> Iterator[LayerChoice]:
    """Keep the experts that most tokens were routed to; ties go to the lower number."""
    for scores in layers:
        counts = scores.token_counts().tolist()
        order = sorted(range(len(counts)), key=lambda expert: (-counts[expert], expert))
        yield LayerChoice(scores.layer, first_of_groups(order, keep, scores.rule.n_groups))


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
class Frequency:
    """A checked run of ``--method frequency``."""

    inputs: Inputs
    keep: int

    def settings(self) -> dict[str, Any]:
        return {"keep": self.keep}

    def decide(self, dump: bool) -> Decision:
        choices = list(frequency(self.inputs.layers(), self.keep))
        run = f"frequency_r{self.keep}"
        return _decision(self.inputs, choices, run) if dump else Decision(plans_of(choices))


@dataclass(frozen=True)
class AtRandom:
    """A checked run of ``--method random``."""

    inputs: Inputs
    keep: int

    def settings(self) -> dict[str, Any]:
        return {"keep": self.keep, "seed": self.inputs.seed}

    def decide(self, dump: bool) -> Decision:
        choices = list(at_random(self.inputs.shape, self.keep, self.inputs.seed))
        run = f"random_r{self.keep}"
        return _decision(self.inputs, choices, run) if dump else Decision(plans_of(choices))


def _decision(inputs: Inputs, choices: list[LayerChoice], run: str) -> Decision:
    ratios = measure_model_ratios(inputs, run, choices, [])
    kept = [list(choice.kept) for choice in choices]
    tensors = {f"{run}.kept": torch.tensor(kept), **ratio_tensors(ratios)}
    betas = {name: [one.beta for one in found] for name, found in ratios.items()}
    return Decision(plans_of(choices), tensors, {run: {"kept": kept}, "betas": betas})


def _open_frequency(args: argparse.Namespace, inputs: Inputs) -> Frequency:
    keep = experts_to_keep(args, inputs)
    inputs.need_scores("frequency")
    return Frequency(inputs, keep)


def _open_random(args: argparse.Namespace, inputs: Inputs) -> AtRandom:
    return AtRandom(inputs, experts_to_keep(args, inputs))


FREQUENCY = Method("frequency", "the experts most tokens were routed to", _open_frequency)
RANDOM = Method("random", "any experts, drawn by --seed", _open_random, reads_data=False)
