"""``leanmoe prune --method naee`` against the published code's numbers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import MixtralForCausalLM

from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.evaluation.levels import run_levels
from leanmoe_pruning.forward.stream import DecoderStream
from tests.golden.naee_data import CHECKPOINT, RUNS, golden, golden_json, probe_ids

MAIN_RUNS = [name for name in RUNS if name in golden_json()["betas"]]


def own_name(name: str) -> str:
    """What the dump calls a run: the batch size is in its JSON, not in the name."""
    variant, keep, _ = RUNS[name]
    return f"{variant}_r{keep}"


@pytest.fixture(params=list(RUNS))
def run(request, pruned):
    out, dump = pruned[request.param]
    return request.param, out, load_file(dump / "results.safetensors"), dump


def test_every_subset_loss(run):
    name, _, found, _ = run
    expected = golden()[f"{name}.losses"]
    assert found[f"{own_name(name)}.losses"].dtype == torch.float64
    torch.testing.assert_close(found[f"{own_name(name)}.losses"], expected, rtol=1e-5, atol=0)


def test_subsets_are_in_the_published_order(run):
    name, _, found, _ = run
    key = f"dropped_subsets.r{RUNS[name][1]}"
    assert torch.equal(found[key], golden()[key])


def test_kept_experts(run):
    name, out, found, _ = run
    expected = golden()[f"{name}.kept"]
    assert torch.equal(found[f"{own_name(name)}.kept"], expected)
    kept = open_model(out).manifest.kept
    assert [kept[layer] for layer in sorted(kept)] == expected.tolist()


def test_batch_split_and_best_loss_are_written_as_json(run):
    name, _, _, dump = run
    content = json.loads((dump / "results.json").read_text())
    expected = golden_json()[name]
    assert content["batch_split"] == expected["batch_split"]
    assert content[own_name(name)]["dropped"] == expected["dropped"]
    assert content[own_name(name)]["best_loss"] == pytest.approx(expected["best_loss"], rel=1e-5)


@pytest.mark.parametrize("name", MAIN_RUNS)
def test_betas_of_the_full_and_the_recalibrated_model(name, pruned):
    found = load_file(pruned[name][1] / "results.safetensors")
    for model in ("full", name):
        for figure in ("betas", "ratio_mean"):
            key = f"{figure}.{model}"
            torch.testing.assert_close(found[key], golden()[key], rtol=2e-5, atol=0)


def close_to_golden(logits: torch.Tensor, key: str) -> None:
    expected = golden()[f"probe.logits.{key}"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["full", *MAIN_RUNS])
def test_probe_logits_of_the_cut_in_transformers(name, pruned):
    path = CHECKPOINT if name == "full" else pruned[name][0]
    model = MixtralForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        close_to_golden(model(probe_ids()).logits, name)


SKIPPING = [
    ("full_skip", "full", "full"),
    ("layerwise_r6_skip", "layerwise_r6", "layerwise_r6"),
    ("layerwise_r6_skip_fullbetas", "layerwise_r6", "full"),
    ("layerwise_r4_skip", "layerwise_r4", "layerwise_r4"),
]


@pytest.mark.parametrize(("key", "model", "betas_from"), SKIPPING)
@torch.inference_mode()
def test_probe_logits_and_counts_with_skipping(key, model, betas_from, pruned):
    path = CHECKPOINT if model == "full" else pruned[model][0]
    stream = DecoderStream(open_model(path))
    betas = golden()[f"betas.{betas_from}"].tolist()
    run = run_levels(stream, [probe_ids()], lambda layer: [betas[layer]], 1)
    close_to_golden(stream.logits(run.hidden[0]), key)
    expected = golden_json()["skipping"][key]["probe_tokens_with_second_expert_skipped"]
    assert [run.skipped[layer][0] for layer in sorted(run.skipped)] == expected


def test_scores_re_cut_equals_pruning_with_data(pruned, tmp_path):
    """The bundle alone gives the same losses at any keep and batch size."""
    from leanmoe.cli import main
    from tests.golden.naee_data import CALIBRATION

    scores = tmp_path / "scores"
    assert main(["score", str(CHECKPOINT), "--data", CALIBRATION, "-o", str(scores)]) == 0
    for name in ("layerwise_r6", "layerwise_r4", "layerwise_r6_batch1"):
        _, keep, batch = RUNS[name]
        arguments = ["prune", str(CHECKPOINT), "--method", "naee", "--keep", str(keep)]
        arguments += ["--scores", str(scores), "--batch-size", str(batch)]
        dump, out = tmp_path / f"{name}.dump", tmp_path / name
        assert main([*arguments, "--dump", str(dump), "-o", str(out)]) == 0
        found = load_file(dump / "results.safetensors")[f"{own_name(name)}.losses"]
        direct = load_file(pruned[name][1] / "results.safetensors")[f"{own_name(name)}.losses"]
        assert torch.equal(found, direct)
