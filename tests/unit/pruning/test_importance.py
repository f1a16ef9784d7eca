"""Gini and carriers by hand, super experts, and what a cut that takes one is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from leanmoe.cli import main
from leanmoe.files.digest import file_digest
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.shards import write_tensors
from leanmoe_pruning.evaluation.importance import carriers, gini, super_experts
from leanmoe_pruning.evaluation.redundancy import LayerSample
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.scores.bundle import BundleDescription
from tests.golden.naee_data import CALIBRATION, CHECKPOINT
from tests.layer_scores import bare_scores

SCORE = ["score", str(CHECKPOINT), "--data", CALIBRATION, "-o"]


def sample(layer: int, peaks: list[float] | None) -> LayerSample:
    scores = bare_scores(
        RouterRule(top_k=1, renormalize=True), torch.zeros(1, 4), torch.ones(1, 15)
    )
    peak = None if peaks is None else torch.tensor(peaks)
    return LayerSample.of(replace(scores, layer=layer, peak_output_E=peak))


def test_gini_by_hand():
    assert gini(torch.tensor([1.0, 1.0, 1.0, 1.0])) == pytest.approx(0.0)
    assert gini(torch.tensor([0.0, 0.0, 0.0, 5.0])) == pytest.approx(0.75)
    # Mean absolute difference of 1, 3 over twice their mean: (0 + 2 + 2 + 0) / 4 / 4.
    assert gini(torch.tensor([3.0, 1.0])) == pytest.approx(0.25)
    assert gini(torch.zeros(3)) == 0.0


def test_carriers_by_hand():
    assert carriers(torch.tensor([60.0, 35.0, 5.0, 0.0])) == 2
    assert carriers(torch.tensor([60.0, 34.0, 5.0, 1.0])) == 3
    assert carriers(torch.ones(4)) == 4


def test_super_experts_are_rare_and_huge():
    usual = [[1.0, 1.5, 2.0, 1.2], [1.1, 0.9, 1.4, 1.3]]
    assert super_experts([sample(i, own) for i, own in enumerate(usual)]) == []
    usual[1][2] = 400.0
    (found,) = super_experts([sample(i, own) for i, own in enumerate(usual)])
    assert (found.layer, found.expert, found.peak) == (1, 2, 400.0)


def test_scores_without_largest_outputs_tell_nothing():
    assert super_experts([sample(0, None)]) is None


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "scores"
    assert main([*SCORE, str(out)]) == 0
    return out


def changed(scored, out, change):
    """The bundle with layer 1's tensors and the description changed, digests made anew."""
    out.mkdir()
    for path in scored.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    content = json.loads((out / "scores.json").read_text())
    for name in content["files"]:
        # Copies: the file that they are mapped from is written anew.
        tensors = {key: one.clone() for key, one in load_file(out / name).items()}
        change(name, tensors, content)
        write_tensors(out / name, tensors)
        content["files"][name] = file_digest(out / name)
    content.pop("digest")
    described = BundleDescription.model_validate(content)
    content = {"digest": described.digest(), **described.model_dump(mode="json")}
    (out / "scores.json").write_text(json.dumps(content))
    return str(out)


def prune(out, scores: str, *more: str) -> int:
    arguments = ["--method", "frequency", "--keep", "4", "--scores", scores]
    return main(["prune", str(CHECKPOINT), *arguments, "-o", str(out), *more])


def test_the_largest_output_is_of_either_sign(scored):
    held = load_file(scored / "layer-000.safetensors")
    assert held["peak_output"].shape == (8,)
    assert bool((held["peak_output"] >= held["max_activation"]).all())
    assert not torch.equal(held["peak_output"], held["max_activation"])


def test_a_cut_that_takes_a_super_expert_is_refused_unless_asked_for(scored, tmp_path, capsys):
    assert prune(tmp_path / "plain", str(scored)) == 0
    manifest = read_manifest(tmp_path / "plain")
    assert manifest.settings["super_experts"] == []
    assert 0 < manifest.settings["importance"]["mean_gini"] < 1
    assert manifest.settings["importance"]["carriers"]["0"] <= 8
    gone = next(e for e in range(8) if e not in manifest.kept[1])

    def huge(name, tensors, content):
        if name == "layer-001.safetensors":
            tensors["peak_output"][gone] = 1e4

    scores = changed(scored, tmp_path / "huge", huge)
    capsys.readouterr()
    assert prune(tmp_path / "out", scores) == 2
    said = capsys.readouterr().err
    assert f"layer 1 expert {gone} (1e+04)" in said and "--super-experts warn" in said
    assert not (tmp_path / "out").exists()
    assert prune(tmp_path / "out", scores, "--super-experts", "warn") == 0
    settings = read_manifest(tmp_path / "out").settings
    assert settings["super_experts"] == [{"layer": 1, "expert": gone, "peak": 1e4}]
    assert any("removes super experts" in note for note in settings["notes"])


def test_a_bundle_of_before_is_read_and_says_what_it_lacks(scored, tmp_path):
    def old(name, tensors, content):
        content["schema_version"] = 2
        tensors.pop("peak_output", None)

    assert prune(tmp_path / "out", changed(scored, tmp_path / "old", old)) == 0
    settings = read_manifest(tmp_path / "out").settings
    assert any("lacks peak_output" in note and "score again" in note for note in settings["notes"])
    assert "super_experts" not in settings and settings["importance"]
