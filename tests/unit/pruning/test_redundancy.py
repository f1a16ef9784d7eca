"""The probe that tells of a cut that may collapse, before it is written."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from tests.tiny import write_tiny_mixtral

TEXT = "the people look at the water and go a long way "


@pytest.fixture
def model(tmp_path):
    return write_tiny_mixtral(tmp_path / "model", layers=2, hidden=64, ffn=64, dtype="float32")


def cut(model, out, keep: int, *more: str, method: str = "frequency"):
    text = out.parent / "text.txt"
    text.write_text(TEXT * 20)
    arguments = ["--method", method, "--keep", str(keep), "--data", str(text)]
    assert main(["prune", str(model), *arguments, "--window", "32", "-o", str(out), *more]) == 0
    return read_manifest(out).settings


def make_alike(model) -> None:
    """Every expert a copy of the first, or nearly."""
    tensors = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in tensors:
        if ".experts." in name:
            before, after = name.split(".experts.")
            first = tensors[f"{before}.experts.0.{after.split('.', 1)[1]}"]
            noise = torch.randn(first.shape, generator=generator) * first.std()
            tensors[name] = first + 0.01 * noise
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def test_experts_that_are_not_alike_are_warned_of(model, tmp_path, capsys):
    settings = cut(model, tmp_path / "out", 2)
    found = settings["redundancy"]
    assert found["mean_loss"] > found["collapse_above"]
    assert all(abs(cosine) < 0.2 for cosine in found["similarity"].values())
    assert all(2 < used <= 8 for used in found["used"].values())
    (note,) = (note for note in settings["notes"] if "may collapse" in note)
    assert f"{found['mean_loss']:.0%}" in note


def test_experts_that_are_alike_are_not(model, tmp_path):
    make_alike(model)
    settings = cut(model, tmp_path / "out", 2)
    found = settings["redundancy"]
    assert 0 < found["mean_loss"] < 0.01
    assert all(cosine > 0.99 for cosine in found["similarity"].values())
    assert not any("may collapse" in note for note in settings.get("notes", []))


@pytest.mark.parametrize(
    "method",
    [
        ("naee",),
        ("naee", "--variant", "progressive"),
        ("naee", "--budget", "adaptive"),
        # Decides from nothing, so the probe looks at the data itself.
        ("random",),
    ],
    ids=" ".join,
)
def test_every_method_that_cuts_experts_is_looked_at(method, model, tmp_path):
    name, *more = method
    settings = cut(model, tmp_path / "out", 2, *more, method=name)
    found = settings["redundancy"]
    assert set(found["loss"]) == {"0", "1"}
    assert found["mean_loss"] > found["collapse_above"]
    assert any("may collapse" in note for note in settings["notes"])


def test_a_cut_that_nothing_is_known_of_is_not_judged(model, tmp_path):
    out = tmp_path / "out"
    assert main(["prune", str(model), "--method", "random", "--keep", "2", "-o", str(out)]) == 0
    assert "redundancy" not in read_manifest(out).settings


def test_merged_experts_are_no_cut(model, tmp_path):
    assert "redundancy" not in cut(model, tmp_path / "out", 2, method="m-smoe")


def test_keeping_everything_loses_nothing(model, tmp_path):
    found = cut(model, tmp_path / "out", 8)["redundancy"]
    assert found["mean_loss"] == pytest.approx(0, abs=1e-9)


def test_it_says_how_many_tokens_it_looked_at(model, tmp_path):
    ids, out = tmp_path / "ids.safetensors", tmp_path / "out"
    save_file({"input_ids": torch.arange(96).view(3, 32)}, ids)
    how = ["--method", "frequency", "--keep", "4", "--data", str(ids)]
    assert main(["prune", str(model), *how, "-o", str(out)]) == 0
    assert read_manifest(out).settings["redundancy"]["tokens"] == 96
