"""Which calibration domain each scored token is of, and what every expert does for it.

A domain is one source of ``--data``. T tokens, K top-k, D domains, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from leanmoe.errors import InputError
from leanmoe_pruning.scores.layer_scores import LayerScores


@dataclass(frozen=True)
class Domains:
    """The sources of the scores: their names and, in the order of the tokens, their sizes."""

    names: tuple[str, ...]
    # (windows, tokens per window) of each.
    layout: tuple[tuple[int, int], ...]

    def check_several(self, asked: str) -> None:
        """Raise where there is nothing to hold one domain against."""
        if len(self.names) < 2:
            raise InputError(
                f"{asked} compares the calibration domains and these scores are of one, "
                f"{self.names[0]}; score a mix of several (--data A,B), or give --spread experts"
            )

    def of_tokens(self) -> torch.Tensor:
        """The domain of every scored token, int64 ``[T]``."""
        sizes = torch.tensor([windows * length for windows, length in self.layout])
        return torch.arange(len(self.names)).repeat_interleave(sizes)

    def usage(self, scores: LayerScores) -> torch.Tensor:
        """Share of a domain's routed assignments that an expert takes, float64 ``[D, E]``."""
        ids_TK = scores.routing().ids_TK
        return self._shares(ids_TK, torch.ones(ids_TK.shape), scores.n_experts)

    def coverage(self, scores: LayerScores) -> torch.Tensor:
        """Share of a domain's summed output norms, weighted by the router, float64 ``[D, E]``."""
        routing = scores.routing()
        weighted_TK = routing.applied() * scores.output_norm_TK
        return self._shares(routing.ids_TK, weighted_TK, scores.n_experts)

    def _shares(
        self, ids_TK: torch.Tensor, values_TK: torch.Tensor, n_experts: int
    ) -> torch.Tensor:
        place_TK = self.of_tokens()[:, None] * n_experts + ids_TK
        sums = torch.zeros(len(self.names) * n_experts, dtype=torch.float64)
        sums.index_add_(0, place_TK.flatten(), values_TK.double().flatten())
        sums_DE = sums.view(len(self.names), n_experts)
        return sums_DE / sums_DE.sum(1, keepdim=True).clamp_min(1e-300)


def identity(usage_L: Sequence[torch.Tensor]) -> float:
    """How far an expert's number means the same specialist in all layers, from about 0 to 1.

    ``usage_L`` holds the [D, E] of ``Domains.usage`` per layer. The profile of an expert is its
    share of every domain's tokens, less the mean over domains, at length 1; what is given back is
    the mean product of the profiles that one number has in two layers, over numbers and pairs of
    layers, less the same mean over pairs of different numbers. Where numbers mean nothing
    it is 0; 1 is a model whose expert e serves the same domains everywhere.
    """
    layers = len(usage_L)
    if layers < 2:
        return 0.0
    profile_LDE = torch.stack(list(usage_L))
    profile_LDE = profile_LDE - profile_LDE.mean(1, keepdim=True)
    profile_LDE = profile_LDE / profile_LDE.norm(dim=1, keepdim=True).clamp_min(1e-12)
    n_experts = profile_LDE.shape[2]
    own, every = _pair_products(profile_LDE), _pair_products(profile_LDE.sum(2, keepdim=True))
    pairs = layers * (layers - 1)
    same = own / (pairs * n_experts)
    other = (every - own) / (pairs * n_experts * max(1, n_experts - 1))
    return float(same - other)


def _pair_products(vectors_LDE: torch.Tensor) -> torch.Tensor:
    """Inner products of the vectors of two different layers, summed over all such pairs."""
    return vectors_LDE.sum(0).square().sum() - vectors_LDE.square().sum()
