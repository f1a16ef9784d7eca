"""Packed experts in a real engine: the tokens of the same model stored dense."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.errors import LeanMoEError
from leanmoe.messages import LevelTable, PolicyUpdate, UnionBudget
from leanmoe_bench.engines.pair import RemoteArm
from leanmoe_pruning.checkpoints.shards import ShardReader
from tests.integration.runtime.one_process import WITH_PLUGIN, one_process, start
from tests.planned_models import mixed_plan, write_planned
from tests.tiny_families import write_tiny
from tests.unit.pruning.test_small_floats import per_block, replace_tensors, rewrite_in_float8

PROMPTS = [[7 + (13 * i + 5 * j) % 400 for j in range(3 + i % 9)] for i in range(20)]
TOKENS = 10
# float32: in bfloat16 another order of summing may tip a choice between two tokens.
FLAGS = {**WITH_PLUGIN, "dtype": "float32"}


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Iterator[RemoteArm]:
    with one_process(tmp_path_factory.mktemp("ours") / "log", plugin=True) as arm:
        yield arm


def prune(model: Path, out: Path, *how: str) -> Path:
    assert main(["prune", str(model), "--method", "magnitude", *how, "-o", str(out)]) == 0
    return out


def pack(model: Path, out: Path) -> Path:
    assert main(["pack", str(model), "-o", str(out)]) == 0
    return out


def answers(arm: RemoteArm, model: Path, **flags: str) -> tuple[list, list, object]:
    """Tokens at level 0, then at the highest level and within a budget, and the handshake."""
    engine = start(arm, model, {**FLAGS, **flags})
    layers = open_checkpoint(model).skip_layers
    exact, report = engine.generate(PROMPTS, TOKENS), engine.handshake()
    engine.set_betas(dict.fromkeys(layers, 1.0))
    top_one = engine.generate(PROMPTS, TOKENS)
    betas = dict.fromkeys(layers, 0.0)
    budget = PolicyUpdate(level=0.0, betas=betas, version=9, union=UnionBudget(experts=4))
    engine.rpc("leanmoe_set_policy", budget.model_dump_json())
    return exact, [top_one, engine.generate(PROMPTS, TOKENS)], report


def test_a_request_s_own_level_reaches_its_tokens_and_no_others(ours, tmp_path):
    source = write_tiny(tmp_path / "source", "mixtral", dtype="float32")
    packed = pack(prune(source, tmp_path / "dense", "--pattern", "16:32"), tmp_path / "packed")
    engine = start(ours, packed, FLAGS)
    none, most = (dict.fromkeys(open_checkpoint(packed).skip_layers, beta) for beta in (0.0, 1.0))
    table = LevelTable(key="level", betas={100: most})
    engine.rpc("leanmoe_set_levels", table.model_dump_json())
    engine.set_betas(most)
    top_one = engine.generate(PROMPTS, TOKENS)
    engine.set_betas(none)
    exact = engine.generate(PROMPTS, TOKENS)
    own = [i % 3 == 1 for i in range(len(PROMPTS))]
    extras = [{"level": 100} if one else None for one in own]
    mixed = ours.call("generate", prompts=PROMPTS, tokens=TOKENS, extras=extras)["ids"]
    expected = [t if one else e for t, e, one in zip(top_one, exact, own, strict=True)]
    assert mixed == expected != exact


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("mixtral", ("--pattern", "16:32")),
        ("qwen2_moe", ("--pattern", "2:4")),
        ("deepseek_v2", ("--pattern", "8:32")),
        ("olmoe", ("--sparsity", "0.5")),
        ("granitemoe", ("--pattern", "16:32")),
    ],
)
def test_packed_experts_give_the_tokens_of_the_dense_model(family, how, ours, tmp_path):
    source = write_tiny(tmp_path / "source", family, dtype="float32")
    dense = prune(source, tmp_path / "dense", *how)
    packed = pack(dense, tmp_path / "packed")
    exact, top_one, stock = answers(ours, dense)
    again, top_again, report = answers(ours, packed)
    assert again == exact
    assert top_again == top_one
    assert exact not in top_one
    saved = ShardReader(dense).weight_bytes - ShardReader(packed).weight_bytes
    # Starts of overflow lists are kept in 64 bits.
    assert stock.weight_bytes - report.weight_bytes == pytest.approx(saved, rel=0.05)


@pytest.mark.parametrize("family", ["mixtral", "granitemoe"])
def test_layers_that_differ_are_packed_too(family, ours, tmp_path):
    source = write_tiny(tmp_path / "source", family, dtype="float32")
    write_planned(source, tmp_path / "mixed", mixed_plan)
    dense = prune(tmp_path / "mixed", tmp_path / "dense", "--pattern", "16:32")
    packed = pack(dense, tmp_path / "packed")
    assert answers(ours, packed)[:2] == answers(ours, dense)[:2]


@pytest.mark.parametrize("family", ["mixtral", "granitemoe"])
def test_a_dense_checkpoint_is_packed_while_loading(family, ours, tmp_path):
    source = write_tiny(tmp_path / "source", family, dtype="float32")
    dense = prune(source, tmp_path / "dense", "--pattern", "16:32", "--no-permute")
    exact, top_one, stock = answers(ours, dense)
    again, top_again, report = answers(ours, dense, quantization="leanmoe_sparse")
    assert (again, top_again) == (exact, top_one)
    assert report.weight_bytes < stock.weight_bytes


def test_what_cannot_be_packed_while_loading_is_told_before(ours, tmp_path):
    source = write_tiny(tmp_path / "source", "mixtral", dtype="float32")
    sixteen = ("--pattern", "16:32")
    ordered = prune(source, tmp_path / "ordered", *sixteen)
    dense = prune(source, tmp_path / "dense", *sixteen, "--no-permute")
    ids = tmp_path / "ids.safetensors"
    save_file({"input_ids": torch.arange(64).view(4, 16)}, ids)
    random = ["prune", str(dense), "--method", "random", "--keep", "5", "--data", str(ids)]
    said = {ordered: r"ordered groups columns in orders .*; run `leanmoe pack`"}
    for how in ("constant", "lowrank:4"):
        out = tmp_path / how[:4]
        assert main([*random, "--replace", how, "-o", str(out)]) == 0
        said[out] = rf"{how[:4]} has stand-ins in the place of removed experts.*; serve it without"
    for model, sentence in said.items():
        with pytest.raises(LeanMoEError, match=sentence):
            start(ours, model, {**FLAGS, "quantization": "leanmoe_sparse"})


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("deepseek_v3", ("--pattern", "16:32")),
        ("qwen3_moe", ("--sparsity", "0.5", "--no-permute")),
    ],
)
def test_packed_float8_gives_the_tokens_of_what_it_means(family, how, ours, tmp_path):
    source = write_tiny(tmp_path / "source", family, dtype="float32")
    rewrite_in_float8(source)
    dense = prune(source, tmp_path / "dense", *how)
    packed = pack(dense, tmp_path / "packed")
    exact, top_one, stock = answers(ours, meant_by(dense, tmp_path / "meant"))
    again, top_again, report = answers(ours, packed)
    assert (again, top_again) == (exact, top_one)
    assert exact not in top_one
    # Experts in 8 bits of what takes 32; where AMX is missing, the rest takes 32 again.
    assert report.weight_bytes < 0.8 * stock.weight_bytes
    assert report.weight_bytes == pytest.approx(held_bytes(packed), rel=0.02)
    if "--no-permute" in how:
        while_loading = answers(ours, dense, quantization="leanmoe_sparse")
        assert while_loading[:2] == (exact, top_one)
        assert while_loading[2].weight_bytes == report.weight_bytes


def held_bytes(packed: Path) -> int:
    """What a worker holds of a float8 checkpoint: experts as stored, with one order for gate and
    up projection, other codes in float32 where nothing computes with them."""
    total = 0
    for name, tensor in load_file(packed / "model.safetensors").items():
        expert, scale = ".experts." in name, name.endswith("_scale_inv")
        twice = name.endswith("up_proj.weight_input_order")
        restored = not expert and not torch.cpu._is_amx_tile_supported()
        if (restored and scale) or twice:
            continue
        total += tensor.numel() * (4 if restored else tensor.itemsize)
    return total


def meant_by(model: Path, out: Path) -> Path:
    """A float8 checkpoint with the numbers that its codes mean, and no word of LeanMoE."""
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*leanmoe*"))
    held = load_file(out / "model.safetensors")
    plain = {}
    for name, tensor in held.items():
        scale = held.get(f"{name}_scale_inv")
        plain[name] = (
            tensor.clone() if scale is None else tensor.float() * per_block(scale, tensor.shape)
        )
    replace_tensors(out, {name: t for name, t in plain.items() if not name.endswith("_scale_inv")})
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("experts.3.down_proj.weight_scale_inv", "expert 3 of .*, w2 was not found"),
        (
            "self_attn.q_proj.weight_scale_inv",
            r"qkv_proj in .*packed: a float8 linear layer .* lacks weights or scales",
        ),
    ],
)
def test_scales_that_are_missing_stop_the_start(end, sentence, ours, tmp_path):
    source = write_tiny(tmp_path / "source", "qwen3_moe", dtype="float32")
    rewrite_in_float8(source)
    packed = pack(prune(source, tmp_path / "dense", "--pattern", "16:32"), tmp_path / "packed")
    tensors = {name: t.clone() for name, t in load_file(packed / "model.safetensors").items()}
    [name] = [name for name in tensors if ".0." in name[:15] and name.endswith(end)]
    del tensors[name]
    replace_tensors(packed, tensors)
    with pytest.raises(LeanMoEError, match=sentence):
        start(ours, packed, FLAGS)


def test_a_checkpoint_that_lacks_a_part_is_named(ours, tmp_path):
    source = write_tiny(tmp_path / "source", "mixtral", dtype="float32")
    packed = pack(prune(source, tmp_path / "dense", "--pattern", "16:32"), tmp_path / "packed")
    lacking = tmp_path / "lacking"
    shutil.copytree(packed, lacking)
    drop(lacking / "model.safetensors", "experts.3.w2.weight_mask")
    with pytest.raises(LeanMoEError, match=r"expert 3 of .*layers\.0\..* in .*lacking, w2 was not"):
        start(ours, lacking, FLAGS)


def test_a_config_that_lost_a_word_of_its_packing_is_named(ours, tmp_path):
    """Not as vLLM names tensors that it does not know."""
    source = write_tiny(tmp_path / "source", "mixtral", dtype="float32")
    packed = pack(prune(source, tmp_path / "dense", "--pattern", "16:32"), tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    del config["quantization_config"]["input_orders"]
    (packed / "config.json").write_text(json.dumps(config))
    said = r"expert 0 of .*layers\.0\..*, w1 holds weight_input_order, which config.json says nothi"
    with pytest.raises(LeanMoEError, match=said):
        start(ours, packed, FLAGS)


def drop(file: Path, end: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    del tensors[f"model.layers.0.block_sparse_moe.{end}"]
    file.unlink()
    save_file(tensors, file)
