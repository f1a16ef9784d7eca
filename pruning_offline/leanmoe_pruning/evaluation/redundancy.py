"""Whether a model has experts to spare: a cheap look before a cut is written.

Some models lose next to nothing with half of their experts, others keep a sixth of what they
could do. From the scores of a few hundred tokens three figures say which kind a model is:

- loss: ||what the cut block gives - what the whole one gives||^2 over ||the latter||^2, the mean
  over tokens (routed experts only). 0 is no change; 1 is what no experts at all would lose. A
  ratio of sums would be that of the few tokens whose outputs are a thousand times larger.
- similarity: mean cosine between the outputs of two experts for one token.
- used: how many experts carry the routing, exp of the entropy of their router weight.

Outputs that change need not change what the model says. Where scores hold effects
(``scores.effects``), a fourth figure tells: the divergence of its predictions to expect.

T tokens, E experts, P packed Gram entries (``scores.gram``), L layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe_pruning.cutting.layer_plan import LayerPlan
from leanmoe_pruning.forward.routing import RouterRule, route
from leanmoe_pruning.scores.gram import squared_distance
from leanmoe_pruning.scores.layer_scores import LayerScores
from leanmoe_pruning.scores.sampling import evenly_spaced

# Tokens looked at, and bytes of Gram matrices kept, per layer.
TOKENS = 256
_BYTES = 1 << 22
COLLAPSE = 0.25
# Nats per token that a cut is expected to cost, where that is known, from which we warn.
COLLAPSE_NATS = 0.1


_ADVICE = "keep more experts, or judge the result with `leanmoe eval --against` before you use it"


@dataclass(frozen=True)
class LayerSample:
    """One layer's scores on a few tokens, evenly spaced; ``mass_E`` is of all tokens."""

    layer: int
    rule: RouterRule
    logits_TE: torch.Tensor
    gram_TP: torch.Tensor
    mass_E: torch.Tensor
    # Summed norms of an expert's outputs, weighted by the router, float64 [E], of all tokens.
    work_E: torch.Tensor
    # ``LayerScores.peak_output_E``.
    peak_E: torch.Tensor | None

    @classmethod
    def of(cls, scores: LayerScores) -> LayerSample:
        held_TP = scores.output_gram_TP
        count = max(1, min(TOKENS, len(held_TP), _BYTES // (held_TP.shape[1] * 8)))
        some = evenly_spaced(len(held_TP), count)
        logits_TE = scores.router_logits_TE[scores.gram_tokens[some]]
        return cls(
            scores.layer,
            scores.rule,
            logits_TE,
            held_TP[some],
            scores.gate_mass(),
            scores.work(),
            scores.peak_output_E,
        )

    @property
    def n_experts(self) -> int:
        return len(self.mass_E)

    def loss(self, kept: Sequence[int]) -> float:
        """Relative loss of keeping these experts."""
        routing = route(self.logits_TE, self.rule, kept)
        squared_ST = squared_distance(
            self.gram_TP, routing.applied()[None], routing.ids_TK[None], self.n_experts
        )
        whole_T = self.gram_TP[:, -1]
        some_T = whole_T > 0
        return float((squared_ST[0, some_T] / whole_T[some_T]).mean()) if some_T.any() else 0.0

    def similarity(self) -> float:
        """Mean cosine of two experts' outputs."""
        n = self.n_experts
        row, column = torch.triu_indices(n + 1, n + 1)
        gram_TEE = torch.zeros(len(self.gram_TP), n + 1, n + 1, dtype=torch.float64)
        gram_TEE[:, row, column] = self.gram_TP
        gram_TEE[:, column, row] = self.gram_TP
        to_z_TE, z_T11 = gram_TEE[:, :n, n], gram_TEE[:, n:, n:]
        # f_i . f_j out of g = f - z.
        inner_TEE = gram_TEE[:, :n, :n] + to_z_TE[:, :, None] + to_z_TE[:, None] + z_T11
        norm_TE = inner_TEE.diagonal(dim1=1, dim2=2).clamp_min(1e-30).sqrt()
        cosine_TEE = inner_TEE / (norm_TE[:, :, None] * norm_TE[:, None])
        off = cosine_TEE.sum((1, 2)) - n
        return float(off.mean()) / max(1, n * (n - 1))

    def used(self) -> float:
        """Experts that carry the routing, from 1 to E."""
        share_E = self.mass_E / self.mass_E.sum()
        return float(torch.special.entr(share_E).sum().exp())

    def most_used(self, keep: int) -> tuple[int, ...]:
        """The experts with the most router weight: what a cut keeps if nothing else is decided."""
        best = self.mass_E.argsort(descending=True, stable=True)[:keep]
        return tuple(sorted(best.tolist()))


@dataclass(frozen=True)
class Redundancy:
    """The three figures of every layer."""

    layers: tuple[int, ...]
    loss: tuple[float, ...]
    similarity: tuple[float, ...]
    used: tuple[float, ...]
    n_experts: int
    # Looked at in each layer.
    tokens: int
    # Nats per token to expect, by the effects of experts; None where the scores hold none.
    divergence: float | None = None

    @property
    def mean_loss(self) -> float:
        return sum(self.loss) / len(self.loss)

    @property
    def mean_similarity(self) -> float:
        return sum(self.similarity) / len(self.similarity)

    @property
    def collapses(self) -> bool:
        if self.divergence is None:
            return self.mean_loss > COLLAPSE
        return self.divergence > COLLAPSE_NATS

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        figures = {"loss": self.loss, "similarity": self.similarity, "used": self.used}
        return {
            "tokens": self.tokens,
            "collapse_above": COLLAPSE,
            "mean_loss": round(self.mean_loss, 6),
            **self._expected(),
            **{
                name: {str(i): round(v, 6) for i, v in zip(self.layers, values, strict=True)}
                for name, values in figures.items()
            },
        }

    def _expected(self) -> dict[str, float]:
        if self.divergence is None:
            return {}
        return {
            "expected_divergence": round(self.divergence, 6),
            "collapse_above_divergence": COLLAPSE_NATS,
        }

    def warning(self) -> str | None:
        """A sentence where the cut looks like one that collapses, or only its outputs do."""
        if self.divergence is None:
            return self._warning_by_outputs() if self.collapses else None
        if self.collapses:
            return (
                f"this cut may collapse: its predictions are expected to diverge by "
                f"{self.divergence:.2g} nats per token (we warn from {COLLAPSE_NATS}; where so "
                "much goes it is a rough estimate), the blocks' outputs change by "
                f"{self.mean_loss:.0%} of their squared size on average; {_ADVICE}"
            )
        if self.mean_loss <= COLLAPSE:
            return None
        return (
            f"the blocks' outputs change by {self.mean_loss:.0%} of their squared size on average, "
            "but by the effects of the experts the predictions are expected to diverge by "
            f"{self.divergence:.2g} nats per token only; that is an estimate from the text that "
            "was scored, other text loses more: measure it with `leanmoe eval --against`"
        )

    def _warning_by_outputs(self) -> str:
        worst = self.layers[self.loss.index(max(self.loss))]
        return (
            f"this cut may collapse: the blocks' outputs change by {self.mean_loss:.0%} of their "
            f"squared size on average (layer {worst}: {max(self.loss):.0%}; we warn from "
            f"{COLLAPSE:.0%}), their experts have a mean cosine of {self.mean_similarity:.2f} and "
            f"{sum(self.used) / len(self.used):.1f} of {self.n_experts} carry the routing; "
            f"{_ADVICE}"
        )


def redundancy(
    scores: Iterable[LayerScores | LayerSample], kept: int | Mapping[int, Sequence[int]]
) -> Redundancy:
    """Figures of a cut to ``kept`` experts per layer, or to a number of the most used ones."""
    samples = [one if isinstance(one, LayerSample) else LayerSample.of(one) for one in scores]
    chosen = {
        one.layer: one.most_used(kept) if isinstance(kept, int) else kept[one.layer]
        for one in samples
    }
    return Redundancy(
        tuple(one.layer for one in samples),
        tuple(one.loss(chosen[one.layer]) for one in samples),
        tuple(one.similarity() for one in samples),
        tuple(one.used() for one in samples),
        max(one.n_experts for one in samples),
        max(len(one.logits_TE) for one in samples),
    )


def cuts_experts(plans: Mapping[int, LayerPlan]) -> bool:
    """Whether a decision is one to leave experts out, and nothing else."""
    lowered = any(plan.top_k is not None for plan in plans.values())
    return bool(plans) and not lowered and all(plan.keep is not None for plan in plans.values())


def redundancy_of(
    samples: Iterable[LayerSample], plans: Mapping[int, LayerPlan]
) -> Redundancy | None:
    """Figures of a decided cut of experts; ``None`` where none of its layers was looked at."""
    kept = {layer: plan.kept for layer, plan in plans.items()}
    by_layer = {one.layer: one for one in samples if one.layer in kept}
    return redundancy([by_layer[i] for i in sorted(by_layer)], kept) if by_layer else None
