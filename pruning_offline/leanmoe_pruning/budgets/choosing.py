"""Experts chosen layer by layer within a budget; losses measured where layers may differ.

The loss of a choice is the norm of what it changes in the layer's routed output over the norm
of that output, both over all tokens that have a Gram matrix: a share, so that layers whose
outputs are large and small can be compared. L layers, R counts a layer may have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe.families import MoEShape
from leanmoe_pruning.budgets.budget import Budget, allowed_counts
from leanmoe_pruning.budgets.programme import allot
from leanmoe_pruning.forward.routing import route
from leanmoe_pruning.methods.selection import LayerChoice
from leanmoe_pruning.scores.gram import squared_distance
from leanmoe_pruning.scores.layer_scores import LayerScores

# Looks at a layer once and gives its choice for any number of experts it may keep.
Chooser = Callable[[int], LayerChoice]
Selector = Callable[[LayerScores], Chooser]


@dataclass(frozen=True)
class LossTable:
    """What an adaptive budget was decided on: a loss per layer and count, and the counts taken."""

    counts: list[int]
    losses: list[list[float]]
    chosen: list[int]

    def tensors(self) -> dict[str, torch.Tensor]:
        """``budget.counts`` [R], ``budget.losses`` float64 [L, R], ``budget.chosen`` [L]."""
        return {
            "budget.counts": torch.tensor(self.counts),
            "budget.losses": torch.tensor(self.losses, dtype=torch.float64),
            "budget.chosen": torch.tensor(self.chosen),
        }

    def facts(self) -> dict[str, Any]:
        """The chosen counts and what they and an even share lose by the same measure."""
        places = [self.counts.index(count) for count in self.chosen]
        total = sum(own[place] for own, place in zip(self.losses, places, strict=True))
        facts: dict[str, Any] = {"chosen": self.chosen, "loss": total}
        even = sum(self.chosen) / len(self.chosen)
        if even in self.counts:
            place = self.counts.index(int(even))
            facts["uniform_loss"] = sum(own[place] for own in self.losses)
        return facts


def choose_layers(
    layers: Iterable[LayerScores], select: Selector, budget: Budget, shape: MoEShape
) -> tuple[list[LayerChoice], LossTable | None]:
    """The choice of every layer; a table of losses where the budget is shared out by them."""
    if budget.keep is not None:
        return [select(scores)(budget.keep) for scores in layers], None
    counts = allowed_counts(shape)
    options: list[list[LayerChoice]] = []
    losses: list[list[float]] = []
    for scores in layers:
        options.append(list(map(select(scores), counts)))
        losses.append(relative_losses(scores, [choice.kept for choice in options[-1]]))
    tables = [dict(zip(counts, own, strict=True)) for own in losses]
    chosen = list(allot(tables, budget.total))
    taken = [own[counts.index(n)] for own, n in zip(options, chosen, strict=True)]
    return taken, LossTable(counts, losses, chosen)


def relative_losses(scores: LayerScores, kept: Sequence[Sequence[int]]) -> list[float]:
    """Norm of the change of the layer's routed output over the output's norm, per kept set."""
    logits_TE = scores.router_logits_TE[scores.gram_tokens]
    gram_TP = scores.output_gram_TP
    # The last of the packed products is the output's with itself.
    whole = float(gram_TP[:, -1].sum().sqrt()) or 1.0
    return [_change(scores, logits_TE, own) / whole for own in kept]


def _change(scores: LayerScores, logits_TE: torch.Tensor, kept: Sequence[int]) -> float:
    routing = route(logits_TE, scores.rule, kept)
    squared_1T = squared_distance(
        scores.output_gram_TP, routing.applied()[None], routing.ids_TK[None], scores.n_experts
    )
    return float(squared_1T.sum().sqrt())
