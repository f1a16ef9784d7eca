"""Score bundles: bound to their model, tamper-evident, refused with one sentence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.cli import main
from leanmoe.files.digest import bytes_digest, file_digest
from tests.golden.naee_data import CALIBRATION, CHECKPOINT


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "scores"
    assert main(["score", str(CHECKPOINT), "--data", CALIBRATION, "-o", str(out)]) == 0
    return out


@pytest.fixture
def scores(scored, tmp_path):
    shutil.copytree(scored, tmp_path / "scores")
    return tmp_path / "scores"


@pytest.fixture
def refused(scores, tmp_path, capsys):
    def check(*words: str, model=CHECKPOINT, more=()) -> None:
        arguments = ["prune", str(model), "--method", "naee", "--keep", "4"]
        out = tmp_path / "out"
        code = main([*arguments, "--scores", str(scores), "-o", str(out), *more])
        assert code == 2
        said = capsys.readouterr().err
        assert all(word in said for word in words), said
        assert not out.exists()

    return check


def test_scoring_twice_gives_the_same_bundle(scored, tmp_path):
    again = tmp_path / "again"
    assert main(["score", str(CHECKPOINT), "--data", CALIBRATION, "-o", str(again)]) == 0
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in scored.iterdir()
    }


def test_changed_layer_file(scores, refused):
    path = scores / "layer-001.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    refused("layer-001.safetensors", "does not match")


def test_edited_description(scores, refused):
    path = scores / "scores.json"
    path.write_text(path.read_text().replace('"top_k": 2', '"top_k": 1'))
    refused("does not match its own digest")


def test_description_that_is_not_one(scores, refused):
    (scores / "scores.json").write_text("{}")
    refused("not a score description")


def test_not_a_bundle(scores, refused):
    (scores / "scores.json").unlink()
    refused("is not a score bundle")


def test_bundle_of_another_model(model, refused):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_theta": 10000.0}))
    refused("another model", "config.json", model=model)


def test_progressive_needs_data(refused):
    refused("progressive", "--data", more=["--variant", "progressive"])


def test_data_beside_a_bundle_is_refused(refused):
    refused("drop one", more=["--data", CALIBRATION])


def test_batch_size_zero(refused):
    refused("--batch-size is 0", more=["--batch-size", "0"])


def test_method_without_data(tmp_path, capsys):
    arguments = ["prune", str(CHECKPOINT), "--method", "frequency", "--keep", "4"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 2
    assert "--scores or --data" in capsys.readouterr().err


def forged(scores, change=None, **told) -> None:
    """The bundle after a change of a layer's tensors, or of what it tells, with digests to match.

    That is what a run that went wrong leaves, or an edit by someone who knows the format.
    """
    if change is not None:
        path = scores / "layer-001.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        path.unlink()
        save_file(change(tensors), path)
    content = json.loads((scores / "scores.json").read_text())
    content |= {"files": {name: file_digest(scores / name) for name in content["files"]}, **told}
    del content["digest"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    digest = {"digest": bytes_digest([text.encode()])}
    (scores / "scores.json").write_text(json.dumps({**content, **digest}))


def without(tensors, name):
    return {one: tensor for one, tensor in tensors.items() if one != name}


NAN = float("nan")
DAMAGED = {
    "lacks the tensor moments.hidden_EF": lambda held: without(held, "moments.hidden_EF"),
    "output_gram that is not finite": lambda held: {
        **held,
        "output_gram": held["output_gram"].index_fill(0, torch.tensor([3]), NAN),
    },
    "output_norm of [": lambda held: {**held, "output_norm": held["output_norm"][1:].clone()},
    "router_logits of [": lambda held: {**held, "router_logits": held["router_logits"].half()},
}


@pytest.mark.parametrize(("said", "change"), DAMAGED.items(), ids=DAMAGED)
def test_tensors_that_are_no_scores_are_named(said, change, scores, refused):
    forged(scores, change)
    refused("layer-001.safetensors", said, "score again")


def test_a_layer_file_that_is_none(scores, refused):
    (scores / "layer-001.safetensors").write_bytes(b"x" * 100)
    forged(scores)
    refused("layer-001.safetensors", "cannot be read as scores")


TOLD = {
    "which are no scores": {"layout": [[4, -32]]},
    "tells of MoE layers": {"moe_layers": [0]},
    "does not name effects-000.safetensors": {"effects": 0},
    "top_k: Input should be a valid integer": {"top_k": True},
    "layout.0.1: Input should be a valid integer": {"layout": [[4, True]]},
}


@pytest.mark.parametrize(("said", "told"), TOLD.items(), ids=TOLD)
def test_a_description_of_no_scores_is_refused(said, told, scores, refused):
    forged(scores, **told)
    refused("scores.json", said)
