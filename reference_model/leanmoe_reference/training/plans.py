"""What can be trained: the block of each model, the one adapter it is compared with, its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from leanmoe_reference import mixtral, small_experts
from leanmoe_reference.training.blocks import LowRankExperts, SmallExperts, TrainableBlock
from leanmoe_reference.training.loop import Recipe
from leanmoe_reference.training.network import Parent

Make = Callable[[Parent, int], TrainableBlock]


@dataclass(frozen=True)
class TrainingPlan:
    """``adapter`` has as many parameters in use per token as ``block``, and no router."""

    block: Make
    adapter: Make
    file: str
    recipe: Recipe = field(default_factory=Recipe)


def _small(parent: Parent, seed: int) -> TrainableBlock:
    layers = small_experts.moe_layers(len(parent.layers))
    n, top_k = small_experts.N_EXPERTS, small_experts.TOP_K
    return SmallExperts(parent, layers, n, top_k, small_experts.WIDTH, seed)


def _small_adapter(parent: Parent, seed: int) -> TrainableBlock:
    layers = small_experts.moe_layers(len(parent.layers))
    width = small_experts.TOP_K * small_experts.WIDTH
    return SmallExperts(parent, layers, 1, 1, width, seed)


def _low_rank(parent: Parent, seed: int) -> TrainableBlock:
    return LowRankExperts(parent, mixtral.N_EXPERTS, mixtral.TOP_K, mixtral.RANK, seed)


def _free(parent: Parent, seed: int) -> TrainableBlock:
    n, top_k, rank = mixtral.N_EXPERTS, mixtral.TOP_K, mixtral.THIRD_RANK
    return LowRankExperts(parent, n, top_k, rank, seed, 1.0, mixtral.THIRD_LACKING)


def _free_adapter(parent: Parent, seed: int) -> TrainableBlock:
    return LowRankExperts(parent, 1, 1, mixtral.TOP_K * mixtral.THIRD_RANK, seed)


# Routed by the routers from the first step, towards no group: they need no target, but balance.
FREE = Recipe(steps=80, free=1.0, router_loss_free=0.0, balance=1.0)


def _low_rank_adapter(parent: Parent, seed: int) -> TrainableBlock:
    return LowRankExperts(parent, 1, 1, mixtral.TOP_K * mixtral.RANK, seed)


PLANS: Mapping[str, TrainingPlan] = {
    "qwen2-moe": TrainingPlan(_small, _small_adapter, small_experts.FILE),
    "mixtral-2": TrainingPlan(_low_rank, _low_rank_adapter, mixtral.SECOND_FILE),
    "mixtral-3": TrainingPlan(_free, _free_adapter, mixtral.THIRD_FILE, FREE),
}
