"""Which experts are merged into which: groups around the most used, by what the router says.

As released: the dominant experts of a layer are its most used; every other expert joins the
dominant one whose router logits, over all tokens, have the largest cosine with its own; a
group's weights are averaged by how often each member is used. Ties go to the lower number.
E experts, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from leanmoe.families import MoEShape
from leanmoe_pruning.methods.saliency import highest
from leanmoe_pruning.scores.layer_scores import LayerScores


@dataclass(frozen=True)
class Usage:
    """One layer's token counts ``[E]`` and cosines of router logits ``[E, E]``."""

    layer: int
    counts: list[int]
    similarity_EE: torch.Tensor

    @classmethod
    def of(cls, scores: LayerScores) -> Usage:
        logits_TE = scores.router_logits_TE.double()
        products_EE = logits_TE.T @ logits_TE
        norm_E = products_EE.diagonal().sqrt().clamp_min(1e-12)
        similarity_EE = products_EE / norm_E[:, None] / norm_E
        return cls(scores.layer, scores.token_counts().tolist(), similarity_EE)

    def shares(self) -> list[float]:
        """The part of all routed assignments that each expert has."""
        total = sum(self.counts) or 1
        return [count / total for count in self.counts]


@dataclass(frozen=True)
class Grouping:
    """One layer's groups: the dominant expert and the members, itself among them, by group."""

    layer: int
    dominant: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]

    def weights(self, counts: Sequence[int]) -> list[list[float]]:
        """What each group's weights are made of, ``[G, E]``: shares of use within the group.

        A group no token was routed to is its dominant expert alone.
        """
        rows = []
        for chief, group in zip(self.dominant, self.members, strict=True):
            total = sum(counts[expert] for expert in group)
            shares = {expert: counts[expert] / total for expert in group} if total else {chief: 1.0}
            rows.append([float(shares.get(expert, 0.0)) for expert in range(len(counts))])
        return rows

    def indicators(self, n_experts: int) -> list[list[float]]:
        """A group is as probable as its members together, ``[G, E]``."""
        return [[float(e in group) for e in range(n_experts)] for group in self.members]

    def dominants(self, n_experts: int) -> list[list[float]]:
        """A group is as probable as its dominant expert, ``[G, E]``."""
        return [[float(e == chief) for e in range(n_experts)] for chief in self.dominant]


def group(usage: Usage, keep: int) -> Grouping:
    """Groups around the ``keep`` most used experts of a layer."""
    dominant = highest([float(count) for count in usage.counts], keep)
    joined: dict[int, list[int]] = {chief: [chief] for chief in dominant}
    for expert in range(len(usage.counts)):
        if expert not in joined:
            likeness = usage.similarity_EE[expert].tolist()
            joined[max(dominant, key=lambda chief: (likeness[chief], -chief))].append(expert)
    members = tuple(tuple(sorted(joined[chief])) for chief in dominant)
    return Grouping(usage.layer, dominant, members)


def share_out(usages: Sequence[Usage], total: int, shape: MoEShape) -> list[int]:
    """Groups per layer, ``total`` in all: the experts most used within their layers lead.

    As published, where each layer has at least one; here it has the router's top-k.
    """
    counts = [shape.top_k] * len(usages)
    ranked = [
        (-share, place, rank)
        for place, usage in enumerate(usages)
        for rank, share in enumerate(sorted(usage.shares(), reverse=True))
        if rank >= shape.top_k
    ]
    for _, place, _ in sorted(ranked)[: total - sum(counts)]:
        counts[place] += 1
    return counts
