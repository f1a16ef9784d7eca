"""Models that cannot be cut: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file

from leanmoe.cli import main
from leanmoe.manifest import Manifest, write_manifest
from leanmoe_pruning.shards import INDEX_NAME, write_tensors
from tests.golden.naee_data import CALIBRATION

SHARD = "model-00002-of-00003.safetensors"


def in_memory(model) -> dict[str, torch.Tensor]:
    """Tensors that no longer map the file, which a test may then overwrite."""
    held = load_file(model / "model.safetensors")
    return {name: tensor.clone() for name, tensor in held.items()}


@pytest.fixture
def refused(model, tmp_path, capsys):
    """Prune and expect one sentence with every given word, and no output."""

    def check(*words: str, keep: int = 4, code: int = 2, method: str = "naee") -> None:
        out = tmp_path / "out"
        arguments = ["prune", str(model), "--method", method, "--keep", str(keep)]
        assert main([*arguments, "--data", CALIBRATION, "-o", str(out)]) == code
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        for word in words:
            assert word in said
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"model"}

    return check


def test_dense_model(refused, change_config, model):
    config = json.loads((model / "config.json").read_text())
    del config["num_local_experts"]
    config["architectures"] = ["LlamaForCausalLM"]
    (model / "config.json").write_text(json.dumps(config))
    refused("dense", "LlamaForCausalLM", "MixtralForCausalLM")


def test_unknown_architecture_lists_the_known(refused, change_config):
    change_config(architectures=["GrokForCausalLM"])
    refused("GrokForCausalLM", "known: MixtralForCausalLM")


@pytest.mark.parametrize("keep", [1, 0, -3])
def test_keep_below_top_k(refused, keep):
    refused(f"--keep {keep}", "top-2", "from 2 to 8", keep=keep)


def test_keep_above_the_experts(refused):
    refused("--keep 9", "8 experts", "from 2 to 8", keep=9)


def test_missing_shard(sharded, refused):
    (sharded / SHARD).unlink()
    refused(SHARD, "is missing")


def test_truncated_shard(sharded, refused):
    path = sharded / SHARD
    path.write_bytes(path.read_bytes()[:-100])
    refused(SHARD, "truncated", "expected")


@pytest.mark.parametrize("kept_bytes", [0, 4, 100])
def test_shard_without_a_whole_header(sharded, refused, kept_bytes):
    path = sharded / SHARD
    path.write_bytes(path.read_bytes()[:kept_bytes])
    refused(SHARD, "truncated")


def test_shard_with_an_absurd_header_length(sharded, refused):
    (sharded / SHARD).write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    refused(SHARD, "no readable safetensors header")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name",
    ["model.layers.2.block_sparse_moe.experts.7.w2.weight", "lm_head.weight"],
)
@pytest.mark.parametrize("method", ["naee", "random"])
def test_nan_names_tensor_and_shard(model, refused, name, value, method):
    tensors = in_memory(model)
    tensors[name][1, 2] = value
    write_tensors(model / "model.safetensors", tensors)
    refused(name, "model.safetensors", "NaN or infinity", method=method)


def test_missing_tensor(model, refused):
    tensors = in_memory(model)
    del tensors["model.layers.1.block_sparse_moe.experts.3.w1.weight"]
    write_tensors(model / "model.safetensors", tensors)
    refused("model.layers.1.block_sparse_moe.experts.3.w1.weight", "has no tensor")


def test_config_of_another_model(change_config, refused):
    change_config(num_local_experts=6)
    refused("8 rows", "6 experts")


def test_index_that_names_a_path_outside(sharded, refused):
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"]["lm_head.weight"] = "../lm_head.safetensors"
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    refused("path outside")


def test_index_that_is_not_one(sharded, refused):
    (sharded / INDEX_NAME).write_text("[]")
    refused(INDEX_NAME, "is not a safetensors index")


def test_index_and_shard_of_different_revisions(sharded, refused):
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"]["extra"] = SHARD
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    refused("extra", SHARD)


def test_manifest_whose_hash_does_not_match(model, refused):
    write_manifest(model, Manifest(family="mixtral", method="none"))
    path = model / "leanmoe.json"
    path.write_text(path.read_text().replace('"none"', '"naee"'))
    refused("leanmoe.json", "does not match its own digest")


def test_file_that_no_longer_matches_the_manifest(model, refused):
    files = {"model.safetensors": "sha256:" + "0" * 64}
    write_manifest(model, Manifest(family="mixtral", method="none", files=files))
    refused("model.safetensors", "does not match the manifest")


def test_unreadable_dtype(model, refused):
    path = model / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"F32"', b'"F99"', 1))
    refused("F99", "convert")


def test_too_many_subsets_to_try(tmp_path, model, capsys):
    from leanmoe.errors import InputError
    from leanmoe.families import MoEShape
    from leanmoe_pruning.methods.selection import check_enumerable

    shape = MoEShape(1, (0,), 60, 4, 8, 8, True)
    with pytest.raises(InputError, match="tries every subset"):
        check_enumerable(30, shape)
    check_enumerable(59, shape)


def test_float16_and_bfloat16_checkpoints_are_cut_in_their_own_dtype(model, tmp_path):
    tensors = in_memory(model)
    for dtype in (torch.float16, torch.bfloat16):
        low = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        write_tensors(model / "model.safetensors", low)
        out = tmp_path / str(dtype)
        arguments = ["prune", str(model), "--method", "naee", "--keep", "4"]
        assert main([*arguments, "--data", CALIBRATION, "-o", str(out)]) == 0
        cut = load_file(out / "model.safetensors")
        assert {tensor.dtype for tensor in cut.values()} == {dtype}
