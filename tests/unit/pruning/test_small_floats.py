"""Checkpoints in float8 and MXFP4: computed as the weights they mean, cut as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import FP4_VALUES

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.opening import open_model
from tests.family_references import change_config, streamed_logits
from tests.tiny_families import write_tiny

IDS = torch.randint(0, 400, (2, 20), generator=torch.Generator().manual_seed(1))
BLOCK = (128, 64)
FP8_FAMILIES = ("deepseek_v3", "qwen3_moe")


def logits_of(path, kept=None) -> torch.Tensor:
    return streamed_logits(path, IDS, kept)


def per_block(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """One value per block, spread over a matrix."""
    rows, columns = (torch.arange(n) // size for n, size in zip(shape, BLOCK, strict=True))
    return values[rows][:, columns]


def in_float8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and what they mean."""
    counts = [-(-n // size) for n, size in zip(weight.shape, BLOCK, strict=True)]
    scale = torch.rand(counts, generator=torch.Generator().manual_seed(len(weight))) * 0.02 + 0.01
    codes = (weight / per_block(scale, weight.shape)).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, scale, codes.float() * per_block(scale, weight.shape)


def is_matrix(name: str) -> bool:
    return (
        name.endswith("_proj.weight") or "kv_a_proj" in name or (".q_" in name and "proj" in name)
    )


def rewrite_in_float8(model: Path) -> None:
    """Every matrix in codes and scales, as a vLLM wants to be told."""
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [*BLOCK]}
    change_config(model, quantization_config=said)
    coded = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        if is_matrix(name):
            coded[name], coded[f"{name}_scale_inv"], _ = in_float8(tensor)
        else:
            coded[name] = tensor.clone()
    replace_tensors(model, coded)


def replace_tensors(model: Path, tensors: dict[str, torch.Tensor]) -> None:
    # Loaded ones lie in the file.
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors")


@pytest.fixture
def pair(tmp_path, name):
    """A float8 checkpoint and the plain one that it means."""
    small, plain = tmp_path / "small", tmp_path / "plain"
    for path in (small, plain):
        write_tiny(path, name, dtype="float32")
    change_config(
        small, quantization_config={"quant_method": "fp8", "weight_block_size": list(BLOCK)}
    )
    coded, meant = {}, {}
    for one, tensor in load_file(small / "model.safetensors").items():
        if is_matrix(one):
            coded[one], coded[f"{one}_scale_inv"], meant[one] = in_float8(tensor)
        else:
            coded[one] = meant[one] = tensor.clone()
    for path, tensors in ((small, coded), (plain, meant)):
        (path / "model.safetensors").unlink()
        save_file(tensors, path / "model.safetensors")
    return small, plain


by_name = pytest.mark.parametrize("name", FP8_FAMILIES)


@by_name
def test_float8_is_computed_as_what_it_means(pair):
    small, plain = pair
    assert any(
        t.dtype == torch.float8_e4m3fn for t in load_file(small / "model.safetensors").values()
    )
    torch.testing.assert_close(logits_of(small), logits_of(plain), rtol=1e-6, atol=1e-6)


@by_name
def test_a_cut_keeps_codes_and_scales_of_the_kept_experts(pair, tmp_path):
    small, plain = pair
    out = tmp_path / "out"
    arguments = ["--method", "random", "--keep", "6", "-o", str(out)]
    assert main(["prune", str(small), *arguments]) == 0
    kept = read_manifest(out).kept
    family, old, new = (
        open_model(small).family,
        load_file(small / "model.safetensors"),
        load_file(out / "model.safetensors"),
    )
    for layer, experts in kept.items():
        for place, expert in enumerate(experts):
            for projection in ("gate_proj", "up_proj", "down_proj"):
                mine = family.expert_name(layer, place, projection)
                theirs = family.expert_name(layer, expert, projection)
                for ending in ("", "_scale_inv"):
                    got, want = new[mine + ending], old[theirs + ending]
                    assert got.dtype == want.dtype and torch.equal(got.float(), want.float())
        assert family.expert_name(layer, len(experts), "up_proj") + "_scale_inv" not in new
    assert json.loads((out / "config.json").read_text())["quantization_config"]
    torch.testing.assert_close(logits_of(out), logits_of(plain, kept), rtol=1e-5, atol=1e-4)


@by_name
def test_constants_of_condensed_layers_go_into_the_scales(pair, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text('{"layers": {"2": {"condense": {"1": 0.3, "4": 0.5}}}}')
    outs = []
    for model in pair:
        out = tmp_path / f"{model.name}-out"
        assert main(["prune", str(model), "--plan", str(plan), "-o", str(out)]) == 0
        outs.append(logits_of(out))
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_moe"])
def test_float8_experts_are_not_summed(pair, tmp_path, capsys):
    row = [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    matrix = [row, row[::-1], [1, *[0] * 7]]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"layers": {"2": {"merge": {"router": matrix, "experts": matrix}}}}))
    out = tmp_path / "out"
    assert main(["prune", str(pair[0]), "--plan", str(plan), "-o", str(out)]) == 2
    assert "layer 2" in (said := capsys.readouterr().err) and "float8" in said
    assert not out.exists()


def check_trained_routers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a cut of either: routers alone change, and to the same numbers."""
    ids, routers = tmp_path / "ids.safetensors", []
    save_file({"input_ids": IDS}, ids)
    for path in pair:
        cut, out = tmp_path / f"{path.name}-cut", tmp_path / f"{path.name}-out"
        assert main(["prune", str(path), "--method", "random", "--keep", "6", "-o", str(cut)]) == 0
        train = ["--teacher", str(path), "--train", "routers", "--steps", "3", "--batch", "2"]
        options = [*train, "--data", str(ids), "--compute", "float32", "-o", str(out)]
        assert main(["distill", str(cut), *options]) == 0
        before, after = (load_file(one / "model.safetensors") for one in (cut, out))
        gates = {open_model(cut).family.gate_name(layer) for layer in read_manifest(cut).kept}
        assert list(before) == list(after)
        # torch compares no float8 by itself.
        moved = {one for one in before if not torch.equal(before[one].float(), after[one].float())}
        assert moved == gates
        assert all(before[one].dtype == after[one].dtype for one in before)
        losses = read_manifest(out).settings
        assert losses["loss_after"]["kl"] < losses["loss_before"]["kl"]
        routers.append({name: after[name] for name in gates})
    torch.testing.assert_close(*routers, rtol=1e-4, atol=1e-5)


@by_name
def test_routers_of_float8_models_are_trained(pair, tmp_path):
    check_trained_routers(pair, tmp_path)


@pytest.mark.parametrize("name", ["qwen3_moe"])
def test_a_router_in_float8_is_not_trained(pair, tmp_path, capsys):
    small, _ = pair
    tensors = {one: t.clone() for one, t in load_file(small / "model.safetensors").items()}
    gate = "model.layers.1.mlp.gate.weight"
    tensors[gate], tensors[f"{gate}_scale_inv"], _ = in_float8(tensors[gate])
    replace_tensors(small, tensors)
    ids = tmp_path / "ids.safetensors"
    save_file({"input_ids": IDS}, ids)
    train = ["--teacher", str(small), "--train", "routers", "--data", str(ids)]
    assert main(["distill", str(small), *train, "-o", str(tmp_path / "out")]) == 2
    assert f"holds {gate} in float8, and `leanmoe distill --train routers`" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "is float8 and has no blocks with scales"),
        (torch.ones(3, 3), "expected [1, 2] from config.json"),
        (torch.ones(1, 2, dtype=torch.int32), "dtype I32"),
    ],
)
@pytest.mark.parametrize("name", ["qwen3_moe"])
def test_scales_that_are_missing_or_wrong(pair, tmp_path, capsys, change, said):
    small, _ = pair
    tensors = {one: t.clone() for one, t in load_file(small / "model.safetensors").items()}
    scale = "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv"
    del tensors[scale]
    if change is not None:
        tensors[scale] = change
    save_file(tensors, small / "model.safetensors")
    out = str(tmp_path / "out")
    assert main(["prune", str(small), "--method", "random", "--keep", "4", "-o", out]) == 2
    error = capsys.readouterr().err
    assert scale in error and said in error


@pytest.mark.parametrize("stated", ["128", [128], [0, 128], [128, "x"], [128, True]])
@pytest.mark.parametrize("name", ["qwen3_moe"])
def test_a_block_size_that_is_none(pair, tmp_path, capsys, stated):
    small, _ = pair
    change_config(small, quantization_config={"weight_block_size": stated})
    out = str(tmp_path / "out")
    assert main(["prune", str(small), "--method", "random", "--keep", "4", "-o", out]) == 2
    assert f"{small / 'config.json'} has the weight_block_size" in capsys.readouterr().err


def in_mxfp4(generator: torch.Generator, *size: int) -> tuple[torch.Tensor, ...]:
    """Random codes and scales ``[E, rows, columns / 32]``, and what they mean, transposed."""
    *rows, columns = size
    low, high = torch.randint(0, 16, (2, *rows, columns // 32, 16), generator=generator)
    scales = torch.randint(119, 124, (*rows, columns // 32), generator=generator)
    values = torch.tensor(FP4_VALUES)
    meant = torch.stack([values[low], values[high]], -1).flatten(-2)
    meant = meant * 2.0 ** (scales - 127)[..., None]
    codes = (low | high << 4).to(torch.uint8)
    return codes, scales.to(torch.uint8), meant.flatten(-2).transpose(1, 2).contiguous()


@pytest.fixture
def packed(tmp_path):
    """A gpt-oss as released, and the plain one that it means."""
    small, plain = tmp_path / "small", tmp_path / "plain"
    for path in (small, plain):
        write_tiny(path, "gpt_oss", dtype="float32")
    change_config(small, quantization_config={"quant_method": "mxfp4"})
    tensors = {k: t.clone() for k, t in load_file(small / "model.safetensors").items()}
    coded, generator = dict(tensors), torch.Generator().manual_seed(2)
    for name, tensor in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            count, columns, rows = tensor.shape
            del coded[name]
            codes, scales, tensors[name] = in_mxfp4(generator, count, rows, columns)
            coded |= {f"{name}_blocks": codes, f"{name}_scales": scales}
    for path, held in ((small, coded), (plain, tensors)):
        (path / "model.safetensors").unlink()
        save_file(held, path / "model.safetensors")
    return small, plain


def test_mxfp4_is_computed_as_what_it_means_and_cut_as_it_is(packed, tmp_path):
    small, plain = packed
    torch.testing.assert_close(logits_of(small), logits_of(plain), rtol=1e-6, atol=1e-6)
    out = tmp_path / "out"
    assert main(["prune", str(small), "--method", "random", "--keep", "5", "-o", str(out)]) == 0
    kept = read_manifest(out).kept
    name = "model.layers.1.mlp.experts.down_proj_blocks"
    new, old = load_file(out / "model.safetensors")[name], load_file(small / "model.safetensors")
    assert torch.equal(new, old[name][kept[1]])
    torch.testing.assert_close(logits_of(out), logits_of(plain, kept), rtol=1e-5, atol=1e-4)


def test_routers_beside_4_bit_experts_are_trained(packed, tmp_path):
    check_trained_routers(packed, tmp_path)


def test_layers_of_gpt_oss_cannot_differ(tmp_path, capsys):
    model, plan, out = (
        write_tiny(tmp_path / "model", "gpt_oss"),
        tmp_path / "p.json",
        tmp_path / "o",
    )
    plan.write_text('{"layers": {"1": {"keep": [0, 1, 5]}}}')
    assert main(["prune", str(model), "--plan", str(plan), "-o", str(out)]) == 2
    assert "layers of gpt_oss cannot differ" in capsys.readouterr().err and not out.exists()
    plan.write_text(json.dumps({"layers": {layer: {"keep": [0, 1, 5]} for layer in range(3)}}))
    assert main(["prune", str(model), "--plan", str(plan), "-o", str(out)]) == 0
