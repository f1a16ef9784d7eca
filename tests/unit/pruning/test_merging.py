"""M-SMoE: who is merged into whom, by how much, and in which order of neurons."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.forward.experts import Experts
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.methods.merging.alignment import align_, matching
from leanmoe_pruning.methods.merging.grouping import Grouping, Usage, group, share_out
from leanmoe_pruning.methods.weights.layer_weights import read_layer
from leanmoe_pruning.scores.gram import packed_size
from tests.golden.naee_data import CALIBRATION, CHECKPOINT
from tests.layer_scores import bare_scores
from tests.tiny_families import write_tiny

# Experts 0 and 2 are used most; 1 is scored like 0, 3 like 2.
LOGITS = torch.tensor(
    [[4.0, 3.0, -1.0, -2.0], [5.0, 2.0, 3.0, 1.0], [-1.0, -2.0, 4.0, 3.5], [3.0, 1.0, 2.0, 0.0]]
)


def usage() -> Usage:
    scores = bare_scores(RouterRule(2, True), LOGITS, torch.zeros(4, packed_size(4)))
    return Usage.of(scores)


def test_the_most_used_lead_and_the_likest_follow():
    assert usage().counts == [3, 1, 3, 1]
    found = group(usage(), 2)
    assert found.dominant == (0, 2) and found.members == ((0, 1), (2, 3))
    assert found.weights(usage().counts) == [[0.75, 0.25, 0.0, 0.0], [0.0, 0.0, 0.75, 0.25]]
    assert found.indicators(4) == [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    assert found.dominants(4) == [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]


def test_likeness_is_the_cosine_of_the_logits():
    found = usage().similarity_EE
    expected = torch.nn.functional.cosine_similarity(LOGITS[:, 0], LOGITS[:, 1], dim=0)
    assert float(found[0, 1]) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(found.diagonal(), torch.ones(4, dtype=torch.float64))


def test_a_group_nobody_used_is_its_dominant_expert_alone():
    assert Grouping(0, (1,), ((1, 2),)).weights([5, 0, 0]) == [[0.0, 1.0, 0.0]]


def test_groups_are_shared_out_by_usage_within_layers():
    shape = open_checkpoint(CHECKPOINT).shape
    sharp = Usage(0, [90, 90, 5, 5, 5, 5, 0, 0], torch.eye(8))
    flat = Usage(1, [25] * 8, torch.eye(8))
    assert share_out([sharp, flat], 8, shape) == [2, 6]
    assert share_out([sharp, flat], 10, shape) == [2, 8]
    assert share_out([sharp, flat], 12, shape) == [4, 8]


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m-smoe")
    arguments = ["prune", str(CHECKPOINT), "--method", "m-smoe", "--keep", "3"]
    arguments += ["--data", CALIBRATION, "-o", str(folder / "out"), "--dump", str(folder / "dump")]
    assert main(arguments) == 0
    return folder


def test_weights_are_averaged_by_usage_and_probabilities_summed(merged):
    found = load_file(merged / "dump" / "results.safetensors")
    chief_LE, usage_LE = found["m-smoe_r3.group"], found["m-smoe_r3.usage"]
    source, lean = ShardReader(CHECKPOINT), ShardReader(merged / "out")
    for layer in range(3):
        prefix = f"model.layers.{layer}.block_sparse_moe"
        transfer = lean.read(f"{prefix}.gate.transfer")
        assert torch.equal(source.read(f"{prefix}.gate.weight"), lean.read(f"{prefix}.gate.weight"))
        for place, chief in enumerate(chief_LE[layer].unique().tolist()):
            members = (chief_LE[layer] == chief).nonzero().flatten().tolist()
            assert transfer[place].nonzero().flatten().tolist() == members
            shares = usage_LE[layer][members] / usage_LE[layer][members].sum()
            for name in ("w1", "w2", "w3"):
                parts = [source.read(f"{prefix}.experts.{e}.{name}.weight") for e in members]
                mean = sum(share * part for share, part in zip(shares, parts, strict=True))
                mine = lean.read(f"{prefix}.experts.{place}.{name}.weight")
                torch.testing.assert_close(mine, mean, rtol=1e-5, atol=1e-7)


def shuffled(weights, expert: int, order) -> None:
    """Expert ``expert`` is expert 0 with its neurons in another order."""
    for projection in ("gate_proj", "up_proj"):
        weights.views[projection][expert].copy_(weights.views[projection][0][order])
    weights.views["down_proj"][expert].copy_(weights.views["down_proj"][0][:, order])


@pytest.mark.parametrize("family", ["mixtral", "granitemoe"])
def test_neurons_in_another_order_are_found_again(family, tmp_path):
    checkpoint = open_checkpoint(write_tiny(tmp_path / "model", family, dtype="float32"))
    weights = read_layer(ShardReader(checkpoint.path), checkpoint, 1)
    width = weights.views["gate_proj"][0].shape[0]
    order = torch.randperm(width, generator=torch.Generator().manual_seed(3))
    shuffled(weights, 5, order)
    assert torch.equal(order[matching(weights, 0, 5)], torch.arange(width))
    align_(weights, Grouping(1, (0,), ((0, 5),)))
    for held in weights.views.values():
        assert torch.equal(held[0], held[5])


def test_a_reordered_expert_computes_the_same(tmp_path):
    checkpoint = open_checkpoint(write_tiny(tmp_path / "model", "mixtral", dtype="float32"))
    weights = read_layer(ShardReader(checkpoint.path), checkpoint, 0)
    x = torch.randn(6, checkpoint.shape.hidden_size)
    before = Experts(**weights.views).output(3, x)
    align_(weights, Grouping(0, (2,), ((2, 3),)))
    torch.testing.assert_close(Experts(**weights.views).output(3, x), before, rtol=1e-4, atol=1e-4)


def test_aligned_experts_are_merged_through_the_command_line(model, tmp_path):
    """Every expert the same but for the order of its neurons: merged, nothing is lost."""
    weights = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for layer in range(3):
        block = f"model.layers.{layer}.block_sparse_moe.experts"
        for expert in range(1, 8):
            order = torch.randperm(len(weights[f"{block}.0.w1.weight"]), generator=generator)
            for name in ("w1", "w3"):
                weights[f"{block}.{expert}.{name}.weight"] = weights[f"{block}.0.{name}.weight"][
                    order
                ]
            down = weights[f"{block}.0.w2.weight"][:, order]
            weights[f"{block}.{expert}.w2.weight"] = down.contiguous()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    arguments = ["prune", str(model), "--method", "m-smoe", "--keep", "2", "--data", CALIBRATION]
    for name, more in (("plain", []), ("aligned", ["--align"])):
        assert main([*arguments, *more, "-o", str(tmp_path / name)]) == 0
    assert not [path for path in tmp_path.iterdir() if "spool" in path.name]
    rows = weights["model.layers.0.block_sparse_moe.experts.0.w1.weight"].sort(0).values

    def first(name: str) -> torch.Tensor:
        held = ShardReader(tmp_path / name)
        return held.read("model.layers.0.block_sparse_moe.experts.0.w1.weight").sort(0).values

    torch.testing.assert_close(first("aligned"), rows, rtol=1e-5, atol=1e-6)
    assert float((first("plain") - rows).abs().max()) > 1e-2


def test_the_router_may_follow_the_dominant_expert_alone(model, tmp_path):
    plan = tmp_path / "plan.json"
    arguments = ["prune", str(model), "--method", "m-smoe", "--keep", "4", "--data", CALIBRATION]
    more = ["--merge-router", "dominant", "--plan-only", "-o", str(plan)]
    assert main([*arguments, *more]) == 0
    for layer in json.loads(plan.read_text())["layers"].values():
        assert all(sorted(row) == [0.0] * 7 + [1.0] for row in layer["merge"]["router"])


def test_what_cannot_be_merged(tmp_path, model, capsys):
    other = write_tiny(tmp_path / "other", "deepseek_v3")
    for source, more, words in (
        (other, [], "is no plain softmax"),
        (model, ["--align", "--plan-only"], "which no plan can say"),
    ):
        arguments = ["prune", str(source), "--method", "m-smoe", "--keep", "6", *more]
        assert main([*arguments, "--data", CALIBRATION, "-o", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err
