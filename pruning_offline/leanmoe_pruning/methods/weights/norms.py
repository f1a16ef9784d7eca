"""How strongly each input column of an expert's matrices is driven.

n_j = sqrt(sum over tokens routed to the expert of (g_t x_tj)^2), with g the applied router
weight (MoE-Pruner, arXiv 2410.12013) or 1 (Wanda, arXiv 2306.11695). An expert that no token
was routed to is judged by all tokens, and by its weights alone where even those are zero.
E experts, D model, F expert hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leanmoe.families.base import PROJECTIONS, Projection
from leanmoe_pruning.scores.moments import Moments


@dataclass(frozen=True)
class ColumnNorms:
    """float64 ``[E, columns]`` per projection, and the experts judged otherwise."""

    by_projection: dict[Projection, torch.Tensor]
    by_all_tokens: tuple[int, ...] = ()
    by_weight: tuple[int, ...] = ()

    @classmethod
    def of(cls, moments: Moments, gated: bool) -> ColumnNorms:
        """The norms that MoE-Pruner (``gated``) or Wanda multiply weights with."""
        input_ED = moments.gated_input_ED if gated else moments.input_ED
        hidden_EF = moments.gated_hidden_EF if gated else moments.hidden_EF
        unrouted, silent = (moments.calls_E == 0).nonzero().flatten().tolist(), []
        input_ED, hidden_EF = input_ED.clone(), hidden_EF.clone()
        for expert in unrouted:
            input_ED[expert] = moments.all_input_D
            hidden_EF[expert] = moments.all_hidden_EF[expert]
            for row in (input_ED[expert], hidden_EF[expert]):
                if not row.any():
                    row.fill_(1.0)
                    silent.append(expert)
        norms = {"gate_proj": input_ED, "up_proj": input_ED, "down_proj": hidden_EF}
        return cls(
            {projection: norms[projection].sqrt() for projection in PROJECTIONS},
            tuple(unrouted),
            tuple(sorted(set(silent))),
        )


def told(found: dict[int, tuple[int, ...]], what: str) -> tuple[str, ...]:
    """One sentence that names experts by layer, or none."""
    named = "; ".join(
        f"layer {layer}: {', '.join(map(str, experts))}"
        for layer, experts in sorted(found.items())
        if experts
    )
    return (f"{what} ({named})",) if named else ()
