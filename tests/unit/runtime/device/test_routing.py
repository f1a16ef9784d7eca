"""What the routing kernel takes of vLLM's routers, and what it leaves to their own launches."""

import pytest
import torch
from vllm.model_executor.layers.fused_moe.router.custom_routing_router import CustomRoutingRouter
from vllm.model_executor.layers.fused_moe.router.fused_topk_bias_router import FusedTopKBiasRouter
from vllm.model_executor.layers.fused_moe.router.fused_topk_router import FusedTopKRouter
from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import GroupedTopKRouter

from leanmoe_runtime.device.routing import (
    SIGMOID,
    SOFTMAX,
    TANH_SIGMOID,
    Lanes,
    NotCoveredError,
    lanes,
    routing_of,
)


@pytest.mark.parametrize(
    ("experts", "item_size", "expected"),
    [
        (8, 2, Lanes(1, 8, 8)),
        (8, 4, Lanes(2, 4, 4)),
        (64, 2, Lanes(8, 8, 8)),
        (128, 2, Lanes(16, 8, 8)),
        (128, 4, Lanes(32, 4, 4)),
        (256, 4, Lanes(32, 8, 4)),
        (512, 2, Lanes(32, 16, 8)),
        (192, 2, Lanes(32, 6, 2)),
        (384, 4, Lanes(32, 12, 2)),
        (5, 2, Lanes(32, 1, 1, by_block=True)),
        (60, 4, Lanes(64, 1, 1, by_block=True)),
        (160, 2, Lanes(256, 1, 1, by_block=True)),
    ],
)
def test_rows_lie_over_threads_as_stock_has_them(experts, item_size, expected):
    found = lanes(experts, item_size)
    assert found == expected
    if not found.by_block:
        assert found.threads * found.values == experts


def test_softmax_is_covered_renormalised_or_not():
    for renormalize in (True, False):
        found = routing_of(FusedTopKRouter(8, 128, "softmax", renormalize))
        assert (found.n_experts, found.top_k, found.scoring) == (128, 8, SOFTMAX)
        assert found.renormalize is renormalize and found.bias_E is None


def biased(**changed):
    bias = torch.nn.Parameter(torch.zeros(64))
    return FusedTopKBiasRouter(6, 64, bias, True, **{"routed_scaling_factor": 2.5, **changed})


def test_sigmoid_with_a_bias_is_covered():
    found = routing_of(biased(scoring_func="sigmoid"))
    assert (found.scoring, found.scale, found.groups) == (SIGMOID, 2.5, 1)
    assert len(found.bias_E) == 64


def grouped(**changed):
    given = {"renormalize": True, "scoring_func": "sigmoid", "routed_scaling_factor": 2.5}
    given |= {"e_score_correction_bias": torch.nn.Parameter(torch.zeros(256)), **changed}
    return GroupedTopKRouter(8, 256, 8, 4, **given)


def test_groups_of_deepseek_v3_are_covered():
    found = routing_of(grouped())
    assert (found.scoring, found.groups, found.kept_groups) == (TANH_SIGMOID, 8, 4)
    assert found.zeroes_padding and not found.pads
    assert routing_of(grouped(skip_padding=True)).pads


@pytest.mark.parametrize(
    ("router", "reason"),
    [
        (lambda: CustomRoutingRouter(2, 8, custom_routing_function=print), "CustomRoutingRouter"),
        (lambda: biased(scoring_func="sqrtsoftplus"), "scores are sqrtsoftplus"),
        (lambda: biased(scoring_func="softmax"), "scaled in a launch of their own"),
        (lambda: biased(hash_indices_table=torch.zeros(1)), "the tokens' own ids"),
        (lambda: biased(num_fused_shared_experts=1), "shared experts take slots"),
        (lambda: grouped(e_score_correction_bias=None), "from tensor operations"),
        (lambda: grouped(scoring_func="softmax"), "from tensor operations"),
        (lambda: FusedTopKRouter(2, 700), "more than a block"),
        (lambda: FusedTopKRouter(64, 128), "top-k of 64"),
    ],
)
def test_what_is_not_covered_says_why(router, reason):
    with pytest.raises(NotCoveredError, match=reason):
        routing_of(router())


def test_simulated_routing_is_nobody_s_numbers(monkeypatch):
    monkeypatch.setenv("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "uniform_random")
    with pytest.raises(NotCoveredError):
        routing_of(FusedTopKRouter(2, 8))


def test_layers_of_one_kind_have_one_key_and_others_have_not():
    routers = [FusedTopKRouter(8, 128), FusedTopKRouter(8, 128), FusedTopKRouter(4, 128)]
    first, second, third = (routing_of(router).key for router in routers)
    assert first == second != third
