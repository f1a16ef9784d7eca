"""Packed experts of a family that stacks them: one by one in files, a stack to every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leanmoe_pruning.checkpoints.opening import open_model
from tests.tiny_families import write_tiny
from tests.unit.pruning.test_packed_models import (
    HOW,
    damaged,
    planned_then_packed,
    pruned,
    run,
)

BLOCK = "model.layers.0.block_sparse_moe"
EXPERTS = f"{BLOCK}.experts"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "model", "granitemoe")


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_packed_one_by_one_and_unpacked_it_is_the_same_stack(how, source, tmp_path):
    dense = pruned(source, tmp_path / "dense", *how)
    assert run("pack", dense, "-o", tmp_path / "packed") == 0
    held = set(tensors_of(tmp_path / "packed"))
    assert {f"{EXPERTS}.7.{one}.weight_values" for one in PROJECTIONS} < held
    assert not any("_linear" in name or name.endswith("input_order") for name in held)
    assert run("unpack", tmp_path / "packed", "-o", tmp_path / "again") == 0
    assert equal(tensors_of(dense), tensors_of(tmp_path / "again"))
    configs = [
        json.loads((path / "config.json").read_text()) for path in (dense, tmp_path / "again")
    ]
    assert configs[0] == configs[1]


def test_a_row_of_a_stack_is_gate_over_up(source, tmp_path):
    dense = pruned(source, tmp_path / "dense", "--pattern", "16:32")
    assert run("pack", dense, "-o", tmp_path / "packed") == 0
    fused, held = tensors_of(dense)[f"{BLOCK}.input_linear.weight"], tensors_of(tmp_path / "packed")
    for rows, projection in zip(fused[3].chunk(2), PROJECTIONS[:2], strict=True):
        values = held[f"{EXPERTS}.3.{projection}.weight_values"]
        assert torch.equal(values.flatten(), rows[rows != 0])


def test_a_packed_stack_is_scored_cut_and_packed_again(source, tmp_path):
    """What reads weights reads the stack, wherever it takes them from."""
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    dense = pruned(source, tmp_path / "dense", "--pattern", "16:32")
    keep = ("--method", "reap", "--keep", "5", "--data", "builtin:gen:2", "--compress")
    for number, how in enumerate((keep, ("--method", "magnitude", "--pattern", "8:32"))):
        outs = tmp_path / f"{number}-of-packed", tmp_path / f"{number}-of-dense"
        for model, out in zip((packed, dense), outs, strict=True):
            assert run("prune", model, *how, "-o", out) == 0
        assert equal(*map(tensors_of, outs))


@pytest.mark.parametrize("how", [("--local",), (), ("--train", "routers")], ids=" ".join)
def test_a_packed_stack_is_distilled_as_the_dense_one(how, source, tmp_path):
    train = ("--teacher", source, *how, "--data", "builtin:gen:1", "--window", "64", "--steps", "1")
    for name, packing in (("packed", ("--compress",)), ("dense", ())):
        pruned(source, tmp_path / name, "--pattern", "16:32", *packing)
        out = tmp_path / f"trained-{name}"
        assert run("distill", tmp_path / name, *train, "--batch", "1", "-o", out) == 0
    assert equal(*(tensors_of(tmp_path / f"trained-{one}") for one in ("packed", "dense")))


@pytest.mark.parametrize("pattern", ["8:32", "16:32", "24:32"])
def test_every_command_tells_the_bytes_that_are_on_disk(pattern, source, tmp_path, capsys):
    out = tmp_path / "packed"
    planned, itself = planned_then_packed(capsys, source, out, pattern)
    assert planned["loads_in"] == itself["loads_in"] == "leanmoe serve"
    reader, share = open_model(out).reader, int(pattern.split(":")[0]) / 32 + 1 / 16
    stacks = [name for name in reader.names if name.endswith("_linear.weight")]
    assert len(stacks) == 6
    assert all(reader.stored_bytes(one) == share * reader.info(one).nbytes for one in stacks)
    assert run("report", out) == 0
    card = (out / "README.md").read_text()
    assert f"Its experts are stored packed ({pattern})" in card


def _lose(tensors):
    for end in ("values", "mask"):
        del tensors[f"{EXPERTS}.3.up_proj.weight_{end}"]


def _shorten(tensors):
    for end in ("values", "mask"):
        name = f"{EXPERTS}.3.up_proj.weight_{end}"
        tensors[name] = tensors[name][:32].clone()


def _add(tensors):
    for name in [name for name in tensors if name.startswith(f"{EXPERTS}.7.")]:
        tensors[name.replace(".7.", ".8.")] = tensors[name].clone()


def _flip(tensors):
    tensors[f"{EXPERTS}.5.down_proj.weight_mask"][0, 0] ^= 1


DAMAGE = {
    "model.safetensors holds 15 matrices and not up_proj of expert 3": _lose,
    "are packed in different sizes or ways and belong into one tensor": _shorten,
    "has shape [9, 128, 128], expected [8, 128, 128]": _add,
    # A stack is read out of many matrices: which, and of which file.
    "5.down_proj.weight in PACKED/model.safetensors: values and bitmask disagree": _flip,
}


@pytest.mark.parametrize(("said", "change"), DAMAGE.items(), ids=DAMAGE)
def test_experts_that_make_no_stack_are_named(said, change, source, tmp_path, capsys):
    packed = pruned(source, tmp_path / "packed", "--pattern", "16:32", "--compress")
    damaged(packed, change)
    assert run("unpack", packed, "-o", tmp_path / "out") == 2
    assert said.replace("PACKED", str(packed)) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
