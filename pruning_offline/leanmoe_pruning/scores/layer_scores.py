"""The pass over calibration data that every selection method decides from.

Per MoE layer it leaves the router logits of every token, the packed Gram matrix of
the expert outputs (see ``gram``) on all tokens or a sample, the norm of every routed
output and the sums of squares that weights are ranked by (see ``moments``): token
counts, router weight, w_j/w_max ratios, saliencies and the loss of every subset follow
from these without the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from leanmoe_pruning.forward.routing import RouterRule, Routing, route
from leanmoe_pruning.scores.moments import Moments
from leanmoe_pruning.scores.sampling import evenly_spaced


@dataclass(frozen=True)
class LayerScores:
    """Sufficient statistics of one MoE layer."""

    layer: int
    rule: RouterRule
    # float32 [T, E]
    router_logits_TE: torch.Tensor
    # Packed Gram matrices, float64 [T, P], or [S, P] of S sampled tokens (``gram_tokens``).
    output_gram_TP: torch.Tensor
    # L2 norm of the unweighted expert output of each routed assignment, float32 [T, K].
    output_norm_TK: torch.Tensor
    # Largest signed entry of an expert's routed outputs, at least 0, float32 [E].
    max_activation_E: torch.Tensor
    moments: Moments
    # Largest absolute entry of an expert's routed outputs, float32 [E]; bundles made before it was
    # taken down have none.
    peak_output_E: torch.Tensor | None = None
    # What an expert's output does to the predictions, float32 [S, E] (``effects``), where asked.
    effects_SE: torch.Tensor | None = None

    @property
    def n_experts(self) -> int:
        return self.router_logits_TE.shape[1]

    @property
    def gram_tokens(self) -> torch.Tensor:
        """Which tokens the Gram matrices are of, int64, ascending."""
        return evenly_spaced(len(self.router_logits_TE), len(self.output_gram_TP))

    def routing(self, kept: Sequence[int] | None = None) -> Routing:
        """Routing of every token among the ``kept`` experts, all where ``None``."""
        return route(self.router_logits_TE, self.rule, kept)

    def token_counts(self) -> torch.Tensor:
        """Tokens routed to each expert, int64 ``[E]``."""
        ids_TK = self.routing().ids_TK
        return torch.bincount(ids_TK.flatten(), minlength=self.n_experts)

    def gate_mass(self) -> torch.Tensor:
        """Sum of applied router weights per expert, float64 ``[E]``."""
        routing = self.routing()
        return self._summed(routing.ids_TK, routing.applied())

    def work(self) -> torch.Tensor:
        """Sum of output norms times applied router weights per expert, float64 ``[E]``."""
        routing = self.routing()
        return self._summed(routing.ids_TK, routing.applied() * self.output_norm_TK)

    def _summed(self, ids_TK: torch.Tensor, values_TK: torch.Tensor) -> torch.Tensor:
        total_E = torch.zeros(self.n_experts, dtype=torch.float64)
        return total_E.index_add_(0, ids_TK.flatten(), values_TK.double().flatten())


def weight_ratios(routing: Routing) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """w_j / w_max of every routed assignment but the first, flat; NAEE's w1/w0 for K = 2."""
    return np.asarray(routing.ratios[:, 1:].flatten().numpy(), dtype=np.float32)


def median_beta(routing: Routing) -> float:
    """NAEE's beta: the median ratio, the mean of the middle two for an even count."""
    ratios = weight_ratios(routing).astype(np.float64)
    return float(np.median(ratios)) if len(ratios) else 0.0


class Gathering:
    """Scores of consecutive tokens of one layer, taken portion by portion; sums are kept as one."""

    def __init__(self) -> None:
        self._parts: list[LayerScores] = []

    def take(self, part: LayerScores) -> None:
        """Add further tokens; the first ones' sums are taken over."""
        if self._parts:
            moments = self._parts[0].moments
            moments.add_(part.moments)
            part = replace(part, moments=moments)
        self._parts.append(part)

    def whole(self) -> LayerScores | None:
        """All as one; ``None`` where there was nothing."""
        if not self._parts:
            return None
        parts, first = self._parts, self._parts[0]
        return replace(
            first,
            router_logits_TE=torch.cat([part.router_logits_TE for part in parts]),
            output_gram_TP=torch.cat([part.output_gram_TP for part in parts]),
            output_norm_TK=torch.cat([part.output_norm_TK for part in parts]),
            max_activation_E=torch.stack([part.max_activation_E for part in parts]).amax(0),
            peak_output_E=_highest([part.peak_output_E for part in parts]),
        )


def _highest(peaks: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    known = [peak_E for peak_E in peaks if peak_E is not None]
    return torch.stack(known).amax(0) if len(known) == len(peaks) else None
