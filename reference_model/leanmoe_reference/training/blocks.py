"""Trainable blocks: low-rank experts (Mixtral's shape), small ones (Qwen2-MoE's), one adapter.

All say which experts a token uses by a matrix of weights ``[M, E]``, zero where an expert
is not used; it comes from the router or, while experts are made, is enforced.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from leanmoe_reference.training.network import FrozenLayer, Parent

Tensor = torch.Tensor
SCALE = 2.0


@dataclass
class Routes:
    """How tokens find experts in one forward pass, and what the routers said.

    ``enforced_ME`` overrides the routers; ``top_k`` and ``betas`` (one per layer: an expert
    whose weight is below beta times the first one's is skipped) change the routers' choice.
    """

    enforced_ME: Tensor | None = None
    top_k: int | None = None
    betas: dict[int, float] | None = None
    logits_ME: dict[int, Tensor] = field(default_factory=dict)
    weights_MK: dict[int, Tensor] = field(default_factory=dict)


class TrainableBlock(ABC):
    """Parameters by name (float32), what is not trained, and the block output they make."""

    n_experts: int
    top_k: int
    moe_layers: tuple[int, ...]

    def __init__(self) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.fixed: dict[str, Tensor] = {}

    @abstractmethod
    def output(self, layer: int, x_MD: Tensor, frozen: FrozenLayer, weights_ME: Tensor) -> Tensor:
        """The block output of one MoE layer."""

    @abstractmethod
    def rate(self, name: str) -> float:
        """Learning rate of a parameter, relative to the recipe's."""

    @abstractmethod
    def across(self, name: str) -> bool:
        """Whether a matrix has its neurons or ranks as columns; files have them as rows."""

    def run(self, routes: Routes, layer: int, x_MD: Tensor, frozen: FrozenLayer) -> Tensor:
        """The block output of any layer under ``routes``."""
        if layer not in self.moe_layers:
            return frozen.feed_forward(x_MD)
        if self.n_experts == 1:
            return self.output(layer, x_MD, frozen, x_MD.new_ones(len(x_MD), 1))
        gate_ED = self.parameters[f"layers.{layer}.gate"].to(x_MD.dtype)
        fixed = routes.enforced_ME is not None
        logits_ME = ((x_MD.detach() if fixed else x_MD) @ gate_ED.T).float()
        routes.logits_ME[layer] = logits_ME
        weights_ME = self._choose(routes, layer, logits_ME)
        return self.output(layer, x_MD, frozen, weights_ME.to(x_MD.dtype))

    def _choose(self, routes: Routes, layer: int, logits_ME: Tensor) -> Tensor:
        if routes.enforced_ME is not None:
            return routes.enforced_ME
        weights_MK, ids_MK = logits_ME.softmax(-1).topk(routes.top_k or self.top_k, dim=-1)
        routes.weights_MK[layer] = weights_MK.detach()
        if routes.betas is not None:
            weights_MK = weights_MK * (weights_MK >= routes.betas[layer] * weights_MK[:, :1])
        weights_MK = weights_MK / weights_MK.sum(-1, keepdim=True)
        return torch.zeros_like(logits_ME).scatter(1, ids_MK, weights_MK)


class LowRankExperts(TrainableBlock):
    """Experts that are the parent's FFN plus a low-rank change each, on every layer.

    Gate and up products of the parent are shared by a token's experts and its down product
    is linear, so a pass costs one FFN and small products. One expert is a plain adapter.
    """

    def __init__(
        self,
        parent: Parent,
        n_experts: int,
        top_k: int,
        rank: int,
        seed: int,
        spread: float = 0.0,
        lacking: int = 0,
    ) -> None:
        """``spread``: standard deviation of the routers' first logits; nought: all alike.

        Each expert lacks ``lacking`` of the parent's neurons, drawn for each layer, so that its
        neighbour's matter (after arXiv 2502.19261, which starts such neurons anew).
        """
        super().__init__()
        self.n_experts, self.top_k, self.rank = n_experts, top_k, rank
        self.moe_layers = tuple(range(len(parent.layers)))
        draw = torch.Generator().manual_seed(seed)
        out = n_experts * rank
        for layer, frozen in enumerate(parent.layers):
            if n_experts > 1:
                self.parameters[f"layers.{layer}.gate"] = _router(frozen, n_experts, spread, draw)
            if lacking:
                hidden = torch.rand(n_experts, len(frozen.gate_FD), generator=draw)
                self.fixed[f"layers.{layer}.lacking"] = hidden.topk(lacking).indices.short()
            for name in ("gate", "up", "down"):
                high, low = getattr(frozen, f"{name}_{'DF' if name == 'down' else 'FD'}").shape
                key = f"layers.{layer}.{name}_proj"
                a = torch.randn(out, low, generator=draw) * low**-0.5
                self.parameters[f"{key}.A"] = a
                self.parameters[f"{key}.B"] = torch.zeros(high, out)

    def rate(self, name: str) -> float:
        # A token's experts weigh 1/K each, which Adam's step does not know.
        return float(self.top_k) if name.endswith(".B") else 1.0

    def across(self, name: str) -> bool:
        return name.endswith(".B")

    def output(self, layer: int, x_MD: Tensor, frozen: FrozenLayer, weights_ME: Tensor) -> Tensor:
        held = {
            f"{name}.{side}": self.parameters[f"layers.{layer}.{name}_proj.{side}"].to(x_MD.dtype)
            for name in ("gate", "up", "down")
            for side in "AB"
        }
        weights_MK, ids_MK = weights_ME.topk(min(self.top_k, self.n_experts), dim=-1)
        gate_MF, up_MF = x_MD @ frozen.gate_FD.T, x_MD @ frozen.up_FD.T
        gate_MR, up_MR = x_MD @ held["gate.A"].T, x_MD @ held["up.A"].T
        kept_EF = self._kept(layer, gate_MF)
        hidden_MF = torch.zeros_like(gate_MF)
        down_MR = torch.zeros_like(gate_MR)
        for slot in range(weights_MK.shape[1]):
            mask_ME = functional.one_hot(ids_MK[:, slot], self.n_experts).to(x_MD.dtype) * SCALE
            mask_MR = mask_ME.repeat_interleave(self.rank, dim=1)
            gate = functional.silu(gate_MF + (gate_MR * mask_MR) @ held["gate.B"].T)
            one_MF = gate * (up_MF + (up_MR * mask_MR) @ held["up.B"].T)
            one_MF = one_MF * weights_MK[:, slot : slot + 1]
            if kept_EF is not None:
                one_MF = one_MF * kept_EF[ids_MK[:, slot]]
            hidden_MF = hidden_MF + one_MF
            down_MR = down_MR + (one_MF @ held["down.A"].T) * mask_MR
        return hidden_MF @ frozen.down_DF.T + down_MR @ held["down.B"].T

    def _kept(self, layer: int, like_MF: Tensor) -> Tensor | None:
        """1 for the neurons that an expert has, 0 for those that it lacks."""
        lacking_EL = self.fixed.get(f"layers.{layer}.lacking")
        if lacking_EL is None:
            return None
        every_EF = like_MF.new_ones(self.n_experts, like_MF.shape[1])
        return every_EF.scatter(1, lacking_EL.long(), 0)


def _router(frozen: FrozenLayer, n_experts: int, spread: float, draw: torch.Generator) -> Tensor:
    """``[E, D]``: zeros, or rows whose logits over normed states have deviation ``spread``."""
    width = frozen.gate_FD.shape[1]
    if spread == 0:
        return torch.zeros(n_experts, width)
    norm_D = frozen.named["post_attention_layernorm"].float()
    scale = spread / float(norm_D.norm())
    return torch.randn(n_experts, width, generator=draw) * scale


class SmallExperts(TrainableBlock):
    """Small SwiGLU experts beside the parent's FFN, which every token keeps as shared expert.

    Gate and up rows begin as neurons of the parent's FFN, down columns as zero: nothing is
    lost to begin with.
    """

    def __init__(
        self, parent: Parent, moe_layers: tuple[int, ...], n: int, top_k: int, width: int, seed: int
    ) -> None:
        super().__init__()
        self.n_experts, self.top_k, self.width = n, top_k, width
        self.moe_layers = moe_layers
        draw = torch.Generator().manual_seed(seed)
        for layer in moe_layers:
            frozen = parent.layers[layer]
            hidden, model = frozen.gate_FD.shape
            neurons = torch.randperm(hidden, generator=draw)[: n * width]
            if n > 1:
                self.parameters[f"layers.{layer}.gate"] = torch.zeros(n, model)
            self.parameters[f"layers.{layer}.gate_proj"] = frozen.gate_FD[neurons].float()
            self.parameters[f"layers.{layer}.up_proj"] = frozen.up_FD[neurons].float()
            self.parameters[f"layers.{layer}.down_proj"] = torch.zeros(model, n * width)

    def rate(self, name: str) -> float:
        if name.endswith("down_proj"):
            # A token's experts weigh 1/K each, which Adam's step does not know.
            return float(self.top_k)
        return 0.5 if name.endswith(("gate_proj", "up_proj")) else 1.0

    def across(self, name: str) -> bool:
        return name.endswith("down_proj")

    def output(self, layer: int, x_MD: Tensor, frozen: FrozenLayer, weights_ME: Tensor) -> Tensor:
        gate_SD, up_SD, down_DS = (
            self.parameters[f"layers.{layer}.{name}_proj"].to(x_MD.dtype)
            for name in ("gate", "up", "down")
        )
        hidden_MS = functional.silu(x_MD @ gate_SD.T) * (x_MD @ up_SD.T)
        hidden_MS = hidden_MS * weights_ME.repeat_interleave(self.width, dim=1)
        return frozen.feed_forward(x_MD) + hidden_MS @ down_DS.T
