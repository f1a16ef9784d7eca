"""CD-MoE beside the golden numbers: what is refused, other families, what a search costs."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.cutting.layer_plan import LayerPlan, PrunePlan
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.cd_moe import memory
from leanmoe_pruning.methods.cd_moe.divergence import channel_shares, divergence, documents_of
from leanmoe_pruning.methods.cd_moe.search_cost import published_forwards
from tests.golden.cd_moe_data import CHECKPOINT, DOCUMENTS, condense
from tests.golden.naee_data import CHECKPOINT as MIXTRAL
from tests.reference_model import planned_blocks
from tests.tiny_families import write_tiny


def write_ids(path: Path, windows: int, length: int, seed: int = 1) -> str:
    generator = torch.Generator().manual_seed(seed)
    save_file({"input_ids": torch.randint(0, 128, (windows, length), generator=generator)}, path)
    return str(path)


def run(model: Path, out: Path, data: str, *more: str) -> int:
    arguments = ["prune", str(model), "--method", "cd-moe", "--data", data, "-o", str(out)]
    return main([*arguments, *more])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--layers is missing: --method cd-moe condenses 1 to 3 layers"),
        (["--layers", "0"], "--layers is 0"),
        (["--layers", "4"], "--layers is 4"),
        (["--layers", "1", "--experts", "0"], "--experts is 0, expected 1 to 8; --variant S is"),
        (["--layers", "1", "--experts", "9"], "--experts is 9"),
        (["--layers", "1", "--variant", "sr"], "has no variant 'sr'; give SR or S"),
        (["--layers", "1", "--keep", "4"], "leave --keep and --ratio out"),
        (["--layers", "1", "--probe", "x.safetensors"], "give --dump DIR with it"),
    ],
)
def test_options_that_cannot_be(tmp_path, capsys, more, words):
    assert run(CHECKPOINT, tmp_path / "out", DOCUMENTS, *more) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_no_data_and_no_variants(tmp_path, capsys):
    out = ["-o", str(tmp_path / "out")]
    assert main(["prune", str(CHECKPOINT), "--method", "cd-moe", "--layers", "1", *out]) == 2
    assert "give --data SPEC" in capsys.readouterr().err
    random = ["prune", str(CHECKPOINT), "--method", "random", "--keep", "4", "--variant", "S"]
    assert main([*random, *out]) == 2
    assert "--method random has no variants" in capsys.readouterr().err


def test_mixtral_keeps_experts_but_has_nothing_without_them(tmp_path, capsys):
    data = write_ids(tmp_path / "ids.safetensors", 3, 16)
    assert run(MIXTRAL, tmp_path / "s", data, "--layers", "1", "--variant", "S") == 2
    assert "mixtral has no shared expert that would be left" in capsys.readouterr().err
    assert run(MIXTRAL, tmp_path / "sr", data, "--layers", "2", "--experts", "3") == 0
    lean = open_model(tmp_path / "sr")
    assert sorted(own.n_experts for own in lean.layers.values()) == [3, 3, 8]


def test_qwen_s_shared_gate_becomes_its_mean(tmp_path):
    source = write_tiny(tmp_path / "source", "qwen2_moe", dtype="float32")
    data = write_ids(tmp_path / "ids.safetensors", 4, 24)
    ids = load_file(data)["input_ids"]
    for variant in ("SR", "S"):
        out = tmp_path / variant
        assert run(source, out, data, "--layers", "2", "--variant", variant) == 0
        plan = _plan_of(source, out, ids)
        tokens = torch.arange(8, 40).view(2, 16)
        expected = _planned(source, plan, tokens)
        torch.testing.assert_close(_last(out, tokens), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def _plan_of(source: Path, out: Path, ids: torch.Tensor) -> PrunePlan:
    """The plan the cut should have followed, its constants measured here anew."""
    kept = read_manifest(out).kept
    stream, layers = DecoderStream(open_model(source)), {}
    hidden = embed_all(stream, [ids])
    for layer in stream.layers():
        if layer.experts is not None:
            attended = hidden[0].clone()
            layer.attend_(attended)
            x_TD = layer.block_input(attended)
            shares_TE = layer.router_logits(x_TD).softmax(-1)
            top_TK, ids_TK = shares_TE.topk(4)
            means = {e: float(top_TK[ids_TK == e].mean()) for e in kept[layer.index]}
            gate = float((x_TD @ layer.always.share_1D.t()).sigmoid().mean())
            layers[layer.index] = LayerPlan(condense=means, shared_gate=gate)
        step_(layer, hidden)
    return PrunePlan(layers=layers)


@torch.inference_mode()
def _last(model: Path, ids: torch.Tensor) -> torch.Tensor:
    stream = DecoderStream(open_model(model))
    hidden = embed_all(stream, [ids])
    for layer in stream.layers():
        step_(layer, hidden)
    return hidden[0]


@torch.inference_mode()
def _planned(source: Path, plan: PrunePlan, ids: torch.Tensor) -> torch.Tensor:
    stream, blocks = DecoderStream(open_model(source)), planned_blocks(source, plan)
    hidden = embed_all(stream, [ids])
    for layer in stream.layers():
        if layer.index not in blocks:
            step_(layer, hidden)
            continue
        layer.attend_(hidden[0])
        hidden[0] += blocks[layer.index](layer.block_input(hidden[0])).view_as(hidden[0])
    return hidden[0]


@pytest.mark.parametrize("seed", range(3))
def test_giving_candidates_up_changes_no_choice(tmp_path, seed):
    data = write_ids(tmp_path / "ids.safetensors", 24, 10, seed)
    plain, whole, dump = tmp_path / "plain", tmp_path / "whole", tmp_path / "dump"
    assert run(CHECKPOINT, plain, data, "--layers", "3") == 0
    assert run(CHECKPOINT, whole, data, "--layers", "3", "--dump", str(dump)) == 0
    hurried, patient = (read_manifest(one).settings for one in (plain, whole))
    for name in ("layer_order", "layer_step_js"):
        assert hurried[name] == patient[name]
    assert read_manifest(plain).kept == read_manifest(whole).kept
    assert (plain / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert hurried["forwards"]["run"] < patient["forwards"]["run"]


def test_what_does_not_fit_in_memory_gives_the_same_bytes(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    assert condense(one / "lean", 2, "--dump", str(one / "dump")) == 0
    monkeypatch.setattr(memory, "TENSOR_SHARE", 0.0)
    monkeypatch.setattr(memory, "LAYERS_SHARE", 0.0)
    assert condense(two / "lean", 2, "--dump", str(two / "dump")) == 0
    for file in ("dump/results.safetensors", "dump/results.json", "lean/model.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_the_cost_is_counted_and_stated_beside_the_published_scripts_(tmp_path):
    assert published_forwards(n_experts=64, selected=6, moe_layers=27, condensed=9) == 10_170
    dump = tmp_path / "dump"
    assert condense(tmp_path / "lean", 1, "--dump", str(dump)) == 0
    found = read_manifest(tmp_path / "lean").settings["forwards"]
    # One pass; three layers' 8 experts on every token, each 1536 of 13568 active weights, a
    # layer being a quarter; for both variants candidates from layers 1, 2 and 3 on, and the
    # stream carried on to those behind a choice (orders 3, 2, 1 and 3, 1, 2).
    experts = 3 * 8 * 1536 / (4 * 32 * 32 + 3 * 32 * 32 + 8 * 32 + 3 * 1536) / 4
    layers = ((3 + 2 + 1) + (3 + 2) + 3) / 4 + ((3 + 2 + 1) + (3 + 2) + 2 + 2) / 4
    assert found["run"] == pytest.approx(1 + experts + layers, abs=0.01)
    assert found["published"] == 3 * (8 + 7 + 6) + 3


def test_an_expert_that_nobody_selected_is_named(tmp_path, capsys):
    data = write_ids(tmp_path / "ids.safetensors", 1, 2)
    more = ["--layers", "1", "--experts", "8", "--json"]
    assert run(CHECKPOINT, tmp_path / "lean", data, *more) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert "no token of the data selected experts" in note


def test_a_disk_without_room_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "TENSOR_SHARE", 0.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert condense(tmp_path / "lean", 1) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert "has no room for" in said and "set TMPDIR" in said
    assert list(tmp_path.iterdir()) == []


def test_activations_that_overflow_are_told(tmp_path, capsys):
    model = write_tiny(tmp_path / "model", "deepseek", dtype="float32")
    tensors = load_file(model / "model.safetensors")
    for name in ("gate", "up", "down"):
        tensors[f"model.layers.0.mlp.{name}_proj.weight"] *= 1e30
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    data = write_ids(tmp_path / "ids.safetensors", 3, 16)
    assert run(model, tmp_path / "out", data, "--layers", "1") == 2
    assert "activations of layer 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_vector_that_overflowed_is_as_far_as_can_be():
    there, overflowed = torch.zeros(1, 4), torch.tensor([[0.0, math.inf, 0.0, 0.0]])
    found = divergence(channel_shares(there), channel_shares(overflowed))
    assert found.tolist() == [math.log(2)]


@given(st.integers(0, 1000), st.floats(0.0, 8.0))
@settings(max_examples=30)
def test_divergence_is_jensen_shannon_over_channels(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    a_TD = torch.randn(5, 24, generator=generator)
    b_TD = a_TD + spread * torch.randn(5, 24, generator=generator)
    p_TD, q_TD = channel_shares(a_TD), channel_shares(b_TD)
    found = divergence(p_TD, q_TD)
    p, q = (one_TD.double().softmax(-1) + 1e-10 for one_TD in (a_TD, b_TD))
    m = (p + q) / 2
    expected = 0.5 * ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1))
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-7)
    assert torch.equal(divergence(p_TD, p_TD), torch.zeros(5, dtype=torch.float64))
    assert float(found.max()) <= math.log(2) + 1e-6


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(2, 50)), min_size=1, max_size=5))
@settings(max_examples=30)
def test_every_document_is_in_one_wave_and_counts_once(sources):
    ids = [torch.full((count, length), length) for count, length in sources]
    documents = documents_of(ids)
    in_waves = [index for wave in documents.waves for index in wave]
    assert in_waves == list(range(len(documents.blocks)))
    assert documents.count == sum(count for count, _ in sources)
    total = sum(block.sum_of_means(block.ids_NT.flatten().double()) for block in documents.blocks)
    assert total == pytest.approx(sum(count * length for count, length in sources))
