"""Our routing is vLLM's, whatever the family; pruned experts might as well not be there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.models.phimoe import phimoe_routing_function

from leanmoe.layout import LEAST_PROBABILITY
from leanmoe_pruning.forward.routing import RouterRule, Routing, route, route_mapped


@st.composite
def rules(draw) -> RouterRule:
    """Any router that a family has."""
    scoring = draw(st.sampled_from(["softmax", "sigmoid", "sparsemixer"]))
    if scoring == "sparsemixer":
        return RouterRule(2, renormalize=False, scoring="sparsemixer")
    n_groups = draw(st.sampled_from([1, 1, 2, 4]))
    corrected = draw(st.booleans())
    return RouterRule(
        top_k=draw(st.integers(1, 4)),
        renormalize=draw(st.booleans()),
        scoring=scoring,
        scale=draw(st.sampled_from([1.0, 2.5])),
        n_groups=n_groups,
        top_groups=draw(st.integers(max(1, n_groups // 2), n_groups)),
        correction_E=torch.randn(16, generator=seeded(draw)) if corrected else None,
    )


def seeded(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31)))


@st.composite
def cases(draw) -> tuple[RouterRule, torch.Tensor]:
    """A rule, and logits of 16 experts, close together now and then."""
    spread = draw(st.sampled_from([0.02, 1.0, 4.0]))
    return draw(rules()), torch.randn(draw(st.integers(1, 9)), 16, generator=seeded(draw)) * spread


def vllm_s(rule: RouterRule, logits_TE: torch.Tensor) -> torch.Tensor:
    """Weight of every expert as vLLM's router on a CPU gives it."""
    router = CPURouter(
        top_k=rule.top_k,
        global_num_experts=logits_TE.shape[1],
        use_grouped_topk=rule.scoring != "sparsemixer",
        num_expert_group=rule.n_groups,
        topk_group=rule.top_groups,
        renormalize=rule.renormalize,
        scoring_func="softmax" if rule.scoring == "sparsemixer" else rule.scoring,
        routed_scaling_factor=rule.scale,
        e_score_correction_bias=rule.correction_E,
        custom_routing_function=phimoe_routing_function if rule.scoring == "sparsemixer" else None,
    )
    weights_TK, ids_TK = router._compute_routing(logits_TE, logits_TE, None)
    return torch.zeros_like(logits_TE).scatter(-1, ids_TK.long(), weights_TK)


def spread(routing: Routing, n_experts: int = 16) -> torch.Tensor:
    """Weight of every expert."""
    applied = routing.applied()
    return applied.new_zeros(len(applied), n_experts).scatter(-1, routing.ids_TK, applied)


@given(cases())
@settings(max_examples=200)
def test_weights_are_vllm_s(case):
    rule, logits = case
    torch.testing.assert_close(spread(route(logits, rule)), vllm_s(rule, logits))


@given(cases(), st.data())
@settings(max_examples=100)
def test_a_masked_expert_might_as_well_be_absent(case, data):
    rule, logits = case
    size = 16 // rule.n_groups
    least = max(-(-rule.top_k // rule.top_groups), 2)
    share = data.draw(st.integers(min(least, size), size))
    kept = [
        group * size + expert
        for group in range(rule.n_groups)
        for expert in sorted(data.draw(st.permutations(range(size)))[:share])
    ]
    correction = None if rule.correction_E is None else rule.correction_E[kept]
    cut = route(logits[:, kept], replace(rule, correction_E=correction))
    masked = spread(route(logits, rule, kept))
    torch.testing.assert_close(masked[:, kept], spread(cut, len(kept)))
    assert float(masked.sum()) == pytest.approx(float(masked[:, kept].sum()))


@given(cases(), st.floats(0, 1))
@settings(max_examples=100)
def test_the_first_choice_weighs_most_and_stays(case, beta):
    rule, logits = case
    routing = route(logits, rule)
    assert torch.equal(routing.weights_TK[:, 0], routing.weights_TK.amax(-1))
    kept = routing.kept(beta)
    assert kept[:, 0].all()
    assert torch.equal(kept, routing.weights_TK >= beta * routing.weights_TK[:, :1])
    assert torch.equal(routing.applied(kept) != 0, kept & (routing.weights_TK != 0))


@given(st.booleans(), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=100)
def test_mapped_probabilities_are_routed_as_served_where_they_are_positive(renormalize, k, seed):
    """Clamped logarithms, as the runtime's gate gives, and the published form."""
    generator = torch.Generator().manual_seed(seed)
    mapped = torch.rand(7, 6, generator=generator)
    rule = RouterRule(k, renormalize)
    served = route(mapped.clamp_min(LEAST_PROBABILITY).log(), replace(rule, scoring="mapped"))
    published = route_mapped(mapped, rule)
    torch.testing.assert_close(spread(served, 6), spread(published, 6))
    expected, ids = mapped.topk(k)
    expected = expected / expected.sum(-1, keepdim=True) if renormalize else expected
    torch.testing.assert_close(published.applied(), expected)
    assert torch.equal(published.ids_TK, ids)
    negative = route_mapped(-mapped, rule)
    assert torch.equal(negative.ids_TK, (-mapped).topk(k).indices)
