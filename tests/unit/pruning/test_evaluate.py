"""``leanmoe eval`` and ``leanmoe curve``: figures against plain transformers, and refusals."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from torch.nn import functional
from transformers import MixtralForCausalLM

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.shards import write_tensors
from tests.golden.naee_data import CALIBRATION, CHECKPOINT, PROBE, probe_ids


def run(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def lean(model, tmp_path):
    out = tmp_path / "lean"
    arguments = ["prune", str(model), "--method", "naee", "--keep", "6", "--data", CALIBRATION]
    assert main([*arguments, "-o", str(out)]) == 0
    return out


@torch.inference_mode()
def log_probabilities(path) -> torch.Tensor:
    model = MixtralForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model(probe_ids()).logits.double().log_softmax(-1)


def test_perplexity_equals_transformers(capsys):
    found = run(capsys, "eval", str(CHECKPOINT), "--data", PROBE)
    log_p = log_probabilities(CHECKPOINT)[:, :-1].flatten(0, 1)
    loss = functional.nll_loss(log_p, probe_ids()[:, 1:].flatten())
    (domain,) = found["domains"].values()
    assert domain["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert domain["low"] < domain["perplexity"] < domain["high"]
    assert domain["tokens"] == 40
    assert found["skip_rate"] == 0.0


def test_divergence_equals_transformers(lean, capsys):
    found = run(capsys, "eval", str(lean), "--against", str(CHECKPOINT), "--data", PROBE)
    log_p, log_q = log_probabilities(CHECKPOINT), log_probabilities(lean)
    kld = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    (domain,) = found["domains"].values()
    assert domain["kld"] == pytest.approx(kld, rel=1e-4)
    same = float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean())
    assert domain["top1_agreement"] == pytest.approx(same)
    assert domain["kld_upper"] > domain["kld"]


def test_one_window_has_no_interval(capsys):
    found = run(capsys, "eval", str(CHECKPOINT), "--data", f"{PROBE}:1")
    (domain,) = found["domains"].values()
    assert domain["low"] is None
    assert main(["eval", str(CHECKPOINT), "--data", f"{PROBE}:1"]) == 0


def test_eval_at_a_level_agrees_with_the_curve(model, capsys):
    arguments = ["--calibration", CALIBRATION, "--data", PROBE]
    curve = run(capsys, "curve", str(model), *arguments, "--levels", "5")
    exact = run(capsys, "eval", str(model), "--data", PROBE)
    skipped = run(capsys, "eval", str(model), "--data", PROBE, "--skip-level", "0.75")
    point = curve["points"][3]
    assert skipped["skip_rate"] == pytest.approx(point["skip_rate"])
    (domain,) = skipped["domains"].values()
    assert domain["perplexity"] == pytest.approx(point["perplexity"], rel=1e-6)
    (domain,) = exact["domains"].values()
    assert domain["perplexity"] == pytest.approx(curve["points"][0]["perplexity"], rel=1e-6)


def test_level_without_a_curve_and_out_of_range(model, capsys):
    for level in ("0.5", "1.5"):
        assert main(["eval", str(model), "--data", PROBE, "--skip-level", level]) == 2
        assert level in capsys.readouterr().err


def test_models_of_different_vocabularies(model, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert main(["eval", str(model), "--against", str(other), "--data", PROBE]) == 2
    assert "vocabulary of 100" in capsys.readouterr().err


def test_curve_keeps_the_manifest_of_a_lean_checkpoint(lean, capsys):
    before = read_manifest(lean)
    run(capsys, "curve", str(lean), "--data", CALIBRATION)
    after = read_manifest(lean)
    assert after.curve is not None
    assert after.model_copy(update={"curve": None}) == before


def test_curve_makes_a_manifest_where_there_is_none(model, capsys):
    run(capsys, "curve", str(model), "--data", CALIBRATION)
    manifest = read_manifest(model)
    assert manifest.method == "none"
    assert set(manifest.files) == {path.name for path in model.iterdir()} - {"leanmoe.json"}
    # Half of the file's windows gave the betas, the other half the quality.
    assert manifest.curve.tokens == 96


def test_curve_refusals(model, capsys):
    for arguments, words in (
        (["--data", CALIBRATION, "--levels", "2"], "--levels is 2"),
        (["--calibration", CALIBRATION, "--data", f"{PROBE}:1"], "at least 2"),
    ):
        assert main(["curve", str(model), *arguments]) == 2
        assert words in capsys.readouterr().err
        assert not (model / "leanmoe.json").exists()


def test_what_is_given_without_a_name_is_not_taken_as_left_out(model, capsys):
    for arguments, words in (
        (["--data", ""], "--data '' has an empty part"),
        (["--tasks", ""], "--tasks '' names nothing"),
        (["--data", CALIBRATION, "--against", ""], "has no config.json"),
    ):
        assert main(["eval", str(model), *arguments]) == 2
        assert words in capsys.readouterr().err


def test_interrupted_curve_leaves_the_old_manifest(lean, monkeypatch):
    before = (lean / "leanmoe.json").read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("leanmoe_pruning.evaluation.levels.compare_window", stop)
    assert main(["curve", str(lean), "--data", CALIBRATION]) == 130
    assert (lean / "leanmoe.json").read_bytes() == before


def test_sliding_window_attention_equals_transformers(model, capsys):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "sliding_window": 5}))
    found = run(capsys, "eval", str(model), "--data", PROBE)
    log_p = log_probabilities(model)[:, :-1].flatten(0, 1)
    loss = functional.nll_loss(log_p, probe_ids()[:, 1:].flatten())
    (domain,) = found["domains"].values()
    assert domain["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_tied_embeddings_equal_transformers(model, capsys):
    from safetensors.torch import load_file

    held = load_file(model / "model.safetensors")
    tensors = {name: t.clone() for name, t in held.items() if name != "lm_head.weight"}
    write_tensors(model / "model.safetensors", tensors)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    found = run(capsys, "eval", str(model), "--data", PROBE)
    log_p = log_probabilities(model)[:, :-1].flatten(0, 1)
    loss = functional.nll_loss(log_p, probe_ids()[:, 1:].flatten())
    (domain,) = found["domains"].values()
    assert domain["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
