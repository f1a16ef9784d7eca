"""Where a served model leaves the published formula: chosen experts of negative probability.

The released code clamps nothing, so an expert whose mapped probability is negative can be among
the chosen and is given a negative weight. What is served and judged clamps mapped
probabilities at ``LEAST_PROBABILITY``: skipping compares weights with the largest, which
needs them positive. Such an expert then counts for nothing. Here it is counted how often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch

from leanmoe.layout import LEAST_PROBABILITY
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderLayer

# The logarithm of the clamp; that of no probability worth the name comes near it.
_AT_CLAMP = math.log(LEAST_PROBABILITY) + 1e-2


@dataclass
class Negatives:
    """Chosen (token, expert) pairs of mapped layers, and those at the clamp among them."""

    chosen: int = 0
    negative: int = 0

    def note(self) -> tuple[str, ...]:
        """What a user should know about them."""
        if not self.negative:
            return ()
        return (
            f"{self.negative} of {self.chosen} chosen experts have a mapped probability below "
            "zero: the published code would give them negative weights, and here, as when "
            "served, they count for nothing",
        )


@dataclass(frozen=True)
class CountingLayer(DecoderLayer):
    """A mapped layer, routing as served, that counts into ``counts``."""

    counts: Negatives = field(default_factory=Negatives)

    def route(self, logits_TE: torch.Tensor, kept: Sequence[int] | None = None) -> Routing:
        found = super().route(logits_TE, kept)
        logits_TK = logits_TE.gather(-1, found.ids_TK)
        self.counts.chosen += logits_TK.numel()
        self.counts.negative += int((logits_TK <= _AT_CLAMP).sum())
        return found


def counting(layer: DecoderLayer, counts: Negatives) -> CountingLayer:
    """The same layer, counting."""
    own = {one.name: getattr(layer, one.name) for one in fields(DecoderLayer)}
    return CountingLayer(**own, counts=counts)
