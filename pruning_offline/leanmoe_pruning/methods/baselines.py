"""Yardsticks a method must beat: keep the most routed experts, or any."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from leanmoe.families import MoEShape
from leanmoe_pruning.methods.selection import LayerChoice
from leanmoe_pruning.scoring import LayerScores


def frequency(layers: Iterable[LayerScores], shape: MoEShape, keep: int) -> Iterator[LayerChoice]:
    """Keep the experts that most tokens were routed to; ties go to the lower number."""
    for scores in layers:
        counts = scores.token_counts(shape).tolist()
        order = sorted(range(len(counts)), key=lambda expert: (-counts[expert], expert))
        yield LayerChoice(scores.layer, tuple(sorted(order[:keep])))


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
