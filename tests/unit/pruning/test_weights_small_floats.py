"""Pruning by weights where the files hold float8 or 4-bit blocks."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.cli import main
from tests.family_references import change_config
from tests.tiny_families import write_tiny
from tests.unit.pruning.test_small_floats import in_float8, is_matrix

BLOCK = [128, 64]


@pytest.fixture
def pair(tmp_path):
    """A float8 checkpoint and the plain one that it means."""
    small, plain = tmp_path / "small", tmp_path / "plain"
    for path in (small, plain):
        write_tiny(path, "qwen3_moe", dtype="float32")
    settings = {"quant_method": "fp8", "weight_block_size": BLOCK}
    change_config(small, quantization_config=settings)
    coded, meant = {}, {}
    for name, tensor in load_file(small / "model.safetensors").items():
        if is_matrix(name):
            coded[name], coded[f"{name}_scale_inv"], meant[name] = in_float8(tensor)
        else:
            coded[name] = meant[name] = tensor.clone()
    for path, tensors in ((small, coded), (plain, meant)):
        (path / "model.safetensors").unlink()
        save_file(tensors, path / "model.safetensors")
    return small, plain


@pytest.fixture
def ids(tmp_path) -> str:
    path = tmp_path / "ids.safetensors"
    drawn = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": drawn}, path)
    return str(path)


@pytest.mark.parametrize("schedule", ["unpruned", "pruned"])
def test_float8_loses_the_weights_that_its_meaning_loses(schedule, pair, ids, tmp_path):
    """Scales differ by block, so what a code means decides, not the code."""
    found = []
    for path in pair:
        out = tmp_path / f"{path.name}-out"
        options = ["--method", "moe-pruner", "--pattern", "2:4", "--schedule", schedule]
        options += ["--data", ids, "--compute", "float32"]
        assert main(["prune", str(path), *options, "-o", str(out)]) == 0
        found.append(load_file(out / "model.safetensors"))
    small, plain = found
    source = load_file(pair[0] / "model.safetensors")
    for name, meant in plain.items():
        if ".experts." not in name:
            continue
        assert small[name].dtype == torch.float8_e4m3fn
        assert torch.equal(small[name] != 0, meant != 0), name
        assert torch.equal(small[name].float(), source[name].float() * (meant != 0)), name
        assert torch.equal(small[f"{name}_scale_inv"], source[f"{name}_scale_inv"])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["prune", "MODEL", "--method", "sparsegpt", "--pattern", "2:4"], "--method sparsegpt"),
        (["distill", "MODEL", "--steps", "1"], "`leanmoe distill --train experts`"),
    ],
)
def test_float8_takes_no_new_values(arguments, what, pair, ids, tmp_path, capsys):
    given = [str(pair[0]) if one == "MODEL" else one for one in arguments]
    assert main([*given, "--data", ids, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "experts.0.gate_proj.weight in float8, and " + what in said
    assert not (tmp_path / "out").exists()


def test_what_stays_as_it_is_may_be_float8(pair, ids, tmp_path):
    """Attention in float8 beside plain experts, which alone get new values."""
    small, plain = (load_file(path / "model.safetensors") for path in pair)
    mixed = {name: t.clone() for name, t in plain.items() if ".experts." in name}
    mixed |= {name: t.clone() for name, t in small.items() if ".experts." not in name}
    (pair[0] / "model.safetensors").unlink()
    save_file(mixed, pair[0] / "model.safetensors")
    given = ["--data", ids, "-o", str(tmp_path / "out")]
    sparse = ["--method", "sparsegpt", "--pattern", "2:4"]
    assert main(["prune", str(pair[0]), *sparse, *given]) == 0
    assert main(["distill", str(pair[0]), "--steps", "1", *given, "--force"]) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, old in mixed.items():
        assert torch.equal(found[name].float(), old.float()) == (".experts." not in name), name


def test_weights_in_4_bit_blocks_are_refused(tmp_path, capsys):
    model = write_tiny(tmp_path / "model", "gpt_oss")
    change_config(model, quantization_config={"quant_method": "mxfp4"})
    options = ["--method", "magnitude", "--pattern", "2:4"]
    assert main(["prune", str(model), *options, "-o", str(tmp_path / "out")]) == 2
    assert "blocks of 4-bit numbers" in capsys.readouterr().err


def test_float8_is_packed_with_its_scales_beside_it(pair, tmp_path):
    dense, packed, again = tmp_path / "dense", tmp_path / "packed", tmp_path / "again"
    how = ["--method", "magnitude", "--pattern", "16:32"]
    assert main(["prune", str(pair[0]), *how, "-o", str(dense)]) == 0
    assert main(["pack", str(dense), "-o", str(packed)]) == 0
    said = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert said["dtype"] == "float8_e4m3fn"
    assert said["inner"] == {"quant_method": "fp8", "weight_block_size": BLOCK}
    assert main(["unpack", str(packed), "-o", str(again)]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (dense, again))
    assert set(before) == set(after)
    for name, tensor in before.items():
        # torch compares no float8 by itself.
        assert torch.equal(tensor.float(), after[name].float()), name
    configs = [json.loads((path / "config.json").read_text()) for path in (dense, again)]
    assert configs[0] == configs[1]
