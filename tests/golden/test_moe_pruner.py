"""``leanmoe prune --method moe-pruner`` and ``wanda`` against the published codes' numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import MixtralForCausalLM

from leanmoe.cli import main
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.evaluation.levels import run_levels
from leanmoe_pruning.forward.stream import DecoderStream
from tests.golden.moe_pruner_data import (
    CALIBRATION,
    CHECKPOINT,
    MATRICES,
    TAGS,
    golden,
    probe_ids,
    prune,
)

LAYERS, EXPERTS = 2, 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tag -> (checkpoint, dump)."""
    folder = tmp_path_factory.mktemp("moe_pruner")
    found = {tag: (folder / tag, folder / f"{tag}.dump") for tag in TAGS}
    for tag, (out, dump) in found.items():
        assert prune(tag, ["--data", CALIBRATION], out, dump) == 0
    return found


@pytest.fixture(params=TAGS)
def run(request, runs):
    out, dump = runs[request.param]
    return request.param, out, load_file(dump / "results.safetensors"), dump


def names(tag: str, part: str) -> list[str]:
    return [f"{tag}.layer{layer}.{w}.{part}" for layer in range(LAYERS) for w in MATRICES]


def test_masks_bit_for_bit(run):
    tag, _, found, _ = run
    for name in names(tag, "keep"):
        assert found[name].dtype == torch.uint8
        assert torch.equal(found[name], golden()[name]), name


def test_norms_and_calls(run):
    tag, _, found, _ = run
    for name in names(tag, "score_norm"):
        assert found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], golden()[name], rtol=1e-5, atol=0)
    for name in names(tag, "calls"):
        assert torch.equal(found[name], golden()[name]), name


def test_checkpoint_holds_the_kept_weights_and_nothing_else_changed(run):
    tag, out, found, _ = run
    source, pruned = (
        load_file(CHECKPOINT / "model.safetensors"),
        load_file(out / "model.safetensors"),
    )
    assert list(source) == list(pruned)
    for name, weight in source.items():
        if ".experts." in name:
            layer, expert, matrix = (name.split(".")[place] for place in (2, 5, 6))
            packed = found[f"{tag}.layer{layer}.{matrix}.keep"][int(expert)]
            keep = np.unpackbits(packed.numpy(), axis=-1, count=weight.shape[1])
            weight = weight * torch.from_numpy(keep)
        assert torch.equal(pruned[name], weight), name


def close_to_golden(logits: torch.Tensor, tag: str) -> None:
    expected = golden()[f"probe_logits.{tag}"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@torch.inference_mode()
def test_probe_logits_in_transformers(run):
    tag, out, _, _ = run
    model = MixtralForCausalLM.from_pretrained(out, dtype=torch.float32)
    close_to_golden(model(probe_ids()).logits, tag)


@torch.inference_mode()
def test_probe_logits_in_the_own_forward(run):
    tag, out, _, _ = run
    stream = DecoderStream(open_model(out))
    passed = run_levels(stream, [probe_ids()], lambda layer: [0.0], 1)
    close_to_golden(stream.logits(passed.hidden[0]), tag)


def test_manifest_states_what_was_zeroed_and_what_it_saves(run):
    tag, out, _, dump = run
    settings = open_model(out).manifest.settings
    assert settings["zeros"] == {"0": 0.5, "1": 0.5}
    assert settings["schedule"] == tag.rpartition(".")[2]
    assert "neither memory nor time" in settings["notes"][0]
    assert tag in json.loads((dump / "results.json").read_text())


@pytest.mark.parametrize("tag", [tag for tag in TAGS if tag.endswith("unpruned")])
def test_a_score_bundle_gives_the_same_masks(tag, scores, tmp_path):
    assert prune(tag, ["--scores", str(scores)], tmp_path / "out", tmp_path / "dump") == 0
    found = load_file(tmp_path / "dump" / "results.safetensors")
    for name in (*names(tag, "keep"), *names(tag, "calls")):
        assert torch.equal(found[name], golden()[name]), name
    for name in names(tag, "score_norm"):
        torch.testing.assert_close(found[name], golden()[name], rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    path = tmp_path_factory.mktemp("moe_pruner") / "scores"
    assert main(["score", str(CHECKPOINT), "--data", CALIBRATION, "-o", str(path)]) == 0
    return path
