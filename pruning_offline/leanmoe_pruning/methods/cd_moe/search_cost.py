"""What a search costs, in forward passes of the whole model over all documents.

A layer run counts in full, condensed or not. An expert computed beside such runs counts by
its share of what a token passes in a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from leanmoe_pruning.forward.stream import DecoderLayer


def active_weights(layer: DecoderLayer) -> int:
    """Weights of matrix products that one token meets in a MoE layer."""
    assert layer.experts is not None and layer.gate_ED is not None
    held = [one.numel() for one in layer.attention.module.parameters() if one.dim() > 1]
    always = layer.always
    if always is not None:
        held += [one.numel() for one in (always.gate_proj, always.up_proj, always.down_proj)]
    always_met: int = sum(held) + layer.gate_ED.numel()
    return always_met + layer.rule.top_k * expert_weights(layer)


def expert_weights(layer: DecoderLayer) -> int:
    """Weights of one routed expert."""
    experts = layer.experts
    assert experts is not None
    parts = (experts.gate_proj[0], experts.up_proj[0], experts.down_proj[0])
    return sum(part.numel() for part in parts)


@dataclass
class Work:
    """A count that goes up as layers are run; ``tokens`` are those of all documents."""

    n_layers: int
    tokens: int
    layer_tokens: float = 0.0

    def layer(self, tokens: int) -> None:
        """A layer was run on so many tokens."""
        self.layer_tokens += tokens

    def expert(self, layer: DecoderLayer, tokens: int) -> None:
        """One expert was run on so many tokens."""
        self.layer_tokens += tokens * expert_weights(layer) / active_weights(layer)

    @property
    def forwards(self) -> float:
        """Passes of the whole model over all documents."""
        return self.layer_tokens / (self.n_layers * self.tokens)


def published_forwards(n_experts: int, selected: int, moe_layers: int, condensed: int) -> int:
    """What the published scripts run: one pass per candidate expert and per candidate layer."""
    per_layer = sum(n_experts - step for step in range(selected))
    return per_layer * moe_layers + sum(moe_layers - step for step in range(condensed))
