"""``--method naee`` on layers of many experts, through the command line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from tests.tiny import write_tiny_mixtral
from tests.tiny_families import write_tiny


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Sixteen experts, top-3, and 24 windows of 16 tokens."""
    folder = tmp_path_factory.mktemp("many")
    model = write_tiny_mixtral(
        folder / "model", layers=2, experts=16, top_k=3, hidden=32, ffn=32, dtype="float32"
    )
    return model, windows(folder)


def windows(folder) -> str:
    ids = torch.randint(0, 256, (24, 16), generator=torch.Generator().manual_seed(1))
    save_file({"ids": ids}, folder / "ids.safetensors")
    return f"{folder / 'ids.safetensors'}:ids"


def prune(many, out, *more: str) -> int:
    model, data = many
    arguments = ["prune", str(model), "--method", "naee", "--data", data, "-o", str(out)]
    return main([*arguments, *more])


@pytest.mark.parametrize("variant", ["layerwise", "progressive"])
def test_sixteen_experts_are_searched_and_two_runs_are_alike(many, tmp_path, variant):
    for name in ("one", "two"):
        dump = ["--dump", str(tmp_path / f"dump-{name}")]
        assert prune(many, tmp_path / name, "--keep", "6", "--variant", variant, *dump) == 0
    for pair in (("one", "two"), ("dump-one", "dump-two")):
        first, second = (
            {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in pair
        )
        assert first == second
    settings = read_manifest(tmp_path / "one").settings
    assert settings["search"] == "greedy" and "single swap" in settings["notes"][0]
    dumped = load_file(tmp_path / "dump-one" / "results.safetensors")
    run = f"{variant}_r6"
    assert f"{run}.losses" not in dumped and dumped[f"{run}.loss"].shape == (2,)
    facts = json.loads((tmp_path / "dump-one" / "results.json").read_text())[run]
    assert facts["best_loss"] == dumped[f"{run}.loss"].tolist()


def test_beam_and_greedy_come_near_what_trying_all_finds(many, tmp_path):
    losses = {}
    for search in ("enumerate", "greedy", "beam"):
        more = ["--keep", "13", "--search", search, "--dump", str(tmp_path / f"dump-{search}")]
        assert prune(many, tmp_path / search, *more) == 0
        facts = json.loads((tmp_path / f"dump-{search}" / "results.json").read_text())
        losses[search] = facts["layerwise_r13"]["best_loss"]
    assert read_manifest(tmp_path / "beam").settings["beam_width"] == 4
    for best, greedy, beam in zip(*losses.values(), strict=True):
        assert best * (1 - 1e-6) <= min(greedy, beam) <= max(greedy, beam) < 1.1 * best


def test_an_adaptive_budget_of_many_experts(many, tmp_path):
    out = tmp_path / "out"
    assert prune(many, out, "--keep", "8", "--budget", "adaptive") == 0
    manifest = read_manifest(out)
    assert sum(map(len, manifest.kept.values())) == 16
    assert manifest.settings["search"] == "greedy"


def test_groups_stay_equally_large(tmp_path):
    model = write_tiny(tmp_path / "model", "deepseek_v3")
    out = tmp_path / "out"
    chosen = (model, windows(tmp_path))
    assert prune(chosen, out, "--keep", "6", "--search", "greedy") == 0
    for kept in read_manifest(out).kept.values():
        assert sorted(expert // 4 for expert in kept) == [0, 0, 0, 1, 1, 1]


def test_a_sample_of_tokens_decides_where_only_they_have_a_gram(tmp_path):
    """More than sixteen experts: the loss is of the sampled tokens."""
    model = write_tiny_mixtral(
        tmp_path / "model", layers=1, experts=18, top_k=2, hidden=32, ffn=32, dtype="float32"
    )
    scores, out = tmp_path / "scores", tmp_path / "out"
    scored = ["score", str(model), "--data", windows(tmp_path), "--gram-tokens", "100"]
    assert main([*scored, "-o", str(scores)]) == 0
    arguments = ["prune", str(model), "--method", "naee", "--scores", str(scores)]
    for search in ("enumerate", "greedy"):
        more = ["--keep", "16", "--search", search, "-o", str(out / search)]
        assert main([*arguments, *more]) == 0
        assert len(read_manifest(out / search).kept[0]) == 16


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--beam-width", "2"], "--beam-width is for --search beam"),
        (["--search", "beam", "--beam-width", "0"], "--beam-width is 0"),
    ],
)
def test_refused(many, tmp_path, capsys, more, words):
    assert prune(many, tmp_path / "out", "--keep", "6", *more) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()
