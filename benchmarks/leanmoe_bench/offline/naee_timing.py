"""Seconds that NAEE's losses take from Gram matrices, and by running the block per subset.

Both ways see the same random experts, tokens and router logits in bfloat16. The published way
runs the routed experts of the block for each subset, once over all subsets, in as many
portions as there are rounds; after each portion the Gram way runs whole, every expert's output
included. Where the two find different best subsets, that is an error.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe.errors import LeanMoEError
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.routing import RouterRule, route
from leanmoe_pruning.methods.naee.subsets import subset_losses
from leanmoe_pruning.methods.selection import complement, pruned_subsets
from leanmoe_pruning.progress import progress
from leanmoe_pruning.scores.gram import centred_gram
from leanmoe_pruning.scores.layer_scores import LayerScores
from leanmoe_pruning.scores.moments import Moments

_WINDOW = 256  # tokens per batch of the loss


@dataclass(frozen=True)
class LayerCut:
    """One layer and how it is to be cut: every subset of each size in ``keeps``."""

    experts: int
    top_k: int
    hidden: int
    ffn: int
    tokens: int
    keeps: list[int]
    rounds: int
    seed: int

    @property
    def subsets(self) -> list[tuple[int, ...]]:
        return [one for keep in self.keeps for one in pruned_subsets(self.experts, keep)]


@dataclass(frozen=True)
class Layer:
    """Random experts and what they are given."""

    experts: Experts
    x_TD: torch.Tensor
    logits_TE: torch.Tensor
    rule: RouterRule
    batch_of_T: torch.Tensor

    @classmethod
    def random(cls, cut: LayerCut) -> Layer:
        generator = torch.Generator().manual_seed(cut.seed)

        def normal(*size: int) -> torch.Tensor:
            drawn = torch.empty(size, dtype=torch.bfloat16)
            return drawn.normal_(0.0, size[-1] ** -0.5, generator=generator)

        gate_up = [(normal(cut.ffn, cut.hidden)) for _ in range(2 * cut.experts)]
        down = [normal(cut.hidden, cut.ffn) for _ in range(cut.experts)]
        x_TD = torch.randn(cut.tokens, cut.hidden, generator=generator)
        router_ED = torch.randn(cut.experts, cut.hidden, generator=generator)
        return cls(
            Experts(gate_up[::2], gate_up[1::2], down),
            x_TD,
            x_TD @ router_ED.T * cut.hidden**-0.5,
            RouterRule(cut.top_k, True),
            torch.arange(cut.tokens) // _WINDOW,
        )

    def output(self, kept: tuple[int, ...] | None = None) -> torch.Tensor:
        """The block run with its routed experts, float32 ``[T, D]``."""
        routing = route(self.logits_TE, self.rule, kept)
        everything = torch.ones(routing.ids_TK.shape, dtype=torch.bool)
        return self.experts.routed(self.x_TD, routing.applied(), routing.ids_TK, everything)

    def direct_loss(self, dropped: tuple[int, ...], target_TD: torch.Tensor) -> float:
        """NAEE's loss from a run of the block."""
        gap_TD = self.output(complement(dropped, len(self.experts))) - target_TD
        squared_T = gap_TD.double().square_().sum(-1)
        sums_B = torch.zeros(int(self.batch_of_T[-1]) + 1, dtype=torch.float64)
        return float(sums_B.index_add_(0, self.batch_of_T, squared_T).sqrt().sum())

    def gram_losses(self, subsets: list[tuple[int, ...]]) -> torch.Tensor:
        """The losses of all subsets from every expert's output."""
        outputs_ETD = self.experts.every_output(self.x_TD)
        routing = route(self.logits_TE, self.rule)
        target_TD = torch.zeros_like(self.x_TD)
        rows = torch.arange(len(self.x_TD))
        for ids_T, weights_T in zip(routing.ids_TK.T, routing.applied().T, strict=True):
            target_TD += outputs_ETD[ids_T, rows] * weights_T[:, None]
        gram_TP = centred_gram(outputs_ETD, target_TD)
        return subset_losses(self._scores(gram_TP), subsets, self.batch_of_T)

    def _scores(self, gram_TP: torch.Tensor) -> LayerScores:
        n_experts = len(self.experts)
        return LayerScores(
            layer=0,
            rule=self.rule,
            router_logits_TE=self.logits_TE,
            output_gram_TP=gram_TP,
            output_norm_TK=torch.zeros(len(gram_TP), self.rule.top_k),
            max_activation_E=torch.zeros(n_experts),
            moments=Moments.zeros(n_experts, 1, 1),
        )


@torch.inference_mode()
def measure(cut: LayerCut) -> dict[str, Any]:
    """Seconds per round of both ways, the published one's scaled to all subsets."""
    layer, subsets = Layer.random(cut), cut.subsets
    target_TD = layer.output()
    direct: list[float] = []
    seconds: dict[str, list[float]] = {"gram": [], "runs": []}
    losses = torch.empty(0)
    portion = -(-len(subsets) // cut.rounds)
    with progress("naee both ways", len(subsets)) as tick:
        for start in range(0, len(subsets), portion):
            began, part = time.perf_counter(), subsets[start : start + portion]
            for dropped in part:
                direct.append(layer.direct_loss(dropped, target_TD))
                tick()
            took = time.perf_counter() - began
            seconds["runs"].append(took * len(subsets) / len(part))
            began = time.perf_counter()
            losses = layer.gram_losses(subsets)
            seconds["gram"].append(time.perf_counter() - began)
    return {"subsets": len(subsets), "seconds": seconds, "best": _best(cut, losses, direct)}


def _best(cut: LayerCut, gram: torch.Tensor, direct: list[float]) -> dict[str, list[int]]:
    """The dropped experts that both ways find best, per size; raise where they differ."""
    found, start = {}, 0
    for keep in cut.keeps:
        subsets = pruned_subsets(cut.experts, keep)
        own = slice(start, start := start + len(subsets))
        one, other = int(gram[own].argmin()), int(torch.tensor(direct[own]).argmin())
        if one != other:
            raise LeanMoEError(
                f"keeping {keep}: {subsets[one]} are best from Gram matrices, {subsets[other]} run"
            )
        found[str(keep)] = list(subsets[one])
    return found
