"""What a router of vLLM's computes, as numbers the routing kernel can take; and what it cannot.

A router that is covered decides in its own launch. Everything else keeps its own launches and is
followed by one more (``launch.decide``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from leanmoe_runtime.compat import grouped_in_one_kernel, is_routing_simulated

SOFTMAX, SIGMOID, TANH_SIGMOID = 0, 1, 2
_WARP, _VECTOR_BYTES = 32, 16
_LARGEST_BY_WARP, _LARGEST_BY_BLOCK, _MOST_SLOTS = 512, 256, 32
# What stock's kernel holds in a warp though they are no power of two.
_MORE_BY_WARP = frozenset({192, 320, 384, 448, 576})


class NotCoveredError(Exception):
    """Says in one sentence why a router keeps its own launches."""


@dataclass(frozen=True)
class Lanes:
    """How stock lays a row of logits over threads, which decides the order of its sum.

    ``threads`` hold ``values`` each, ``per_load`` of them side by side. ``by_block``: a block of
    threads holds the row and CUB adds it up.
    """

    threads: int
    values: int
    per_load: int
    by_block: bool = False


def lanes(n_experts: int, item_size: int) -> Lanes:
    """``topkGatingKernelLauncher`` for CUDA in ``csrc/moe/topk_softmax_kernels.cu``."""
    is_power = n_experts & (n_experts - 1) == 0
    if is_power and n_experts <= _LARGEST_BY_WARP:
        per_load = min(_VECTOR_BYTES, item_size * n_experts) // item_size
    elif n_experts in _MORE_BY_WARP:
        per_load = 2
    elif n_experts <= _LARGEST_BY_BLOCK:
        return Lanes(max(_WARP, _power(n_experts)), 1, 1, by_block=True)
    else:
        raise NotCoveredError(f"{n_experts} experts are more than a block of threads holds")
    values = max(1, n_experts // (per_load * _WARP)) * per_load
    return Lanes(n_experts // values, values, per_load)


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Routing:
    """A router's arithmetic. ``bias_E`` steers the choice only; ``groups`` of 1 is no grouping.

    ``pads``: stock gives padding rows the id -1; ``zeroes_padding``: and the weight 0.
    """

    n_experts: int
    top_k: int
    scoring: int
    renormalize: bool
    scale: float = 1.0
    bias_E: torch.Tensor | None = None
    groups: int = 1
    kept_groups: int = 1
    pads: bool = True
    zeroes_padding: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for routers that run the same code."""
        has_bias = None if self.bias_E is None else self.bias_E.dtype
        grouping = (self.groups, self.kept_groups, self.pads, self.zeroes_padding)
        numbers = (self.n_experts, self.top_k, self.scoring, self.renormalize, self.scale)
        return (*numbers, has_bias, *grouping)

    def lanes(self, logits_dtype: torch.dtype) -> Lanes:
        """How stock holds a row of logits of that type."""
        if self.groups > 1:
            return Lanes(self.n_experts, 1, 1)
        return lanes(self.n_experts, logits_dtype.itemsize)


def routing_of(router: Any) -> Routing:
    """The arithmetic of ``router``; ``NotCoveredError`` where the kernel has none for it."""
    known = {
        "FusedTopKRouter": _plain,
        "FusedTopKBiasRouter": _biased,
        "GroupedTopKRouter": _grouped,
    }
    name = type(router).__name__
    if name not in known or is_routing_simulated():
        raise NotCoveredError(f"the routing kernel does not know how {name} chooses")
    if router.top_k > _MOST_SLOTS:
        raise NotCoveredError(f"a top-k of {router.top_k} is more than {_MOST_SLOTS}")
    routing = known[name](router)
    routing.lanes(torch.float32)
    return routing


def _scoring(router: Any) -> int:
    known = {"softmax": SOFTMAX, "sigmoid": SIGMOID}
    if router.scoring_func not in known:
        raise NotCoveredError(f"scores are {router.scoring_func}, known are {', '.join(known)}")
    return known[router.scoring_func]


def _plain(router: Any) -> Routing:
    return Routing(
        router.global_num_experts, router.top_k, _scoring(router), bool(router.renormalize)
    )


def _biased(router: Any) -> Routing:
    scoring, scale = _scoring(router), float(router.routed_scaling_factor)
    if router._hash_indices_table is not None or router.bias_vl is not None:
        raise NotCoveredError("the choice depends on the tokens' own ids")
    if router.num_fused_shared_experts:
        raise NotCoveredError("shared experts take slots behind the routed ones")
    if scoring == SOFTMAX and scale != 1.0:
        raise NotCoveredError("softmax scores are scaled in a launch of their own")
    bias = router.e_score_correction_bias
    return Routing(
        router.global_num_experts,
        router.top_k,
        scoring,
        bool(router.renormalize),
        scale=scale,
        bias_E=None if bias is None else bias.data,
    )


def _grouped(router: Any) -> Routing:
    experts, groups = router.global_num_experts, router.num_expert_group
    if router.scoring_func != "sigmoid" or not grouped_in_one_kernel(router):
        raise NotCoveredError("vLLM compiles this grouping from tensor operations")
    if experts & (experts - 1) or experts > _LARGEST_BY_BLOCK:
        raise NotCoveredError(f"{experts} experts are no power of two up to {_LARGEST_BY_BLOCK}")
    if groups < 2 or groups & (groups - 1) or experts // groups not in range(2, _WARP + 1):
        raise NotCoveredError(f"{groups} groups of {experts} experts are laid out otherwise")
    if router.num_fused_shared_experts:
        raise NotCoveredError("shared experts take slots behind the routed ones")
    return Routing(
        experts,
        router.top_k,
        TANH_SIGMOID,
        bool(router.renormalize),
        scale=float(router.routed_scaling_factor),
        bias_E=router.e_score_correction_bias.data,
        groups=groups,
        kept_groups=router.topk_group,
        pads=bool(router.skip_padding),
        zeroes_padding=True,
    )
