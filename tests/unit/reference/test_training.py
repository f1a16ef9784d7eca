"""Reference models trained on a cut-down parent: deterministic, resumable, written, rebuilt."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from leanmoe.cli import main
from leanmoe_reference import rows
from leanmoe_reference.artefact import Artefact
from leanmoe_reference.gguf_base import GGUFBase, find_base
from leanmoe_reference.mixtral import MixtralModel, RowFactors
from leanmoe_reference.training import mix
from leanmoe_reference.training.blocks import LowRankExperts, Routes, SmallExperts
from leanmoe_reference.training.figures import dense_block
from leanmoe_reference.training.loop import Recipe, balance_loss, train
from leanmoe_reference.training.network import Parent
from leanmoe_reference.training.plans import PLANS
from leanmoe_reference.training.reading import Document
from leanmoe_reference.training.run import packed, take_stored
from leanmoe_reference.training.specialists import specialists, stored
from leanmoe_reference.training.splitting import (
    runs,
    without_overlap,
    without_repeats,
)

pytestmark = pytest.mark.slow

WIDTH = 16


@pytest.fixture(scope="module")
def base() -> GGUFBase:
    """Read once: its tokenizer alone takes seconds."""
    return GGUFBase(find_base())


@pytest.fixture(scope="module")
def parent(base) -> Parent:
    return Parent.load(base, 3)


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
    x_MD = torch.randn(4, 576, dtype=parent.compute)
    even_ME = torch.full((4, 16), 1 / 16, dtype=parent.compute)
    wanted = parent.layers[2].feed_forward(x_MD)
    assert torch.equal(block.output(2, x_MD, parent.layers[2], even_ME), wanted)
    half_ME = torch.full((4, 8), 0.5, dtype=parent.compute)
    torch.testing.assert_close(low_rank.output(2, x_MD, parent.layers[2], half_ME), wanted)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_products_in_either_type_say_nearly_the_same(compute, base, parent, texts):
    """What a processor multiplies fast decides the type, not what is learnt."""
    ids_NT = mix.load(texts)["c.train"][:1]
    one = Parent.load(base, 3, compute)
    assert one.compute is one.layers[0].up_FD.dtype is compute
    found, wanted = (float(p.losses(ids_NT, dense_block).mean()) for p in (one, parent))
    assert found == pytest.approx(wanted, rel=0.01)


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
    assert run("mixtral-3", "a") == 0
    figures = json.loads((tmp_path / "a/figures.json").read_text())
    perplexity = figures["perplexity"]
    assert set(perplexity) == {"dense", "adapter", "moe", "top-1", "skipping"}
    texts = {"docs-fr", "c", "new-python", "switching"}
    assert all(set(one) == texts for one in perplexity.values())
    assert "| docs-fr |" in (tmp_path / "a/MODEL_CARD.md").read_text()
    assert figures["recipe"]["free"] == 1.0
    assert figures["specialists"]["bits_on_the_domain"]["of"] == 1.0


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


def test_free_routers_learn_balance_without_a_group(parent, texts, tmp_path):
    plan = PLANS["mixtral-3"]
    block, start = plan.block(parent, 0), plan.block(parent, 0)
    first, second = (block.parameters[f"layers.{layer}.gate"] for layer in (0, 1))
    assert (first - second).abs().min() > 0
    # One layer prefers an expert to begin with; balance is all that is asked of the routers.
    for one in (block, start):
        one.parameters["layers.1.gate"] *= 0.01
        one.parameters["layers.1.gate"][5] += parent.layers[1].named["input_layernorm"].float()
    recipe = replace(plan.recipe, steps=8, rows=2, warmup=1, balance=100.0)
    train(parent, block, mix.load(texts), recipe, tmp_path / "run")
    ids_NT = mix.load(texts)["c.held_out"]
    assert balance_of(parent, block, ids_NT) < balance_of(parent, start, ids_NT) - 0.03


def balance_of(parent: Parent, block: LowRankExperts, ids_NT: torch.Tensor) -> float:
    routes = Routes()
    with torch.no_grad():
        parent.hidden(ids_NT, lambda i, x, frozen: block.run(routes, i, x, frozen))
    return float(balance_loss(routes, block.top_k))


def test_balance_is_one_when_experts_are_used_alike():
    even_ME = 50 * torch.eye(8).repeat(4, 1)
    assert float(balance_loss(Routes(logits_ME={0: even_ME}), 1)) == pytest.approx(1)
    one_ME = 50 * torch.eye(8)[:1].expand(32, 8)
    assert float(balance_loss(Routes(logits_ME={0: one_ME}), 1)) == pytest.approx(8)


def test_a_written_expert_computes_what_was_trained(base, parent, tmp_path):
    """Among its neurons those that it lacks: silent in training, gone from the file."""
    block = PLANS["mixtral-3"].block(parent, 0)
    draw = torch.Generator().manual_seed(1)
    for name, value in block.parameters.items():
        if block.across(name):
            value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    save_file(packed(block), tmp_path / "parts.safetensors")
    take_stored(block)
    factors = RowFactors(Artefact(tmp_path / "parts.safetensors"))
    held = dict(MixtralModel(base, factors).layer(1))
    x_MD = torch.randn(16, 576, generator=draw).to(parent.compute)
    w1, w2, w3 = (
        held[f"model.layers.1.block_sparse_moe.experts.6.w{i}.weight"].float() for i in (1, 2, 3)
    )
    assert int((w2.abs().amax(0) == 0).sum()) == 48
    wanted = (torch.nn.functional.silu(x_MD.float() @ w1.T) * (x_MD.float() @ w3.T)) @ w2.T
    alone_ME = torch.zeros(16, 8).index_fill(1, torch.tensor([6]), 1).to(parent.compute)
    for one in (block, stored(parent, factors)):
        found = one.output(1, x_MD, parent.layers[1], alone_ME).float()
        assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_a_number_says_nothing_where_it_means_another_domain_in_each_layer():
    same_ED = torch.eye(4) * 100 + 1
    turned = torch.stack([same_ED.roll(turn, 0) for turn in range(4)])
    alike, other = specialists(same_ED.expand(4, 4, 4)), specialists(turned)
    assert alike["bits_on_the_domain"]["number_alone"] > 1.7
    assert other["bits_on_the_domain"]["number_alone"] == 0
    found = [one["bits_on_the_domain"]["expert_of_a_layer"] for one in (alike, other)]
    assert found[0] == found[1] > 1.7
    assert other["largest_share_of_one_domain"]["experts_above_0.6"] == 16


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


def test_a_trained_model_is_written(base, tmp_path):
    """Whole depth, one step: the parts are as published ones are."""
    parent = Parent.load(base)
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
