"""What deciding takes, per kind of method: memory, disk, arithmetic. All of it estimates.

Memory follows the scorer's bound: 1.5 times the largest layer, the activations, 2 GiB. How
fast this machine multiplies matrices is the one thing measured for a plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import comb

from leanmoe_pruning.amounts import GIB
from leanmoe_pruning.later import torch
from leanmoe_pruning.methods.selection import ENUMERATED_UP_TO
from leanmoe_pruning.planning.headers import HeaderModel
from leanmoe_pruning.scores.gram import packed_size
from leanmoe_pruning.scores.sampling import gram_sample

EEP_EVALUATIONS = 200  # the paper's 40 while pruning and 160 while merging
# Rates of work that is no matrix product, as operations of a product that take as long.
_LOSS_TERM, _DIVERGENCE_TERM = 400, 800
# Of the matrices multiplied to measure a rate, and how long that may take.
_SIZE, _LONGEST_SECONDS = 1024, 0.4


@dataclass(frozen=True)
class Workload:
    """What one kind of method has to decide, and from how many tokens."""

    tokens: int
    keep: int
    condensed: int = 0


@dataclass(frozen=True)
class Cost:
    """``operations`` are floating-point operations of matrix products, or take as long."""

    ram_bytes: int
    disk_bytes: int
    operations: float


CostOf = Callable[[HeaderModel, Workload], Cost]


def cut_ram(model: HeaderModel) -> int:
    """Reading, checking and writing tensor by tensor."""
    return 2 * model.largest_tensor_bytes + GIB


def merge_ram(model: HeaderModel) -> int:
    """A layer's experts stay while merged ones are made of them."""
    layer = max(model.expert_parameters.values()) * model.compute_bytes
    return layer + 4 * model.largest_tensor_bytes + GIB


def activations(model: HeaderModel, tokens: int) -> int:
    """The residual stream of all tokens in float32."""
    return tokens * model.checkpoint.shape.hidden_size * 4


def scoring_ram(model: HeaderModel, tokens: int) -> int:
    return 3 * model.largest_layer_bytes // 2 + activations(model, tokens) + 2 * GIB


def bundle_bytes(model: HeaderModel, tokens: int) -> int:
    """Router logits, weight ratios and output norms of every token, Gram matrices of a sample,
    and the sums per weight column."""
    shape = model.checkpoint.shape
    of_tokens = 4 * (shape.n_routed_experts + 2 * shape.top_k - 1) * tokens
    of_sample = 8 * packed_size(shape.n_routed_experts) * _sampled(model, tokens)
    columns = 8 * shape.n_routed_experts * (2 * shape.hidden_size + 3 * shape.expert_ffn_size)
    return len(shape.moe_layers) * (of_tokens + of_sample + columns)


def _sampled(model: HeaderModel, tokens: int) -> int:
    return gram_sample(model.checkpoint.shape.n_routed_experts, tokens)


def forward_operations(model: HeaderModel, tokens: int) -> float:
    """One pass of the model as it routes."""
    return 2.0 * tokens * (model.dense_parameters + model.routed_parameters)


def scoring_operations(model: HeaderModel, tokens: int) -> float:
    """One pass in which every expert sees the tokens that get a Gram matrix, and its own."""
    experts, sampled = sum(model.expert_parameters.values()), _sampled(model, tokens)
    routed = (tokens - sampled) * model.routed_parameters
    return 2.0 * (tokens * model.dense_parameters + sampled * experts + routed)


def nothing(model: HeaderModel, load: Workload) -> Cost:
    return Cost(cut_ram(model), 0, 0.0)


def scores(model: HeaderModel, load: Workload) -> Cost:
    ram = max(scoring_ram(model, load.tokens), cut_ram(model))
    disk = bundle_bytes(model, load.tokens)
    return Cost(ram, disk, scoring_operations(model, load.tokens))


def merged_scores(model: HeaderModel, load: Workload) -> Cost:
    cost = scores(model, load)
    return Cost(max(cost.ram_bytes, merge_ram(model)), cost.disk_bytes, cost.operations)


def subsets(model: HeaderModel, load: Workload) -> Cost:
    """Every subset's loss, or of those that a greedy search looks at."""
    shape, cost = model.checkpoint.shape, scores(model, load)
    tried = _subsets_tried(shape.n_routed_experts, load.keep)
    pairs = (shape.top_k + 1) * (shape.top_k + 2) // 2
    terms = float(tried) * _sampled(model, load.tokens) * pairs * len(shape.moe_layers)
    return Cost(cost.ram_bytes, cost.disk_bytes, cost.operations + _LOSS_TERM * terms)


def _subsets_tried(n_experts: int, keep: int) -> int:
    if n_experts <= ENUMERATED_UP_TO:
        return comb(n_experts, keep)
    # A removal looks at all that are left; two sweeps of swaps look at every pair.
    return sum(range(keep + 1, n_experts + 1)) + 2 * keep * (n_experts - keep)


def evolution(model: HeaderModel, load: Workload) -> Cost:
    """The whole model in memory, one pass over the task per child."""
    held = sum(model.layer_parameters.values()) * model.compute_bytes
    ram = max(held + 2 * GIB, merge_ram(model))
    return Cost(ram, 0, EEP_EVALUATIONS * forward_operations(model, load.tokens))


def condensing(model: HeaderModel, load: Workload) -> Cost:
    """A greedy search of experts in each layer, then of layers."""
    shape = model.checkpoint.shape
    layers, width = len(shape.moe_layers), shape.hidden_size
    terms = float(shape.top_k * shape.n_routed_experts) * load.tokens * width * layers
    # A candidate layer is judged by running what lies above it, half of the model on average.
    candidates = sum(layers - step for step in range(load.condensed)) / 2
    search = candidates * forward_operations(model, load.tokens)
    passed = scoring_operations(model, load.tokens)
    return Cost(scoring_ram(model, load.tokens), 0, passed + search + _DIVERGENCE_TERM * terms)


def masking(model: HeaderModel, load: Workload) -> Cost:
    """One pass for the statistics; masked weights lie on disk until they are written."""
    disk = sum(model.expert_parameters.values()) * model.compute_bytes
    return Cost(scoring_ram(model, load.tokens), disk, forward_operations(model, load.tokens))


def matmul_rate(compute_bytes: int) -> float | None:
    """Floating-point operations a second, from the best of a few products of 1024 x 1024.

    Of float32 or, with 2 ``compute_bytes``, bfloat16; ``None`` without the torch that will do it.
    """
    try:
        dtype = torch.float32 if compute_bytes == 4 else torch.bfloat16
    except ModuleNotFoundError:
        return None
    left = torch.ones(_SIZE, _SIZE, dtype=dtype)
    best, end = float("inf"), time.monotonic() + _LONGEST_SECONDS
    while True:
        start = time.perf_counter()
        torch.mm(left, left)
        best = min(best, time.perf_counter() - start)
        if time.monotonic() > end:
            return 2 * _SIZE**3 / best
