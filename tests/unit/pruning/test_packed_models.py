"""``leanmoe pack`` and ``unpack``, and every other command on a packed model."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from leanmoe.cli import main
from leanmoe.errors import CheckpointError
from leanmoe.manifest import read_manifest
from leanmoe.sparse.packing import pack
from leanmoe_pruning.checkpoints.fp8 import check_scales
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.checkpoints.packed import to_tensor, to_words
from leanmoe_pruning.checkpoints.shards import ShardReader, write_tensors
from leanmoe_pruning.checkpoints.stored_type import StoredType
from leanmoe_pruning.cutting.packing import packer_of
from tests.tiny import write_tiny_mixtral
from tests.tiny_families import HIDDEN, write_tiny
from tests.unit.pruning.test_small_floats import rewrite_in_float8

EXPERT = "model.layers.0.mlp.experts.0.gate_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "model", "olmoe")


def run(*arguments: object) -> int:
    return main([str(one) for one in arguments])


def pruned(source: Path, out: Path, *how: str) -> Path:
    assert run("prune", source, "--method", "magnitude", *how, "-o", out) == 0
    return out


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    reader = ShardReader(path)
    return {name: reader.read(name) for name in reader.names}


def same(left: Path, right: Path) -> bool:
    one, other = tensors_of(left), tensors_of(right)
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


HOW = {
    "16:32": ("--pattern", "16:32"),
    "8:32": ("--pattern", "8:32"),
    "2:4": ("--pattern", "2:4"),
    "4:8": ("--pattern", "4:8"),
    "unstructured": ("--sparsity", "0.6"),
    "all but one": ("--sparsity", "0.9999999"),
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_packed_and_unpacked_it_is_the_same_model(how, source, tmp_path):
    dense = pruned(source, tmp_path / "dense", *how)
    assert run("pack", dense, "-o", tmp_path / "packed") == 0
    assert same(dense, tmp_path / "packed")
    assert run("unpack", tmp_path / "packed", "-o", tmp_path / "again") == 0
    files = [load_file(path / "model.safetensors") for path in (dense, tmp_path / "again")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert len(files[0]) == len(files[1])
    configs = [
        json.loads((path / "config.json").read_text()) for path in (dense, tmp_path / "again")
    ]
    assert configs[0] == configs[1]


def test_prune_can_write_it_packed_at_once(source, tmp_path):
    dense = pruned(source, tmp_path / "dense", "--pattern", "16:32")
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    assert same(dense, packed)
    assert json.loads((packed / "config.json").read_text())["quantization_config"] == {
        "quant_method": "leanmoe_sparse",
        "schema_version": 1,
        "keep": 16,
        "group": 32,
        "layout": "bitmask",
        "dtype": "bfloat16",
        "input_orders": True,
    }


@pytest.mark.parametrize(("pattern", "most"), [("16:32", 0.5625), ("8:32", 0.3125)])
def test_expert_bytes_are_those_of_the_formula(pattern, most, source, tmp_path):
    packed = pruned(source, tmp_path / "packed", "--pattern", pattern, "--compress")
    reader = ShardReader(packed)
    family = open_model(packed).family
    experts = [name for name in reader.names if family.parse_expert(name) is not None]
    dense = sum(reader.info(name).nbytes for name in experts)
    orders = 4 * HIDDEN * sum("down_proj" not in name for name in experts)
    assert sum(map(reader.stored_bytes, experts)) == most * dense + orders


def test_a_model_without_a_manifest_needs_a_pattern(source, tmp_path, capsys):
    dense = pruned(source, tmp_path / "dense", "--pattern", "16:32")
    (dense / "leanmoe.json").unlink()
    assert run("pack", dense, "-o", tmp_path / "packed") == 2
    assert "give --pattern" in capsys.readouterr().err
    assert run("pack", dense, "-o", tmp_path / "packed", "--pattern", "16:32") == 0


REFUSED = {
    ".weight in DENSE/model.safetensors breaks its pattern": ("pack", "--pattern", "8:32"),
    "is no pattern to pack by": ("pack", "--pattern", "32:16"),
    "'' is no pattern to pack by": ("pack", "--pattern", ""),
    "is not packed": ("unpack",),
}


@pytest.mark.parametrize(("said", "how"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_packed_is_said_and_leaves_nothing(said, how, source, tmp_path, capsys):
    command, *options = how
    dense = pruned(source, tmp_path / "dense", "--pattern", "16:32")
    assert run(command, dense, "-o", tmp_path / "out", *options) == 2
    assert said.replace("DENSE", str(dense)) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_rows_that_are_no_whole_groups_are_refused_before_any_work(tmp_path, capsys):
    source = write_tiny_mixtral(tmp_path / "source", layers=1, experts=4, hidden=64, ffn=48)
    file = "model.safetensors"
    said = f"{file} cannot be packed: its rows have 48 weights, no multiple of 32; keep the model"
    with pytest.raises(CheckpointError, match=rf"w2\.weight in .*{said}"):
        packer_of(open_model(source), "0.5")
    dense = pruned(source, tmp_path / "dense", "--sparsity", "0.5")
    for command in (("prune", source, "--method", "magnitude", "--compress"), ("pack", dense)):
        how = ("--sparsity", "0.5") if command[0] == "prune" else ()
        assert run(*command, *how, "-o", tmp_path / "out") == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_what_is_unpacked_is_told_to_load_where_it_does(source, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"layers": {"0": {"keep": [0, 1, 2, 3, 4]}}}))
    assert run("prune", source, "--plan", plan, "-o", tmp_path / "cut") == 0
    for name, model, where in (
        ("alike", source, "any engine"),
        ("differ", tmp_path / "cut", "`leanmoe serve` only"),
    ):
        packed = pruned(model, tmp_path / name, "--pattern", "16:32", "--compress")
        capsys.readouterr()
        assert run("unpack", packed, "-o", tmp_path / f"{name}-dense") == 0
        assert capsys.readouterr().out.endswith(f"loads in {where}\n")


def test_packed_twice_is_refused(source, tmp_path, capsys):
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    assert run("pack", packed, "-o", tmp_path / "out") == 2
    assert "is packed already" in capsys.readouterr().err


def test_a_stacked_family_with_biases_is_refused(tmp_path, capsys):
    source = write_tiny(tmp_path / "source", "gpt_oss")
    said = "a gpt_oss model holds all experts of a layer in one tensor, which is not packed"
    arguments = ("--method", "magnitude", "--pattern", "16:32")
    assert run("prune", source, *arguments, "--compress", "-o", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert run("prune", source, *arguments, "-o", tmp_path / "dense") == 0
    assert run("pack", tmp_path / "dense", "-o", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def damaged(packed: Path, change) -> Path:
    """The packed model with other tensors and no manifest that would tell."""
    tensors = load_file(packed / "model.safetensors")
    change(tensors)
    (packed / "model.safetensors").unlink()
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, packed / "model.safetensors"
    )
    (packed / "leanmoe.json").unlink()
    return packed


def _flip(tensors):
    tensors[f"{EXPERT}.weight_mask"][0, 0] ^= 1


def _drop_mask(tensors):
    del tensors[f"{EXPERT}.weight_mask"]


def _shorten(tensors):
    tensors[f"{EXPERT}.weight_values"] = tensors[f"{EXPERT}.weight_values"][:, :-16].clone()


def _retype(tensors):
    tensors[f"{EXPERT}.weight_mask"] = tensors[f"{EXPERT}.weight_mask"].to(torch.int32)


def _stay_dense(tensors):
    rows, width = tensors[f"{EXPERT}.weight_mask"].shape
    tensors[f"{EXPERT}.weight"] = torch.zeros(rows, 8 * width, dtype=torch.bfloat16)


def _pack_attention(tensors):
    name = "model.layers.0.self_attn.q_proj.weight"
    packed = pack(to_words(torch.zeros_like(tensors.pop(name))), 16, name)
    tensors[f"{name}_values"] = to_tensor(packed.values_RV, StoredType.BF16)
    tensors[f"{name}_mask"] = torch.from_numpy(packed.mask_RB)


def _reorder_up(tensors):
    """As valid an order as the gate's, and another one."""
    name = f"{EXPERT.replace('gate_proj', 'up_proj')}.weight_input_order"
    tensors[name] = tensors[name].flip(0)


DAMAGE = {
    r"layer 0, .*up_proj\.weight in .*model\.safetensors: the input orders of its": _reorder_up,
    r"model\.safetensors holds .* both packed and dense": _stay_dense,
    r"q_proj.weight in .*model\.safetensors is packed and no matrix of a": _pack_attention,
    r"gate_proj\.weight in .*model\.safetensors: values and bitmask disagree": _flip,
    r"gate_proj .*model\.safetensors holds .*not what belongs together": _drop_mask,
    r"weight in .*model\.safetensors: values and bitmask .* 16 weights, expected 12": _shorten,
    r"weight_mask in .*model\.safetensors is of .*not what it is packed as": _retype,
}


@pytest.mark.parametrize(("said", "change"), DAMAGE.items(), ids=DAMAGE)
def test_parts_that_disagree_are_named(said, change, source, tmp_path):
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    with pytest.raises(CheckpointError, match=said):
        damaged(packed, change)
        tensors_of(packed)
        _ = open_model(packed).reader


@pytest.mark.parametrize("part", ["weight_mask", "weight_input_order"])
def test_parts_in_several_files_are_named_with_their_files(part, source, tmp_path, capsys):
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    tensors = load_file(packed / "model.safetensors")
    names = {name: "b.safetensors" if part in name else "a.safetensors" for name in tensors}
    for file in set(names.values()):
        held = {name: one.clone() for name, one in tensors.items() if names[name] == file}
        save_file(held, packed / file)
    (packed / "model.safetensors").unlink()
    (packed / "leanmoe.json").unlink()
    (packed / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert run("unpack", packed, "-o", tmp_path / "dense") == 2
    said = capsys.readouterr().err
    assert re.search(r"parts of the packed matrix \S+_proj in a\.safetensors and others in b", said)
    assert ".safetensors, and they belong into one file; pack the model again" in said


def retold(packed: Path, **said: object) -> Path:
    """The packed model with other words about it and no manifest that would tell."""
    config = json.loads((packed / "config.json").read_text())
    told = {**config["quantization_config"], **said}
    kept = {key: value for key, value in told.items() if value is not None}
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": kept}))
    (packed / "leanmoe.json").unlink(missing_ok=True)
    return packed


def read_offline(model: Path) -> None:
    _ = open_model(model).reader


def test_a_config_of_another_packing_is_refused(source, tmp_path):
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"]["keep"] = 8
    (packed / "config.json").write_text(json.dumps(config))
    (packed / "leanmoe.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"safetensors is packed with 16 .* says experts are packed with 8"
    ):
        _ = open_model(packed).reader


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("keep", "16", "keep is '16': Input should be a valid integer"),
        ("keep", 16.0, "keep is 16.0: Input should be a valid integer"),
        ("keep", True, "keep is True: Input should be a valid integer"),
        ("schema_version", True, "schema_version is True: Input should be a valid integer"),
        ("keep", 32, "keep is 32: Input should be less than or equal to 31"),
        ("input_orders", "yes", "input_orders is 'yes': Input should be a valid boolean"),
    ],
)
def test_a_config_of_other_types_is_refused(key, value, said, source, tmp_path):
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"][key] = value
    (packed / "config.json").write_text(json.dumps(config))
    (packed / "leanmoe.json").unlink()
    with pytest.raises(CheckpointError, match=said):
        _ = open_model(packed).reader


LOST = {
    "unpack": ("-o", "OUT"),
    "pack": ("--pattern", "16:32", "-o", "OUT"),
    "prune": ("--method", "random", "--keep", "6", "-o", "OUT"),
    "score": ("--data", "builtin:gen:2", "-o", "OUT"),
    "eval": ("--data", "builtin:gen:2"),
    "curve": ("--data", "builtin:gen:2"),
    "plan": ("--tflops", "1"),
}


@pytest.mark.parametrize("command", LOST)
@pytest.mark.parametrize("model", ["source", "in_float8"])
def test_a_packed_model_whose_config_says_nothing_of_it_is_told_so(
    command, model, request, tmp_path, capsys
):
    source = request.getfixturevalue(model)
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    config = json.loads((packed / "config.json").read_text())
    del config["quantization_config"]
    (packed / "config.json").write_text(json.dumps(config))
    (packed / "leanmoe.json").unlink()
    options = [tmp_path / "out" if one == "OUT" else one for one in LOST[command]]
    assert run(command, packed, *options) == 2
    said = capsys.readouterr().err
    assert "is packed and its config.json has lost the quantization_config of leanmoe_spars" in said
    assert "take back the config.json that was written with these shards, or pack the" in said
    assert not (tmp_path / "out").exists()


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 64]}


def said_of(source: Path, folder: Path, quantization: dict) -> str:
    """What is said of a packed model with another ``quantization_config``."""
    packed = pruned(source, folder / "packed", "--pattern", "16:32", "--compress")
    config = json.loads((packed / "config.json").read_text()) | {
        "quantization_config": quantization
    }
    (packed / "config.json").write_text(json.dumps(config))
    (packed / "leanmoe.json").unlink()
    with pytest.raises(CheckpointError) as error:
        read_offline(packed)
    return str(error.value)


def test_a_packed_model_with_its_sources_own_settings_is_told_what_it_lost(source, tmp_path):
    """No advice to take them out, after which nothing would say how experts are packed."""
    assert "has lost the quantization_config of leanmoe_sparse" in said_of(source, tmp_path, FP8)


def test_a_missing_key_is_called_missing(source, tmp_path):
    said = said_of(source, tmp_path, {"quant_method": "leanmoe_sparse"})
    assert "config.json: quantization_config.keep is missing; pack the model again" in said


def test_plain_values_whose_source_is_said_to_be_float8_are_refused(source, tmp_path):
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    with pytest.raises(CheckpointError, match="dtype is 'bfloat16' and the quant_method of its in"):
        read_offline(retold(packed, inner=FP8))
    # A source may have left its experts as they were; of this one nothing is float8.
    left = {**FP8, "modules_to_not_convert": ["model.layers.0.mlp.experts"]}
    with pytest.raises(CheckpointError, match="are quantised as fp8, and no tensor of"):
        read_offline(retold(packed, inner=left))


@pytest.mark.parametrize("inner", [None, {"quant_method": "gptq"}])
def test_float8_values_whose_source_is_not_said_to_be_are_refused(inner, in_float8, tmp_path):
    packed = pruned(in_float8, tmp_path / "packed", "--pattern", "16:32", "--compress")
    read_offline(packed)
    with pytest.raises(CheckpointError, match=r"dtype is 'float8_e4m3fn' .* expected 'fp8'"):
        read_offline(retold(packed, inner=inner))


def test_float8_without_its_settings_is_not_packed(in_float8, tmp_path, capsys):
    source = shutil.copytree(in_float8, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]["quant_method"]
    (source / "config.json").write_text(json.dumps(config))
    how = ("--method", "magnitude", "--pattern", "16:32", "--compress")
    assert run("prune", source, *how, "-o", tmp_path / "out") == 2
    assert "holds float8 experts and its config.json no quant" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dense_model_said_to_be_float8_that_is_not_is_refused(source, tmp_path):
    model = shutil.copytree(source, tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"quantization_config": FP8}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="are quantised as fp8, and no tensor of"):
        read_offline(model)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=["float32", "float8"])
def test_ten_thousand_damaged_files_are_refused_or_are_some_matrix(dtype, tmp_path):
    """Whatever bytes change: one clear error, or numbers of the right shape."""
    file, generator = tmp_path / "model.safetensors", random.Random(0)
    small = torch.where(torch.rand(4, 64).argsort(1) % 2 == 0, torch.randn(4, 64), 0.0)
    write_small(file, small.to(dtype))
    whole, refused = file.read_bytes(), 0
    for _ in range(5_000):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        file.write_bytes(content)
        try:
            reader = ShardReader(tmp_path)
            check_scales(reader, (2, 32))
            found = [reader.read(name) for name in reader.names if name.endswith(".weight")]
        except CheckpointError:
            refused += 1
            continue
        assert all(one.shape == (4, 64) for one in found)
    assert refused > 2_500


def write_small(file: Path, weight: torch.Tensor) -> None:
    is_float8 = weight.dtype == torch.float8_e4m3fn
    dtype = StoredType.F8_E4M3 if is_float8 else StoredType.F32
    packed = pack(to_words(weight), 8, "w", overflow=True)
    listed = packed.overflow
    assert listed is not None
    write_tensors(
        file,
        {
            "w.weight_values": to_tensor(packed.values_RV, dtype),
            "w.weight_mask": torch.from_numpy(packed.mask_RB),
            "w.weight_overflow_rows": torch.from_numpy(listed.rows),
            "w.weight_overflow_columns": torch.from_numpy(listed.columns_N),
            "w.weight_overflow_values": to_tensor(listed.values_N, dtype),
            **({"w.weight_scale_inv": torch.ones(2, 2)} if is_float8 else {}),
        },
    )


def test_a_packed_model_is_pruned_again_and_stays_what_it_is(source, tmp_path):
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    dense = pruned(source, tmp_path / "dense", "--pattern", "16:32")
    for model, out in ((packed, "a"), (dense, "b")):
        keep = ("--method", "random", "--keep", "6", "--compress")
        assert run("prune", model, *keep, "-o", tmp_path / out) == 0
    assert same(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")


@pytest.fixture(scope="module")
def in_float8(tmp_path_factory) -> Path:
    source = write_tiny(tmp_path_factory.mktemp("float8") / "model", "deepseek_v3")
    rewrite_in_float8(source)
    return source


def bytes_of_tensors(path: Path) -> int:
    """What the files hold beside their headers."""
    found = 0
    for file in path.glob("*.safetensors"):
        raw = file.read_bytes()
        found += len(raw) - 8 - int.from_bytes(raw[:8], "little")
    return found


def printed(capsys, *arguments: object) -> dict:
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def planned_then_packed(capsys, source: Path, out: Path, pattern: str) -> tuple[dict, dict]:
    """The rows of ``out`` in plans before and after; both and the cut tell the bytes on disk."""
    rows = printed(capsys, "plan", source, "--method", "magnitude", "--tflops", "1")["rows"]
    (planned,) = (row for row in rows if row["budget"].get("pattern") == pattern)
    how = ("--method", "magnitude", "--pattern", pattern)
    made = printed(capsys, "prune", source, *how, "--compress", "-o", out)
    on_disk = bytes_of_tensors(out)
    assert planned["weight_bytes"] == made["weight_bytes"] == on_disk
    itself = printed(capsys, "plan", out, "--tflops", "1")
    assert itself["weight_bytes"] == itself["rows"][0]["serve"]["weights_bytes"] == on_disk
    return planned, itself["rows"][0]


@pytest.mark.parametrize("pattern", ["8:32", "16:32", "24:32"])
def test_every_command_tells_the_bytes_that_are_on_disk(pattern, in_float8, tmp_path, capsys):
    """Before it is made, when it is made, of what was made, dense again, and on its card."""
    out = tmp_path / "packed"
    planned_then_packed(capsys, in_float8, out, pattern)
    on_disk = bytes_of_tensors(out)
    dense = printed(capsys, "unpack", out, "-o", tmp_path / "dense")
    assert dense["source_weight_bytes"] == on_disk
    assert dense["weight_bytes"] == bytes_of_tensors(tmp_path / "dense")
    assert run("report", out) == 0
    assert f"{on_disk / 1e6:.0f} MB of weights" in (out / "README.md").read_text()


@pytest.mark.parametrize("model", ["source", "granitemoe"])
def test_packed_files_larger_than_dense_ones_are_told(model, request, tmp_path, capsys, caplog):
    stacked = model == "granitemoe"
    whole = write_tiny(tmp_path / "model", model) if stacked else request.getfixturevalue(model)
    few, dense = ("--method", "magnitude", "--sparsity", "0.03"), tmp_path / "dense"
    assert run("prune", whole, *few, "-o", dense) == 0
    capsys.readouterr()
    said = f"dense {bytes_of_tensors(dense) / 1e6:.1f} MB: too few weights are zero"
    for command in (("prune", whole, *few, "--compress"), ("pack", dense)):
        out = tmp_path / command[0]
        (note,) = printed(capsys, *command, "-o", out)["notes"]
        assert said in note and caplog.messages[-1] == note
        assert f"packed it takes {bytes_of_tensors(out) / 1e6:.1f} MB" in note
        assert bytes_of_tensors(out) > bytes_of_tensors(dense)
    assert printed(capsys, "unpack", out, "-o", tmp_path / "again")["notes"] == []
    half = ("--method", "magnitude", "--sparsity", "0.5", "--compress")
    assert printed(capsys, "prune", whole, *half, "-o", tmp_path / "half")["notes"] == []


STORED = {
    "experts cut": ("--method", "random", "--keep", "6"),
    "zeros kept": ("--method", "magnitude", "--pattern", "16:32"),
    "16:32": ("--method", "magnitude", "--pattern", "16:32", "--compress"),
    "2:4": ("--method", "magnitude", "--pattern", "2:4", "--compress"),
    "unstructured": ("--method", "magnitude", "--sparsity", "0.6", "--compress"),
}


@pytest.mark.parametrize("how", STORED.values(), ids=STORED)
@pytest.mark.parametrize("model", ["source", "in_float8", "granitemoe"])
def test_what_is_said_of_a_size_is_what_the_files_hold(model, how, request, tmp_path, capsys):
    """By the command that writes it, by a plan of it and by its card and page."""
    out, page = tmp_path / "out", tmp_path / "page.html"
    stacked = model == "granitemoe"
    whole = write_tiny(tmp_path / "model", model) if stacked else request.getfixturevalue(model)
    made = printed(capsys, "prune", whole, *how, "-o", out)
    on_disk = bytes_of_tensors(out)
    assert made["weight_bytes"] == on_disk
    assert made["source_weight_bytes"] == bytes_of_tensors(whole)
    assert made["loads_in_stock_vllm"] == ("--compress" not in how)
    planned = printed(capsys, "plan", out, "--tflops", "1")
    as_it_is = planned["rows"][0]
    assert planned["weight_bytes"] == as_it_is["weight_bytes"] == on_disk
    assert as_it_is["serve"]["weights_bytes"] == on_disk
    assert run("report", out, "--html", page) == 0
    for text in ((out / "README.md").read_text(), page.read_text()):
        assert f"{on_disk / 1e6:.0f} MB" in text or f"{on_disk / 1e3:.0f} kB" in text


@pytest.mark.parametrize(("pattern", "share"), [("8:32", 0.375), ("16:32", 0.625)])
def test_codes_take_the_share_that_the_page_tells(pattern, share, in_float8, tmp_path):
    out = pruned(in_float8, tmp_path / "packed", "--pattern", pattern, "--compress")
    reader = ShardReader(out)
    parts = {
        name: info
        for held in reader.stored.values()
        for name, info in held.items()
        if ".experts." in name and not name.endswith((".weight_scale_inv", "input_order"))
    }
    codes = sum(info.nbytes for info in parts.values())
    experts = [name for name in reader.names if ".experts." in name and name.endswith(".weight")]
    assert codes == share * sum(reader.info(name).nbytes for name in experts)


def test_the_card_of_a_packed_model_does_not_send_it_to_stock_engines(source, tmp_path):
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    page = tmp_path / "page.html"
    assert run("report", packed, "--html", page) == 0
    card = (packed / "README.md").read_text()
    assert "Its experts are stored packed (16:32): it loads in `leanmoe serve`, not in" in card
    assert "any other engine" not in card
    assert "stored and multiplied like any others" not in card
    assert "library_name: leanmoe" in card
    assert "<dt>loads in stock vLLM</dt><dd>no: leanmoe serve</dd>" in page.read_text()


def test_a_curve_goes_along_with_the_numbers_it_was_measured_of(source, tmp_path):
    dense = pruned(source, tmp_path / "dense", "--pattern", "16:32")
    assert run("curve", dense, "--data", "builtin:gen:2") == 0
    measured = read_manifest(dense).curve
    assert run("pack", dense, "-o", tmp_path / "packed") == 0
    assert run("unpack", tmp_path / "packed", "-o", tmp_path / "again") == 0
    assert [read_manifest(tmp_path / one).curve for one in ("packed", "again")] == [measured] * 2


def test_transformers_passes_over_packed_experts_as_the_pages_warn(source, tmp_path):
    """Once it stops by itself, the pages may say so."""
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    model, told = AutoModelForCausalLM.from_pretrained(packed, output_loading_info=True)
    lost = {name.rpartition(".")[2] for name in told["missing_keys"]}
    assert lost == {"gate_up_proj", "down_proj"}
    assert model.model.layers[0].mlp.experts.down_proj.any()


def test_who_writes_a_packed_model_dense_says_so(source, tmp_path, capsys):
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    keep = ("--method", "random", "--keep", "6")
    ids = tmp_path / "ids.safetensors"
    save_file({"input_ids": torch.arange(64).view(4, 16)}, ids)
    train = ("--teacher", source, "--train", "routers", "--data", ids, "--steps", "1")
    for command in (("prune", packed, *keep), ("distill", packed, *train)):
        out = tmp_path / command[0]
        notes = printed(capsys, *command, "-o", out)["notes"]
        assert any(f"`leanmoe pack {out}` stores them packed" in note for note in notes)
    assert not printed(capsys, "prune", packed, *keep, "--compress", "-o", tmp_path / "a")["notes"]
    assert "dense, zeros included" in printed(capsys, "plan", packed, "--tflops", "1")["notes"][0]


def test_packing_what_nothing_was_zeroed_of_is_refused_before_any_work(source, tmp_path, capsys):
    options = ("--method", "reap", "--keep", "6", "--data", "builtin:gen:2", "--compress")
    assert run("prune", source, *options, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "nothing says that any of" in said
    assert "reap: ranking" not in said
    assert not (tmp_path / "out").exists()


def test_a_packed_model_without_a_manifest_is_packed_again_as_it_is(source, tmp_path):
    packed = pruned(source, tmp_path / "packed", "--pattern", "8:32", "--compress")
    (packed / "leanmoe.json").unlink()
    keep = ("--method", "random", "--keep", "6")
    assert run("prune", packed, *keep, "--compress", "-o", tmp_path / "again") == 0
    assert run("prune", packed, *keep, "-o", tmp_path / "dense") == 0
    assert open_model(tmp_path / "again").packing == open_model(packed).packing
    assert same(tmp_path / "again", tmp_path / "dense")


def _drop_order(tensors):
    del tensors[f"{EXPERT}.weight_input_order"]


TOLD = {
    ".safetensors is packed as mask, values of bfloat16 and config.json says input_order": (
        _drop_order,
        {},
    ),
    "says mask, values of": (None, {"input_orders": False}),
    "of bfloat16 and config.json says mask, values of float16": (None, {"dtype": "float16"}),
    "says mask, overflow_columns": (None, {"layout": "overflow"}),
}


@pytest.mark.parametrize(("said", "how"), TOLD.items(), ids=TOLD)
def test_a_packing_other_than_the_config_tells_is_no_model(said, how, source, tmp_path, capsys):
    """Without its input order a matrix would be read as another one, without a word."""
    change, told = how
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    if change is not None:
        damaged(packed, change)
    (packed / "leanmoe.json").unlink(missing_ok=True)
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] |= told
    (packed / "config.json").write_text(json.dumps(config))
    assert run("unpack", packed, "-o", tmp_path / "dense") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "dense").exists()
