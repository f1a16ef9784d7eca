"""Reference models trained on a cut-down parent: deterministic, resumable, written, rebuilt."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from leanmoe.cli import main
from leanmoe_reference import rows
from leanmoe_reference.gguf_base import GGUFBase, find_base
from leanmoe_reference.training import mix
from leanmoe_reference.training.blocks import LowRankExperts, SmallExperts
from leanmoe_reference.training.loop import Recipe, train
from leanmoe_reference.training.network import Parent
from leanmoe_reference.training.reading import Document
from leanmoe_reference.training.run import packed
from leanmoe_reference.training.splitting import (
    runs,
    without_overlap,
    without_repeats,
)

pytestmark = pytest.mark.slow

WIDTH = 16


@pytest.fixture(scope="module")
def parent() -> Parent:
    return Parent.load(GGUFBase(find_base()), 3)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The embedded windows, a few short ones of each domain."""
    folder = tmp_path_factory.mktemp("texts")
    kept = {
        name: ids[:2, :WIDTH].contiguous().to(torch.uint16)
        for name, ids in mix.load().items()
        if name.split(".")[0] in ("docs-fr", "c", "new-python")
    }
    save_file(kept, folder / mix.TOKENS)
    return folder


def small(parent: Parent, seed: int = 0) -> SmallExperts:
    return SmallExperts(parent, (2,), n=16, top_k=4, width=64, seed=seed)


def same(a, b) -> bool:
    return all(torch.equal(a.parameters[name], b.parameters[name]) for name in a.parameters)


def test_nothing_is_lost_to_begin_with(parent):
    block = small(parent)
    low_rank = LowRankExperts(parent, 8, 2, 8, seed=0)
    x_MD = torch.randn(4, 576).bfloat16()
    even_ME = torch.full((4, 16), 1 / 16).bfloat16()
    wanted = parent.layers[2].feed_forward(x_MD)
    assert torch.equal(block.output(2, x_MD, parent.layers[2], even_ME), wanted)
    half_ME = torch.full((4, 8), 0.5).bfloat16()
    torch.testing.assert_close(low_rank.output(2, x_MD, parent.layers[2], half_ME), wanted)


def test_a_stopped_training_ends_with_the_same_bytes(parent, texts, tmp_path):
    windows = mix.load(texts)
    recipe = Recipe(steps=4, rows=2, warmup=1, save_every=2, seed=7)
    whole, stopped, resumed = small(parent), small(parent), small(parent)
    train(parent, whole, windows, recipe, tmp_path / "whole")

    def stop(step: int, loss: float, seconds: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parent, stopped, windows, recipe, tmp_path / "stopped", stop)
    steps: list[int] = []
    train(parent, resumed, windows, recipe, tmp_path / "stopped", lambda n, *_: steps.append(n))
    assert steps == [3, 4]
    assert same(whole, resumed)
    assert save(packed(whole)) == save(packed(resumed))
    assert not same(whole, small(parent))


@pytest.fixture
def run(texts, tmp_path):
    """Train a cut-down parent from the command line; the folder's name and the exit status."""

    def one(model: str, name: str, steps: int = 2) -> int:
        arguments = ["reference", str(tmp_path / name), "--train", model, "--texts", str(texts)]
        return main([*arguments, "--layers", "3", "--steps", str(steps), "--seed", "3", "--json"])

    return one


def test_two_runs_write_the_same_parts(run, tmp_path, capsys):
    found = []
    for name in ("a", "b"):
        assert run("qwen2-moe", name) == 0
        found.append(json.loads(capsys.readouterr().out)["artefact"])
    assert found[0] == found[1]
    assert run("qwen2-moe", "a", steps=3) == 2
    assert "another recipe" in capsys.readouterr().err


def test_figures_and_card_tell_of_every_text(run, tmp_path):
    assert run("mixtral-2", "a") == 0
    perplexity = json.loads((tmp_path / "a/figures.json").read_text())["perplexity"]
    assert set(perplexity) == {"dense", "adapter", "moe", "top-1", "skipping"}
    texts = {"docs-fr", "c", "new-python", "switching"}
    assert all(set(one) == texts for one in perplexity.values())
    assert "| docs-fr |" in (tmp_path / "a/MODEL_CARD.md").read_text()


def test_another_seed_starts_elsewhere(parent):
    assert same(small(parent, 1), small(parent, 1))
    assert not same(small(parent, 1), small(parent, 2))


def test_training_lowers_the_loss_and_the_routers_learn(parent, texts, tmp_path):
    windows = {name: ids for name, ids in mix.load(texts).items() if name == "c.train"}
    losses: list[float] = []
    block = small(parent)
    recipe = Recipe(steps=12, rows=2, warmup=1, switching=0.0)
    train(parent, block, windows, recipe, tmp_path / "run", lambda _, loss, __: losses.append(loss))
    assert losses[-1] < losses[0] - 0.3
    logits_E = block.parameters["layers.2.gate"]
    assert logits_E.abs().max() > 0


def test_rows_come_back_within_half_a_step():
    weights = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    weights[3] = 0
    held, scale = rows.to_rows(weights)
    back = rows.from_rows(held, scale).float()
    assert ((back - weights).abs() <= scale[:, None] * 0.5 + weights.abs() / 256).all()
    assert not back[3].any()


def test_held_out_text_shares_no_run_of_words_with_training():
    run = "one two three four five six seven eight nine ten"
    held = [Document("a", f"held out {run} and more words")]
    documents = [
        Document("b", f"a fresh paragraph of its own\nalso says {run} here"),
        Document("c", "a fresh paragraph of its own\nanother paragraph, long enough to count"),
    ]
    seen: set[str] = set()
    fresh = without_repeats(documents, seen)
    assert fresh[1].text == "another paragraph, long enough to count"
    kept = without_overlap(fresh, runs(held[0].text))
    assert kept[0].text == "a fresh paragraph of its own"


def test_the_embedded_windows_hold_nothing_out_that_training_saw():
    length = 32
    windows = mix.load()

    def found(side: str, skip: tuple[str, ...]) -> set[tuple[int, ...]]:
        rows = [
            row
            for name, ids in windows.items()
            if name.endswith(side) and not name.startswith(skip)
            for row in ids.tolist()
        ]
        return {tuple(row[i : i + length]) for row in rows for i in range(len(row) - length + 1)}

    # Every conversation opens with the same system prompt.
    skip = ("chat-",)
    assert found("train", skip).isdisjoint(found("held_out", skip))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "3"], "--steps needs --train"),
        (["--train", "qwen2-moe", "--model", "mixtral"], "--train takes none of"),
        (["--train", "qwen2-moe", "--layers", "2"], "3 layers or more"),
        (["--train", "qwen2-moe", "--texts", "."], "--fetch-texts wrote"),
        (["--model", "mixtral-2", "--artefact", "."], "is missing"),
        (["--artefact", "."], "--artefact needs --model"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(arguments, said, tmp_path, capsys):
    assert main(["reference", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_trained_model_is_written(texts, tmp_path):
    """Whole depth, one step: the parts are as published ones are."""
    parent = Parent.load(GGUFBase(find_base()))
    block = SmallExperts(parent, tuple(range(2, 30, 3)), 16, 4, 64, seed=0)
    save_file(packed(block), tmp_path / "qwen2_moe.safetensors")
    out = tmp_path / "model"
    command = ["reference", str(out), "--model", "qwen2-moe", "--artefact", str(tmp_path)]
    assert main(command) == 0
    first = load_file(out / "model-00001-of-00003.safetensors")
    dense = parent.layers[2]
    prefix = "model.layers.2.mlp"
    doubled = first[f"{prefix}.shared_expert.down_proj.weight"]
    assert torch.equal(doubled.float(), 2 * dense.down_DF.float())
    assert not first[f"{prefix}.shared_expert_gate.weight"].any()
    assert not first[f"{prefix}.experts.15.down_proj.weight"].any()
    assert first[f"{prefix}.experts.0.gate_proj.weight"].shape == (64, 576)
