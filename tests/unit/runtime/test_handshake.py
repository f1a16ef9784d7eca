"""Layers of vLLM 0.33 on which a skipped expert would be computed or its row read are named."""

from types import SimpleNamespace

import pytest
import torch

from leanmoe import __version__
from leanmoe.messages import HandshakeReport, SkipMode
from leanmoe_runtime import handshake
from leanmoe_runtime.compat import RoutedExperts
from leanmoe_runtime.experts import LeanRoutedExperts, lean_experts
from leanmoe_runtime.runner import LeanRunner
from leanmoe_runtime.state import LayerState
from leanmoe_server.model import SkipModel
from leanmoe_server.readiness import handshake_problems

NAME = "model.layers.0.mlp.experts"


class SubstitutedRoutedExperts(RoutedExperts):
    """What 0.33's class of that name does with ids, of which 0.32 has none."""

    def forward_modular(self, x, topk_weights, topk_ids, *shared):
        valid = (topk_ids >= 0) & (topk_ids < 8)
        topk_weights.masked_fill_(~valid, 0.0)
        topk_ids.copy_(torch.where(valid, topk_ids, 0))
        return super().forward_modular(x, topk_weights, topk_ids, *shared)


class Runner(LeanRunner):
    """A runner without an engine around it."""

    mode = SkipMode.MASK

    def __init__(self, experts):
        torch.nn.Module.__init__(self)
        self.routed_experts = experts
        self.skip_state = LayerState(layer=0, top_k=2, renormalize=True, n_experts=8)
        self.skip_state.calls = 1
        self.condensed = False

    @property
    def skip_mode(self):
        return self.mode


def bare(cls, **fused):
    """Experts of ``cls`` that were built and hold a kernel of these attributes."""
    experts = cls.__new__(cls)
    torch.nn.Module.__init__(experts)
    kernel = SimpleNamespace(fused_experts=SimpleNamespace(**fused))
    experts.__dict__["quant_method"] = SimpleNamespace(
        moe_kernel=kernel, is_monolithic=False, supports_internal_mk=True
    )
    experts.__dict__["moe_config"] = SimpleNamespace(dp_size=1)
    return experts


def problem_of(runner):
    return handshake._layer(NAME, runner).problem


def test_a_whole_layer_has_no_problem():
    assert problem_of(Runner(bare(LeanRoutedExperts))) is None


def test_experts_with_substitutes_are_left_alone_and_named():
    assert lean_experts(SubstitutedRoutedExperts) is SubstitutedRoutedExperts
    experts = bare(SubstitutedRoutedExperts)
    experts.expert_substitution = torch.nn.Module()
    problem = problem_of(Runner(experts))
    assert problem.startswith("its experts are SubstitutedRoutedExperts")
    assert "computes expert 0 for every skipped one" in problem
    assert "serve this checkpoint with stock vLLM" in problem


def test_substitutes_are_named_even_below_our_own_class():
    experts = bare(LeanRoutedExperts)
    experts.expert_substitution = torch.nn.Module()
    assert "computes expert 0" in problem_of(Runner(experts))


def test_the_server_does_not_become_ready_over_such_a_layer():
    experts = bare(SubstitutedRoutedExperts)
    experts.expert_substitution = torch.nn.Module()
    report = HandshakeReport(
        worker="rank0",
        pid=1,
        plugin_version=__version__,
        vllm_version="0.33.0",
        layers=[handshake._layer(NAME, Runner(experts))],
        weight_bytes=1,
    )
    (reason,) = handshake_problems([report], SkipModel((0,), None))
    assert reason.startswith(f"worker rank0: layer 0 ({NAME}): its experts are Substituted")


def test_a_model_that_adds_up_rows_by_itself_is_named():
    experts = bare(LeanRoutedExperts, post_gemm2_hook=print)
    assert "post_gemm2_hook" in problem_of(Runner(experts))
    assert problem_of(Runner(bare(LeanRoutedExperts, post_gemm2_hook=None))) is None


@pytest.mark.parametrize(("ranks", "in_kernel"), [(1, False), (2, True)])
def test_tokens_that_come_together_behind_the_router_are_counted_once(ranks, in_kernel):
    experts = bare(LeanRoutedExperts)
    experts.moe_config.dp_size = ranks
    experts.quant_method.supports_internal_mk = in_kernel
    assert problem_of(Runner(experts)) is None


def test_tokens_that_come_together_before_the_router_are_refused():
    experts = bare(LeanRoutedExperts)
    experts.moe_config.dp_size, experts.quant_method.supports_internal_mk = 2, False
    assert "each rank would count them all" in problem_of(Runner(experts))


def test_workers_of_several_engines_have_names_of_their_own():
    report = handshake.report(worker_of([NAME], [NAME], None, ranks=2))
    assert (report.worker, report.engine) == ("engine1-rank0", 1)
    assert handshake.report(worker_of([NAME], [NAME], None)).worker == "rank0"


def worker_of(names, own, speculative, ranks=1):
    """A worker whose vLLM lists layers of these names, those of ``own`` in its model."""
    runners = {name: Runner(bare(LeanRoutedExperts)) for name in names}
    model = torch.nn.ModuleList(runners[name] for name in own)
    config = SimpleNamespace(
        compilation_config=SimpleNamespace(
            static_forward_context=runners, static_all_moe_layers=list(names)
        ),
        speculative_config=speculative,
        parallel_config=SimpleNamespace(data_parallel_size=ranks, data_parallel_index=ranks - 1),
    )
    return SimpleNamespace(
        rank=0, vllm_config=config, model_runner=SimpleNamespace(get_model=lambda: model)
    )


def test_layers_of_a_draft_are_named_apart():
    names = [NAME, "draft_model.model.layers.0.mlp.experts"]
    report = handshake.report(worker_of(names, [NAME], object()))
    assert [layer.name for layer in report.layers] == [NAME]
    assert report.draft_layers == names[1:]


def test_without_a_draft_every_layer_is_the_model_s():
    report = handshake.report(worker_of([NAME], [], None))
    assert [layer.name for layer in report.layers] == [NAME] and report.draft_layers == []
