"""Models that cannot be cut: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file

from leanmoe.cli import main
from leanmoe.manifest import Manifest, write_manifest
from leanmoe_pruning.checkpoints.shards import INDEX_NAME, write_tensors
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
    refused("[8, 32]", "expected [6, 32]")


def test_index_that_names_a_path_outside(sharded, refused):
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"]["lm_head.weight"] = "../lm_head.safetensors"
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    refused("the name of a file beside it; fetch index and shards into one folder")


def test_index_that_is_not_one(sharded, refused):
    (sharded / INDEX_NAME).write_text("[]")
    refused(INDEX_NAME, "is not a safetensors index")


@pytest.mark.parametrize("held", [[], "x", None, {"lm_head.weight": 5}])
def test_an_index_without_names_of_shards(sharded, refused, held):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": held}))
    refused("model.safetensors.index.json", "it has no weight_map of tensors and names of shards")


def test_an_index_that_names_nothing(sharded, refused):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = ""
    path.write_text(json.dumps(index))
    refused("names the shard ''", "expected the name of a file beside it")


def test_index_and_shard_of_different_revisions(sharded, refused):
    index = json.loads((sharded / INDEX_NAME).read_text())
    index["weight_map"]["extra"] = SHARD
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    refused("extra", SHARD)


def test_index_that_lists_less_than_its_shards_hold(sharded, refused):
    index = json.loads((sharded / INDEX_NAME).read_text())
    held = sorted(name for name, shard in index["weight_map"].items() if shard == SHARD)
    for name in held[:2]:
        del index["weight_map"][name]
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    refused(f"{SHARD} holds {held[0]} and 1 more and {INDEX_NAME} does not list it")


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
    with pytest.raises(InputError, match="--search greedy"):
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 1}, ["layer 2", "1 layers"]),
        ({"num_hidden_layers": 9}, ["model.layers.3."]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers is 0"]),
        ({"num_hidden_layers": "3"}, ["num_hidden_layers is '3'"]),
        ({"num_hidden_layers": 10**30}, ["num_hidden_layers"]),
        ({"num_local_experts": None}, ["num_local_experts is None"]),
        ({"num_experts_per_tok": 0}, ["num_experts_per_tok is 0"]),
        ({"num_experts_per_tok": 9}, ["num_experts_per_tok is 9, more than the 8"]),
        ({"hidden_size": 32.5}, ["hidden_size is 32.5"]),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'", "silu"]),
        ({"sliding_window": 0}, ["sliding_window is 0"]),
        ({"rope_theta": -5}, ["rope_theta is -5"]),
        ({"rms_norm_eps": "tiny"}, ["rms_norm_eps is 'tiny'"]),
        ({"num_attention_heads": 3}, ["no multiple of"]),
        ({"head_dim": 7}, ["head_dim is odd"]),
        ({"architectures": 5}, ["names architectures 5"]),
        ({"architectures": "MixtralForCausalLM"}, ["expected a list"]),
        ({"rope_scaling": 7}, ["rope_scaling is 7: Input should be an object"]),
    ],
)
def test_config_values_that_describe_no_model(change_config, refused, change, words) -> None:
    change_config(**change)
    refused(*words)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": None, "data_offsets": [0, 4]},
        {"dtype": 5, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": {}, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]},
        {"dtype": "F32", "shape": {"1": 1}, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": ["a", "b"]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]},
    ],
)
def test_a_header_entry_of_any_wrong_kind(model, refused, entry) -> None:
    write_raw(model / "model.safetensors", json.dumps({"x": entry}).encode())
    refused(str(model / "model.safetensors"))


@pytest.mark.parametrize("header", [b"[]", b"null", b"7", b'"x"', b"[" * 50_000, b"{}", b"\xff{"])
def test_a_header_that_is_no_table(model, refused, header) -> None:
    write_raw(model / "model.safetensors", header)
    refused(str(model))


def test_a_tensor_named_twice_in_a_header(model, refused) -> None:
    entry = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    write_raw(model / "model.safetensors", f'{{"x": {entry}, "x": {entry}}}'.encode())
    refused("model.safetensors", "the key 'x' is there twice")


def test_a_tensor_named_twice_in_an_index(sharded, refused) -> None:
    text = (sharded / INDEX_NAME).read_text()
    (sharded / INDEX_NAME).write_text(
        text.replace('"weight_map": {', f'"weight_map": {{"lm_head.weight": "{SHARD}",')
    )
    refused(INDEX_NAME, "the key 'lm_head.weight' is there twice")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "consolidated.00.pth"])
def test_weights_in_another_format_are_named(model, refused, name) -> None:
    (model / "model.safetensors").rename(model / name)
    refused(f"holds its weights as {name}", "reads safetensors alone")


def test_shards_without_their_index(sharded, refused) -> None:
    (sharded / INDEX_NAME).unlink()
    refused("model-00001-of-00003.safetensors and 2 more", f"no {INDEX_NAME}")


def test_a_model_without_any_weights(model, refused) -> None:
    (model / "model.safetensors").unlink()
    refused("model.safetensors is missing", "there are no weights")


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        ("0.99", ["--ratio 0.99 keeps 0 of 8 experts per layer, which is below", "give --keep, a"]),
        ("nan", ["--ratio is nan, expected the share to remove"]),
        ("1", ["--ratio is 1.0, expected the share to remove"]),
    ],
)
def test_a_ratio_is_answered_as_a_ratio(model, tmp_path, capsys, ratio, words) -> None:
    arguments = ["prune", str(model), "--method", "random", "--ratio", ratio]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words) and "--keep 0" not in said


def write_raw(path, header: bytes, body: bytes = bytes(4)) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def test_weights_that_are_no_numbers_to_multiply_with(model, refused) -> None:
    tensors = in_memory(model)
    name = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    tensors[name] = tensors[name].to(torch.int32)
    write_tensors(model / "model.safetensors", tensors)
    refused(name, "I32", "floating-point")


def test_a_scale_that_would_be_left_behind(model, refused) -> None:
    tensors = in_memory(model)
    name = "model.layers.1.block_sparse_moe.experts.3.w1.weight_scale"
    tensors[name] = torch.ones(1)
    write_tensors(model / "model.safetensors", tensors)
    refused(name, "does not know")


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "lm_head.weight", "model.layers.1.self_attn.q_proj.weight"]
)
@pytest.mark.parametrize("method", ["naee", "random"])
def test_a_tensor_outside_the_blocks_that_is_missing(model, refused, name, method) -> None:
    tensors = in_memory(model)
    del tensors[name]
    write_tensors(model / "model.safetensors", tensors)
    refused(name, "has no tensor", method=method)


def test_a_tensor_in_two_shards(sharded, capsys, tmp_path) -> None:
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    tensors = {name: tensor.clone() for name, tensor in load_file(second).items()}
    name = next(iter(load_file(first)))
    tensors[name] = load_file(first)[name] * 2
    write_tensors(second, tensors)
    out = str(tmp_path / "out")
    assert main(["prune", str(sharded), "--method", "random", "--keep", "4", "-o", out]) == 2
    assert f"{name} is in {first.name} and in {second.name}" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [1e15, 1e30])
def test_weights_whose_activations_overflow(model, refused, factor) -> None:
    tensors = in_memory(model)
    for name, tensor in tensors.items():
        if ".experts." in name:
            tensors[name] = tensor * factor
    write_tensors(model / "model.safetensors", tensors)
    refused("activations of layer 0 are not finite")


@pytest.mark.parametrize("place", ["model", ".", "model/inside"])
@pytest.mark.parametrize("command", ["prune", "score", "dump"])
def test_force_never_touches_the_model_that_is_read(
    model, tmp_path, capsys, command, place
) -> None:
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    target, free = str(tmp_path / place), str(tmp_path / "free")
    arguments = {
        "prune": ["prune", str(model), "--method", "naee", "--keep", "4", "-o", target],
        "score": ["score", str(model), "-o", target],
        "dump": [
            *("prune", str(model), "--method", "naee", "--keep", "4"),
            *("-o", free, "--dump", target),
        ],
    }[command]
    assert main([*arguments, "--data", CALIBRATION, "--force"]) == 2
    assert "one folder or lie in one another" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("dump", ["out", "out/dump", "."])
def test_dump_and_output_keep_apart(model, tmp_path, capsys, dump) -> None:
    target = tmp_path / "place"
    arguments = ["prune", str(model), "--method", "naee", "--keep", "4", "--data", CALIBRATION]
    places = ["-o", str(target / "out"), "--dump", str(target / dump), "--force"]
    assert main([*arguments, *places]) == 2
    assert "one folder or lie in one another" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["model"]
