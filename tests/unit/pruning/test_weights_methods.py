"""``leanmoe prune`` by weights: every family, unrouted experts, SparseGPT's update, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.cli import main
from leanmoe.files.digest import file_digest
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.weights.layer_weights import read_layer
from leanmoe_pruning.methods.weights.pattern import OfEvery, Unstructured
from leanmoe_pruning.methods.weights.sparsegpt import Curvature, prune_matrix
from tests.golden.moe_pruner_data import CALIBRATION, CHECKPOINT
from tests.tiny_families import FAMILY_NAMES, write_tiny


def prune(model: Path, out: Path, *options: str) -> int:
    return main(["prune", str(model), *options, "-o", str(out)])


def layers_of(path: Path) -> dict:
    checkpoint = open_model(path)
    reader = ShardReader(path)
    return {layer: read_layer(reader, checkpoint, layer) for layer in checkpoint.layers}


@pytest.fixture(scope="module")
def ids(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("ids") / "ids.safetensors"
    drawn = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": drawn}, path)
    return str(path)


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("method", ["magnitude", "moe-pruner", "sparsegpt"])
def test_every_family_is_pruned_to_the_pattern_and_runs(name, method, ids, tmp_path):
    model = write_tiny(tmp_path / "model", name)
    data = () if method == "magnitude" else ("--data", ids, "--schedule", "pruned")
    assert prune(model, tmp_path / "out", "--method", method, "--pattern", "2:4", *data) == 0
    source, pruned = layers_of(model), layers_of(tmp_path / "out")
    for layer, before in source.items():
        after = pruned[layer]
        for projection, views in after.views.items():
            for old, new in zip(before.views[projection], views, strict=True):
                kept = (new != 0).unflatten(1, (-1, 4)).sum(-1)
                assert (kept <= 2).all()
                if method != "sparsegpt":
                    assert torch.equal(new, torch.where(new != 0, old, 0.0))
                if method == "magnitude":
                    expected = OfEvery(2, 4).keep(old.abs(), old.abs())
                    assert torch.equal(new, old * expected)
    assert_outside_unchanged(model, tmp_path / "out")
    with torch.inference_mode():
        stream = DecoderStream(open_model(tmp_path / "out"))
        assert sum(1 for _ in stream.layers()) == stream.n_layers


def test_a_model_without_routed_experts_is_not_pruned_for_show(tmp_path, capsys):
    """It was copied, and a note told of zeros that there are none of."""
    model, plan = write_tiny(tmp_path / "model", "qwen2_moe"), tmp_path / "plan.json"
    bare = {"condense": {}, "shared_gate": 0.3}
    plan.write_text(json.dumps({"layers": {"0": bare, "2": bare}}))
    assert main(["prune", str(model), "--plan", str(plan), "-o", str(tmp_path / "bare")]) == 0
    assert prune(tmp_path / "bare", tmp_path / "out", "--method", "magnitude") == 2
    assert "has no routed experts left, whose weights --method mag" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_new_values_too_large_for_the_files_are_told_as_that(ids, tmp_path, capsys):
    """Not as a constant of a plan, which there is none of."""
    model = write_tiny(tmp_path / "model", "olmoe", dtype="float16")
    tensors = {name: one.clone() for name, one in load_file(model / "model.safetensors").items()}
    for name, one in tensors.items():
        if name.endswith("down_proj.weight"):
            tensors[name] = (one.float() / one.float().abs().max() * 65_000).half()
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors")
    how = ("--method", "sparsegpt", "--pattern", "8:32", "--data", ids)
    assert prune(model, tmp_path / "out", *how) == 2
    said = "would hold infinity: a new value is too large for float16; convert the model to a wider"
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def assert_outside_unchanged(model: Path, out: Path) -> None:
    """Whatever is no expert matrix is as it was."""
    checkpoint = open_model(model)
    before, after = ShardReader(model), ShardReader(out)
    changed = {n for layer in layers_of(model).values() for n in layer.tensors}
    spare = {n for n in before.names if (checkpoint.family.layer_of(n) or 0) >= 3}
    assert set(after.names) == set(before.names) - spare
    for name in set(after.names) - changed:
        assert torch.equal(before.read(name), after.read(name)), name


@pytest.fixture
def deaf(tmp_path) -> Path:
    """The golden model, its expert 3 never chosen in layer 1."""
    tensors = load_file(CHECKPOINT / "model.safetensors")
    gate = tensors["model.layers.1.block_sparse_moe.gate.weight"]
    # Of three pairs of opposite logits three are above the 0 of expert 3, whatever the token.
    for one, other in ((0, 1), (2, 4), (5, 6)):
        gate[other] = -gate[one]
    gate[3] = 0.0
    path = tmp_path / "deaf"
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_bytes((CHECKPOINT / "config.json").read_bytes())
    return path


@pytest.mark.parametrize("method", ["moe-pruner", "wanda", "sparsegpt"])
def test_an_unrouted_expert_is_judged_by_all_tokens(method, deaf, tmp_path, capsys):
    options = ("--method", method, "--sparsity", "0.5", "--data", CALIBRATION)
    assert prune(deaf, tmp_path / "out", *options, "--dump", str(tmp_path / "dump")) == 0
    notes = open_model(tmp_path / "out").manifest.settings["notes"]
    assert any("layer 1: 3)" in note and "all tokens" in note for note in notes)
    dense, pruned = layers_of(deaf)[1], layers_of(tmp_path / "out")[1]
    x_TD, hidden_TF = inputs_of_layer_1(deaf)
    for projection, seen in (("gate_proj", x_TD), ("up_proj", x_TD), ("down_proj", hidden_TF)):
        weight = dense.views[projection][3]
        score = weight.abs() * seen.norm(dim=0)
        keep = Unstructured(0.5).keep(score, weight.abs())
        assert torch.equal(pruned.views[projection][3] != 0, keep), projection
        assert keep[:, : keep.shape[1] // 2].any(), "not the first columns"


@torch.inference_mode()
def inputs_of_layer_1(model: Path) -> tuple[torch.Tensor, torch.Tensor]:
    file, tensor = CALIBRATION.split(":")
    stream = DecoderStream(open_model(model))
    hidden = stream.embed(load_file(file)[tensor])
    for layer in stream.layers():
        layer.attend_(hidden)
        x_TD = layer.block_input(hidden)
        routing = layer.route(layer.router_logits(x_TD))
        if layer.index == 1:
            assert not (routing.ids_TK == 3).any()
            return x_TD, layer.experts.hidden(3, x_TD)
        keep_TK = routing.kept(0.0)
        output = layer.experts.routed(x_TD, routing.applied(), routing.ids_TK, keep_TK)
        layer.add_(hidden, output)
    raise AssertionError


def test_an_expert_without_any_input_is_judged_by_its_weights(deaf, tmp_path):
    """Zero norms of the last layer leave no input at all; nothing is judged by its place."""
    tensors = load_file(deaf / "model.safetensors")
    tensors["model.layers.1.post_attention_layernorm.weight"].zero_()
    save_file(tensors, deaf / "model.safetensors", metadata={"format": "pt"})
    options = ("--method", "moe-pruner", "--sparsity", "0.5", "--data", CALIBRATION)
    assert prune(deaf, tmp_path / "out", *options) == 0
    for projection, views in layers_of(tmp_path / "out")[1].views.items():
        for expert, new in enumerate(views):
            old = layers_of(deaf)[1].views[projection][expert]
            assert torch.equal(new != 0, Unstructured(0.5).keep(old.abs(), old.abs()))


def published_sparsegpt(weight, inputs, sparsity=None, n_of_m=None, block=128, damping=0.01):
    """The published loop, column by column in float64, with the k lowest of a block zeroed."""
    w, h = weight.astype(np.float64).copy(), inputs.T @ inputs
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += np.diag(np.full(len(h), damping * np.diag(h).mean()))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    for start in range(0, w.shape[1], block):
        stop = min(start + block, w.shape[1])
        part = w[:, start:stop].copy()
        factor = upper[start:stop, start:stop]
        mask = np.zeros(part.shape, bool)
        if sparsity is not None:
            score = (part / np.diag(factor)) ** 2
            order = np.argsort(score, axis=None, kind="stable")
            mask.flat[order[: int(score.size * sparsity)]] = True
        errors = np.zeros_like(part)
        for i in range(part.shape[1]):
            if n_of_m is not None and i % n_of_m[1] == 0:
                group = slice(i, i + n_of_m[1])
                score = (part[:, group] / np.diag(factor)[group]) ** 2
                for row, places in enumerate(np.argsort(score, axis=1)[:, : n_of_m[0]]):
                    mask[row, i + places] = True
            kept = np.where(mask[:, i], 0.0, part[:, i])
            errors[:, i] = (part[:, i] - kept) / factor[i, i]
            part[:, i:] -= np.outer(errors[:, i], factor[i, i:])
            part[:, i] = kept
        w[:, start:stop] = part
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return w


@pytest.mark.parametrize("name", ["gpt_oss", "granitemoe", "mixtral"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_masks_without_a_pattern_fit_every_order_in_memory(name, method, ids, tmp_path):
    """gpt-oss stores the transpose, granitemoe a stack, Mixtral a matrix each."""
    model = write_tiny(tmp_path / "model", name)
    data = () if method == "magnitude" else ("--data", ids)
    assert prune(model, tmp_path / "out", "--method", method, "--sparsity", "0.5", *data) == 0
    for layer in layers_of(tmp_path / "out").values():
        assert layer.zeros() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), OfEvery(2, 4)])
def test_sparsegpt_of_a_transpose_is_that_of_its_copy(pattern):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 24, generator=generator).t()
    inputs = torch.randn(300, 96, generator=generator)
    curvature = Curvature.of(inputs.t() @ inputs, "a test")
    found = prune_matrix(weight, curvature, pattern)
    assert torch.equal(found, prune_matrix(weight.contiguous(), curvature, pattern))


@pytest.mark.parametrize("columns", [96, 200])
@pytest.mark.parametrize("pattern", [Unstructured(0.5), OfEvery(2, 4), OfEvery(4, 8)])
def test_sparsegpt_is_the_published_loop(columns, pattern):
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(24, columns, generator=generator)
    inputs = torch.randn(600, columns, generator=generator).cumsum(1) / 4
    inputs[:, 7] = 0.0
    curvature = Curvature.of(inputs.t() @ inputs, "a test")
    found = prune_matrix(weight, curvature, pattern)
    kind = (
        {"n_of_m": (pattern.dropped, pattern.group)}
        if isinstance(pattern, OfEvery)
        else {"sparsity": pattern.sparsity}
    )
    expected = torch.from_numpy(
        published_sparsegpt(weight.numpy(), inputs.double().numpy(), **kind)
    )
    assert torch.equal(found != 0, expected != 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_sparsegpt_keeps_outputs_better_than_wanda(tmp_path):
    """What the update is for: the same pattern, less error on the calibration tokens."""
    errors = {}
    for method in ("wanda", "sparsegpt"):
        options = ("--method", method, "--pattern", "2:4", "--data", CALIBRATION)
        assert prune(CHECKPOINT, tmp_path / method, *options) == 0
        errors[method] = first_block_error(tmp_path / method)
    assert errors["sparsegpt"] < 0.9 * errors["wanda"]


@torch.inference_mode()
def first_block_error(pruned: Path) -> float:
    file, tensor = CALIBRATION.split(":")
    outputs = []
    for path in (CHECKPOINT, pruned):
        stream = DecoderStream(open_model(path))
        hidden, layer = stream.embed(load_file(file)[tensor]), stream.layer(0)
        layer.attend_(hidden)
        x_TD = layer.block_input(hidden)
        routing = layer.route(layer.router_logits(x_TD))
        keep_TK = routing.kept(0.0)
        outputs.append(
            layer.experts.routed(x_TD, routing.applied(), routing.ids_TK, keep_TK).double()
        )
    return float((outputs[0] - outputs[1]).norm())


def test_weights_of_a_model_whose_layers_differ(tmp_path):
    """Experts cut first, by a plan with all its kinds of layers, weights after."""
    plan = {"layers": {"0": {"keep": [0, 2, 5]}, "1": {"condense": {"1": 0.4, "6": 0.3}}}}
    assert cut_then_prune(plan, tmp_path) == {"0": 0.5, "1": 0.5}


def test_weights_of_a_merged_layer(tmp_path):
    router = [[1.0, 1.0, 0, 0, 0, 0, 0, 0], [0, 0, 1.0, 0, 0.5, 0, 0, 0], [0] * 7 + [1.0]]
    plan = {"layers": {"0": {"merge": {"router": router, "experts": router}}}}
    assert cut_then_prune(plan, tmp_path) == {"0": 0.5, "1": 0.5}


def cut_then_prune(plan: dict, tmp_path: Path) -> dict[str, float]:
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert prune(CHECKPOINT, tmp_path / "cut", "--plan", str(tmp_path / "plan.json")) == 0
    options = ("--method", "moe-pruner", "--pattern", "2:4", "--data", CALIBRATION)
    assert prune(tmp_path / "cut", tmp_path / "out", *options, "--schedule", "pruned") == 0
    cut, out = open_model(tmp_path / "cut"), open_model(tmp_path / "out")
    assert cut.layers == out.layers
    assert out.manifest.settings["before"]["method"] == "plan"
    return out.manifest.settings["zeros"]


def test_two_runs_give_identical_bytes_and_leave_nothing_else(tmp_path):
    options = ("--method", "sparsegpt", "--sparsity", "0.5", "--data", CALIBRATION)
    for out in ("one", "two"):
        assert prune(CHECKPOINT, tmp_path / out, *options) == 0
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    for name in names:
        assert file_digest(tmp_path / "one" / name) == file_digest(tmp_path / "two" / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_an_interrupt_leaves_no_spool(tmp_path, monkeypatch):
    from leanmoe_pruning.cutting import spool

    real = spool.write_tensors

    def write(path, tensors):
        if path.name == "layer-001.safetensors":
            raise KeyboardInterrupt
        return real(path, tensors)

    monkeypatch.setattr(spool, "write_tensors", write)
    assert prune(CHECKPOINT, tmp_path / "out", "--method", "magnitude", "--pattern", "2:4") == 130
    assert list(tmp_path.iterdir()) == []


DATA = ("--data", CALIBRATION)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "wanda", "--pattern", "unstructured", "--permute", *DATA), "--permute out"),
        (("--method", "wanda", "--sparsity", "0.5", "--pattern", "2:4", *DATA), "both were given"),
        (("--method", "wanda", "--sparsity", "0.5", "--keep", "4", *DATA), "removes no expert"),
        (("--method", "wanda", "--pattern", "3:5", *DATA), "no multiple of 5"),
        (("--method", "wanda", "--sparsity", "0.01", *DATA), "zeroes none"),
        (("--method", "wanda", "--sparsity", "0.5"), "give --scores or --data"),
        (("--method", "magnitude", "--sparsity", "0.5", "--schedule", "pruned"), "drop --schedule"),
        (("--method", "magnitude", "--sparsity", "0.5", *DATA), "drop --data"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(options, said, tmp_path, capsys):
    assert prune(CHECKPOINT, tmp_path / "out", *options) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert said in message[-1] and len(message) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [("--method", "sparsegpt"), ("--method", "wanda", "--schedule", "pruned")],
)
def test_what_needs_the_model_takes_no_bundle(options, tmp_path, capsys):
    scores = str(tmp_path / "scores")
    assert main(["score", str(CHECKPOINT), "--data", CALIBRATION, "-o", scores]) == 0
    capsys.readouterr()
    options = (*options, "--sparsity", "0.5", "--scores", scores)
    assert prune(CHECKPOINT, tmp_path / "out", *options) == 2
    assert "give --data SPEC" in capsys.readouterr().err
