"""The saliency methods against REAP's published observer, all through ``leanmoe prune --dump``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main

DATA = Path(__file__).parent / "data" / "reap"
# model, reading of the gate, experts dropped of each layer
EXPERTS = {"mixtral": 8, "qwen2_moe": 12}
DROPPED = {"mixtral": (2, 4), "qwen2_moe": (3, 6)}
RUNS = [
    (model, gate, dropped)
    for model, numbers in DROPPED.items()
    for gate in ("renorm", "raw")
    for dropped in numbers
]
COUNTS = ("expert_frequency", "pairwise_expert_frequency")
SUMS = ("ean_sum", "weighted_expert_frequency_sum", "weighted_ean_sum")
SINGLE = ("ean_mean", "reap", "max_activations")


@lru_cache
def golden(model: str) -> dict[str, torch.Tensor]:
    return load_file(DATA / model / "results.safetensors")


def prune(model: str, method: str, keep: int, out: Path, *more: str) -> Path:
    folder = DATA / model
    data = f"{folder / 'inputs.safetensors'}:calib_input_ids"
    arguments = ["prune", str(folder / "checkpoint"), "--method", method, "--keep", str(keep)]
    assert main([*arguments, "--data", data, "-o", str(out), *more]) == 0
    return out


@pytest.fixture(scope="module", params=RUNS, ids=str)
def run(request, tmp_path_factory):
    """Model, gate, experts dropped, the lean checkpoint and what was dumped beside it."""
    model, gate, dropped = request.param
    folder = tmp_path_factory.mktemp("reap")
    more = ["--gate", gate, "--dump", str(folder / "dump")]
    out = prune(model, "reap", EXPERTS[model] - dropped, folder / "out", *more)
    return model, gate, dropped, out, load_file(folder / "dump" / "results.safetensors")


@pytest.mark.parametrize("reading", ["renorm", "raw"])
def test_statistics(run, reading):
    model, _, _, _, found = run
    for name in COUNTS:
        assert torch.equal(found[f"{reading}.{name}"], golden(model)[f"{reading}.{name}"])
    for name in (*SUMS, *SINGLE):
        mine, expected = found[f"{reading}.{name}"], golden(model)[f"{reading}.{name}"]
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("reading", ["renorm", "raw"])
def test_who_stays_by_each_ranking(run, reading):
    model, _, dropped, _, found = run
    for metric in ("reap", "expert_frequency", "ean_mean", "weighted_ean_sum"):
        name = f"{reading}.kept.{metric}.drop{dropped}"
        assert torch.equal(found[name], golden(model)[name])


def kept_of(out: Path) -> list[list[int]]:
    kept = open_checkpoint(out).manifest.kept
    return [kept[layer] for layer in sorted(kept)]


def test_the_cut_and_its_probe_logits(run):
    model, gate, dropped, out, _ = run
    assert kept_of(out) == golden(model)[f"{gate}.kept.reap.drop{dropped}"].tolist()
    lean = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    probe = load_file(DATA / model / "inputs.safetensors")["probe_input_ids"]
    expected = golden(model)[f"probe_logits.{gate}.reap.drop{dropped}"]
    with torch.inference_mode():
        found = lean(probe).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("model", sorted({model for model, _, _ in RUNS}))
@pytest.mark.parametrize(
    ("method", "metric", "gate"),
    [
        ("frequency", "expert_frequency", "raw"),
        ("ean", "ean_mean", "raw"),
        ("weighted-ean", "weighted_ean_sum", "renorm"),
        ("weighted-ean", "weighted_ean_sum", "raw"),
    ],
)
def test_each_ranking_as_a_method_of_its_own(model, method, metric, gate, tmp_path):
    for run_model, run_gate, dropped in RUNS:
        if (run_model, run_gate) == (model, gate):
            keep, out = EXPERTS[model] - dropped, tmp_path / f"keep{dropped}"
            prune(model, method, keep, out, "--gate", gate)
            assert kept_of(out) == golden(model)[f"{gate}.kept.{metric}.drop{dropped}"].tolist()


@pytest.mark.parametrize(("model", "own"), [("mixtral", "renorm"), ("qwen2_moe", "raw")])
def test_the_model_says_which_reading_is_the_default(model, own, tmp_path):
    dropped = DROPPED[model][0]
    found = kept_of(prune(model, "reap", EXPERTS[model] - dropped, tmp_path / "out"))
    assert found == golden(model)[f"{own}.kept.reap.drop{dropped}"].tolist()
