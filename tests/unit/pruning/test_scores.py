"""Score bundles: bound to their model, tamper-evident, refused with one sentence."""

from __future__ import annotations

import json
import shutil

import pytest

from leanmoe.cli import main
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
