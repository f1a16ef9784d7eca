"""What ``leanmoe score`` stores against the statistics of published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.scores.bundle import ScoreBundle
from leanmoe_pruning.scores.layer_scores import LayerScores

DATA = Path(__file__).parent / "data"


def scored(folder: Path, out: Path) -> list[LayerScores]:
    calibration = f"{folder / 'inputs.safetensors'}:calib_input_ids"
    arguments = ["score", str(folder / "checkpoint"), "--data", calibration, "-o", str(out)]
    assert main(arguments) == 0
    rule = RouterRule.of(open_checkpoint(folder / "checkpoint").shape)
    return list(ScoreBundle(out).layers(rule))


@pytest.fixture(scope="module")
def weights_set(tmp_path_factory):
    folder = DATA / "moe_pruner"
    out = tmp_path_factory.mktemp("moe_pruner") / "scores"
    return scored(folder, out), load_file(folder / "results.safetensors")


@pytest.fixture(scope="module")
def saliency_set(tmp_path_factory):
    folder = DATA / "reap" / "mixtral"
    out = tmp_path_factory.mktemp("reap") / "scores"
    return scored(folder, out), load_file(folder / "results.safetensors")


SUMS = {
    ("moe_pruner", "w1"): "gated_input_ED",
    ("moe_pruner", "w3"): "gated_input_ED",
    ("moe_pruner", "w2"): "gated_hidden_EF",
    ("wanda", "w1"): "input_ED",
    ("wanda", "w3"): "input_ED",
    ("wanda", "w2"): "hidden_EF",
}


@pytest.mark.parametrize(("method", "weight"), SUMS)
def test_column_norms_of_the_weights_methods(method, weight, weights_set):
    layers, golden = weights_set
    for scores in layers:
        tag = f"{method}.2of4.unpruned.layer{scores.layer}.{weight}"
        found = getattr(scores.moments, SUMS[method, weight]).sqrt()
        torch.testing.assert_close(found, golden[f"{tag}.score_norm"], rtol=1e-5, atol=0)
        assert torch.equal(scores.moments.calls_E, golden[f"{tag}.calls"])


def summed(scores: LayerScores, values_TK: torch.Tensor) -> torch.Tensor:
    """Sum per expert over its routed assignments, float64."""
    total_E = torch.zeros(scores.n_experts, dtype=torch.float64)
    return total_E.index_add_(0, scores.routing().ids_TK.flatten(), values_TK.double().flatten())


def test_saliency_statistics(saliency_set):
    layers, golden = saliency_set
    assert len(layers) == len(golden["renorm.ean_sum"])
    for index, scores in enumerate(layers):
        routing = scores.routing()
        raw_TK = scores.router_logits_TE.softmax(-1).gather(-1, routing.ids_TK)
        found = {
            "renorm.expert_frequency": scores.token_counts(),
            "renorm.ean_sum": summed(scores, scores.output_norm_TK),
            "renorm.weighted_expert_frequency_sum": scores.gate_mass(),
            "renorm.weighted_ean_sum": summed(scores, routing.applied() * scores.output_norm_TK),
            "raw.weighted_ean_sum": summed(scores, raw_TK * scores.output_norm_TK),
            "renorm.max_activations": scores.max_activation_E,
        }
        for name, value in found.items():
            torch.testing.assert_close(value, golden[name][index], rtol=1e-5, atol=0)
