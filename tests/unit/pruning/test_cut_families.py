"""A random cut of every family: the right rows, the rest untouched, a config that fits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.opening import check_complete
from leanmoe_pruning.checkpoints.shards import ShardReader
from tests.tiny_families import EXPERTS, FAMILY_NAMES, write_tiny

KEEP = 6
by_name = pytest.mark.parametrize("name", FAMILY_NAMES)


def prune(model, out, keep: int = KEEP) -> int:
    arguments = ["prune", str(model), "--method", "random", "--keep", str(keep), "-o", str(out)]
    return main([*arguments, "--seed", "3"])


@pytest.fixture
def source(tmp_path, name):
    """The tiny model of the family that the test's ``name`` says."""
    return write_tiny(tmp_path / "source", name, dtype="float32")


@pytest.fixture
def cut(source, tmp_path):
    assert prune(source, tmp_path / "out") == 0
    return tmp_path / "out"


@by_name
def test_every_tensor_is_a_selection_of_the_source_s(source, cut):
    family, shape = open_checkpoint(source).family, open_checkpoint(source).shape
    kept, old, new = read_manifest(cut).kept, load_file(source / "model.safetensors"), {}
    for tensor_name, tensor in old.items():
        part, rows = family.parse_expert(tensor_name), family.expert_rows(tensor_name)
        if (family.layer_of(tensor_name) or 0) >= shape.n_layers:
            continue
        if rows is not None:
            new[tensor_name] = tensor[kept[rows]]
        elif part is None:
            new[tensor_name] = tensor
        elif part.expert in kept[part.layer]:
            place = kept[part.layer].index(part.expert)
            new[family.expert_name(part.layer, place, part.projection)] = tensor
    found = load_file(cut / "model.safetensors")
    assert set(found) == set(new)
    assert all(torch.equal(found[one], new[one]) for one in new)


@by_name
def test_the_cut_model_is_complete_and_its_config_says_so(source, cut):
    before, after = open_checkpoint(source), open_checkpoint(cut)
    assert before.shape.n_routed_experts == EXPERTS
    assert after.shape.n_routed_experts == KEEP
    assert after.shape.moe_layers == before.shape.moe_layers == tuple(read_manifest(cut).kept)
    check_complete(after, ShardReader(cut))
    changed = {key for key, value in after.config.items() if before.config.get(key) != value} | set(
        before.config
    ) - set(after.config)
    spare = {"num_nextn_predict_layers"} if before.family.name == "deepseek_v3" else set()
    assert len(changed - spare) == 1 and spare <= changed


@by_name
def test_a_model_that_lacks_any_tensor_is_refused(source, tmp_path, capsys):
    tensors = load_file(source / "model.safetensors")
    checkpoint = open_checkpoint(source)
    layer = checkpoint.shape.moe_layers[-1]
    blocks = checkpoint.family.block_sizes(checkpoint.shape, layer)
    inside = f"{checkpoint.family.block_prefix(layer)}."
    copied = [one for one in checkpoint.family.other_names(checkpoint.config) if inside in one]
    for absent in (*list(blocks)[:2], list(blocks)[-1], *copied):
        less = {key: value for key, value in tensors.items() if key != absent}
        (source / "model.safetensors").unlink()
        save_file(less, source / "model.safetensors")
        assert prune(source, tmp_path / "out") == 2
        assert absent in capsys.readouterr().err


@by_name
def test_an_unknown_part_of_a_block_is_refused(source, tmp_path, capsys):
    checkpoint = open_checkpoint(source)
    tensors = load_file(source / "model.safetensors")
    odd = f"{checkpoint.family.block_prefix(checkpoint.shape.moe_layers[0])}.extra.weight_scale_inv"
    (source / "model.safetensors").unlink()
    save_file({**tensors, odd: torch.ones(8)}, source / "model.safetensors")
    assert prune(source, tmp_path / "out") == 2
    assert odd in capsys.readouterr().err


@pytest.mark.parametrize("name", ["deepseek_v3"])
def test_prediction_layers_are_dropped_and_said_to_be(source, tmp_path, caplog):
    assert prune(source, tmp_path / "out") == 0
    assert "layers for speculative decoding are dropped" in caplog.text
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 0
    caplog.clear()
    assert prune(tmp_path / "out", tmp_path / "again") == 0
    assert not caplog.text


@pytest.mark.parametrize("name", ["deepseek_v3"])
def test_a_layer_the_config_does_not_announce_is_refused(source, tmp_path, capsys):
    config = json.loads((source / "config.json").read_text())
    config["num_nextn_predict_layers"] = 0
    (source / "config.json").write_text(json.dumps(config))
    assert prune(source, tmp_path / "out") == 2
    assert "holds tensors of layer 3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["deepseek_v3"])
def test_every_group_of_experts_keeps_as_many(source, cut):
    for kept in read_manifest(cut).kept.values():
        assert sum(expert < EXPERTS // 2 for expert in kept) == KEEP // 2


@pytest.mark.parametrize(
    ("name", "keep", "said"),
    [
        ("deepseek_v3", 7, "2 groups of experts stay equally large and need 3 experts each"),
        ("deepseek_v3", 4, "give a multiple of 2 from 6 to 8"),
        ("deepseek_v2", 2, "below the top-3 routing"),
        ("qwen2_moe", 3, "give a number from 4 to 8"),
        ("granitemoe", 9, "more than the 8 experts"),
    ],
)
def test_a_number_that_does_not_fit_the_router_is_refused(source, tmp_path, keep, said, capsys):
    assert prune(source, tmp_path / "out", keep) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
