"""The look that ``leanmoe prune`` takes at a cut before it writes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe_pruning.data import load_data
from leanmoe_pruning.forward.passes import embed_all, run_block, step_
from leanmoe_pruning.forward.stream import DecoderStream
from tests.tiny import write_tiny_mixtral


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "model").mkdir()
    path = write_tiny_mixtral(tmp_path / "model", layers=2, dtype="float32")
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 300, (4, 16), generator=draw)
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    return path


def prune(model: Path, keep: int, *more: str) -> dict:
    out = model.parent / f"out{keep}"
    data = f"{model.parent / 'ids.safetensors'}"
    options = ["--method", "frequency", "--keep", str(keep), "--data", data, *more]
    assert main(["prune", str(model), *options, "-o", str(out)]) == 0
    return open_checkpoint(out).manifest.settings


def direct_loss(model: Path, kept: dict[int, list[int]]) -> list[float]:
    """The blocks run again with the others masked, the slow way."""
    stream = DecoderStream(open_checkpoint(model))
    data = load_data(f"{model.parent / 'ids.safetensors'}", stream.checkpoint, "calibration")
    hidden, found = embed_all(stream, data.ids), []
    with torch.inference_mode():
        for layer in stream.layers():
            [chunk] = [one.clone() for one in hidden]
            layer.attend_(chunk)
            whole, cut = run_block(layer, chunk)[0], run_block(layer, chunk, kept[layer.index])[0]
            found.append(float((cut - whole).square().sum() / whole.square().sum()))
            step_(layer, hidden)
    return found


def test_unrelated_experts_are_warned_of_and_the_figures_are_the_blocks_own(model, caplog):
    settings = prune(model, 2)
    error = caplog.text
    assert "this cut may collapse" in error and "leanmoe eval --against" in error
    assert any("may collapse" in note for note in settings["notes"])
    kept = open_checkpoint(model.parent / "out2").manifest.kept
    found = settings["redundancy"]["loss"]
    assert [found["0"], found["1"]] == pytest.approx(direct_loss(model, kept), rel=1e-4)


def test_experts_that_are_one_and_the_same_are_not(model, caplog):
    file = model / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if ".experts." in name:
            tensors[name] = tensors[name.replace(f".{name.split('.')[5]}.w", ".0.w")].clone()
    save_file(tensors, file)
    settings = prune(model, 2)
    assert "may collapse" not in caplog.text and "notes" not in settings
    assert settings["redundancy"]["mean_loss"] == pytest.approx(0, abs=1e-6)
    assert settings["redundancy"]["similarity"]["0"] == pytest.approx(1, abs=1e-4)


def test_a_plan_alone_is_probed_too_and_methods_without_data_are_not(model, caplog):
    data = f"{model.parent / 'ids.safetensors'}"
    plan = model.parent / "plan.json"
    options = ["--method", "frequency", "--keep", "2", "--data", data, "--plan-only"]
    assert main(["prune", str(model), *options, "-o", str(plan)]) == 0
    assert "may collapse" in caplog.text
    assert "layers" in json.loads(plan.read_text())
    out = model.parent / "random"
    assert main(["prune", str(model), "--method", "random", "--keep", "2", "-o", str(out)]) == 0
    assert "redundancy" not in open_checkpoint(out).manifest.settings
