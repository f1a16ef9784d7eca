"""Stand-ins in a real engine: the tokens that experts and stand-ins give, computed without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.errors import LeanMoEError
from leanmoe_bench.engines.pair import RemoteArm
from leanmoe_pruning.cutting.layer_plan import LayerPlan
from tests.integration.runtime.one_process import FLAGS, WITH_PLUGIN, one_process, start
from tests.reference_model import Reference, stand_in_blocks
from tests.tiny_families import write_tiny

PROMPTS = [[7 + (13 * i + 5 * j) % 400 for j in range(4 + i % 5)] for i in range(6)]
TOKENS = 6
RECORDER = "tests.integration.runtime.recorder.BlockRecorder"


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Iterator[RemoteArm]:
    """One process that takes all models, one after the other."""
    yield from _process(tmp_path_factory)


@pytest.fixture
def turned(tmp_path_factory) -> Iterator[RemoteArm]:
    """A process for the devices' path alone: after engines on the host's, levels gave others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield from _process(tmp_path_factory)


def _process(tmp_path_factory) -> Iterator[RemoteArm]:
    with one_process(tmp_path_factory.mktemp("ours") / "log", plugin=True) as arm:
        yield arm


def cut(tmp_path: Path, family: str, keep: int, how: str) -> tuple[Path, Path]:
    source, out = write_tiny(tmp_path / "source", family, dtype="float32"), tmp_path / "lean"
    given = ("--replace", how, "--data", "builtin:gen:2", "--window", "64", "-o", str(out))
    assert main(["prune", str(source), "--method", "random", "--keep", str(keep), *given]) == 0
    return source, out


@pytest.mark.parametrize(
    ("family", "how"),
    [("mixtral", "lowrank:4"), ("qwen3_moe", "constant")],
)
def test_an_engine_computes_experts_and_stand_ins_exact_and_skipping(family, how, ours, tmp_path):
    source, out = cut(tmp_path, family, 3, how)
    lean, blocks = open_checkpoint(out), stand_in_blocks(source, out)
    engine = start(ours, out, {**WITH_PLUGIN, "dtype": "float32"})
    assert engine.generate(PROMPTS, TOKENS) == Reference(source, blocks).generate(PROMPTS, TOKENS)
    before = {one.layer: one for one in engine.snapshot().layers}
    engine.set_betas(dict.fromkeys(lean.skip_layers, 1.0))
    top_one = engine.generate(PROMPTS, TOKENS)
    after, report = engine.snapshot().layers, engine.handshake()
    every = tuple(range(lean.shape.n_routed_experts))
    for block in blocks.values():
        block.plan = LayerPlan(keep=every, top_k=1)
    if lean.shape.renormalize:
        assert top_one == Reference(source, blocks).generate(PROMPTS, TOKENS)
    for one in after:
        tokens = one.tokens - before[one.layer].tokens
        skipped = one.skipped - before[one.layer].skipped
        assert skipped == (lean.shape.top_k - 1) * tokens > 0
    assert report.problems == []
    described = {(one.n_routed_experts, one.top_k, one.ran) for one in report.layers}
    assert described == {(len(every), lean.shape.top_k, True)}
    stored = (out / "model.safetensors").stat().st_size
    assert report.weight_bytes == pytest.approx(stored, rel=0.02)


@torch.inference_mode()
def test_a_family_with_a_loader_of_its_own_computes_every_block(ours, tmp_path):
    source, out = cut(tmp_path, "deepseek_v3", 6, "constant")
    flags = {"dtype": "float32", "worker_extension_cls": RECORDER}
    engine = start(ours, out, {**WITH_PLUGIN, **flags})
    engine.rpc("record_blocks")
    engine.generate(PROMPTS, TOKENS)
    seen, report = engine.rpc("take_blocks"), engine.handshake()
    for layer, block in stand_in_blocks(source, out).items():
        inputs_TD, outputs_TD = map(torch.tensor, seen[str(layer)])
        torch.testing.assert_close(outputs_TD, block(inputs_TD), rtol=1e-4, atol=1e-4)
    assert report.problems == []


def test_stock_vllm_that_knows_no_constants_stops_at_them(tmp_path):
    _, out = cut(tmp_path, "mixtral", 3, "constant")
    with (
        one_process(tmp_path / "log", plugin=False) as arm,
        pytest.raises(LeanMoEError, match=r"gate|approx_value"),
    ):
        start(arm, out, FLAGS)


def test_the_devices_path_computes_them_too_without_the_kernel_of_a_card(turned, tmp_path):
    source, out = cut(tmp_path, "mixtral", 3, "lowrank:4")
    extension = "tests.integration.runtime.interpreted_experts.InterpretedExperts"
    flags = {**WITH_PLUGIN, "dtype": "float32", "worker_extension_cls": extension}
    engine, blocks = start(turned, out, flags), stand_in_blocks(source, out)
    few = PROMPTS[:3]
    assert engine.generate(few, TOKENS) == Reference(source, blocks).generate(few, TOKENS)
    engine.set_betas(dict.fromkeys(open_checkpoint(out).skip_layers, 1.0))
    for block in blocks.values():
        block.plan = LayerPlan(keep=tuple(range(8)), top_k=1)
    assert engine.generate(few, TOKENS) == Reference(source, blocks).generate(few, TOKENS)
    report = engine.handshake()
    assert report.problems == [] and {one.mode.value for one in report.layers} == {"zero"}
