"""Layers that differ, in a real engine: the tokens the plan should give, computed without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe.cli import main
from leanmoe.errors import LeanMoEError
from leanmoe.manifest import read_manifest
from leanmoe.messages import HandshakeReport
from leanmoe_bench.engines.pair import RemoteArm
from leanmoe_pruning.cutting.layer_plan import PrunePlan
from tests.integration.runtime.one_process import FLAGS, WITH_PLUGIN, one_process, start
from tests.planned_models import condensed_plan, mixed_plan, write_planned
from tests.reference_model import Reference, planned_blocks
from tests.tiny_families import write_tiny

PROMPTS = [[7 + (13 * i + 5 * j) % 400 for j in range(4 + i % 5)] for i in range(8)]
TOKENS = 10
RECORDER = "tests.integration.runtime.recorder.BlockRecorder"
FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe")
# transformers has no class for the first, and computes latent attention in another precision
# than vLLM does on a CPU; so their blocks are compared one by one.
BLOCK_BY_BLOCK = ("deepseek", "deepseek_v2", "deepseek_v3")


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Iterator[RemoteArm]:
    """One process that takes all models, one after the other: imports take most of a start."""
    with one_process(tmp_path_factory.mktemp("ours") / "log", plugin=True) as arm:
        yield arm


@pytest.mark.parametrize(
    ("family", "plan_of"),
    [*((family, mixed_plan) for family in FAMILIES), ("qwen2_moe", condensed_plan)],
)
def test_a_planned_checkpoint_computes_its_plan(family, plan_of, ours, tmp_path):
    source, out = write_tiny(tmp_path / "source", family, dtype="float32"), tmp_path / "lean"
    plan = write_planned(source, out, plan_of)
    lean = open_checkpoint(out)
    recorded = PrunePlan.model_validate(read_manifest(out).settings["plan"])
    assert recorded == plan
    engine = start(ours, out, {**WITH_PLUGIN, "dtype": "float32"})
    found = engine.generate(PROMPTS, TOKENS)
    report = engine.handshake()
    engine.set_betas(dict.fromkeys(lean.skip_layers, 1.0) or {0: 1.0})
    top_one = engine.generate(PROMPTS, TOKENS)
    counts = {one.layer: one for one in engine.snapshot().layers}
    assert found == Reference(source, planned_blocks(source, plan)).generate(PROMPTS, TOKENS)
    assert (top_one != found) == bool(lean.skip_layers)
    assert sorted(counts) == list(lean.skip_layers)
    check_report(report, lean, out)


@pytest.mark.parametrize(
    ("family", "plan_of"),
    [(family, plan_of) for family in BLOCK_BY_BLOCK for plan_of in (mixed_plan, condensed_plan)],
)
@torch.inference_mode()
def test_every_block_of_a_planned_checkpoint_computes_its_plan(family, plan_of, ours, tmp_path):
    source, out = write_tiny(tmp_path / "source", family, dtype="float32"), tmp_path / "lean"
    plan = write_planned(source, out, plan_of)
    lean, flags = open_checkpoint(out), {"dtype": "float32", "worker_extension_cls": RECORDER}
    engine = start(ours, out, {**WITH_PLUGIN, **flags})
    assert engine.rpc("record_blocks") == list(plan.layers)
    engine.generate(PROMPTS, TOKENS)
    seen, report = engine.rpc("take_blocks"), engine.handshake()
    for layer, block in planned_blocks(source, plan).items():
        inputs_TD, outputs_TD = map(torch.tensor, seen[str(layer)])
        assert len(inputs_TD) >= sum(map(len, PROMPTS))
        torch.testing.assert_close(outputs_TD, block(inputs_TD), rtol=1e-4, atol=1e-4)
    check_report(report, lean, out)


def check_report(report: HandshakeReport, lean: Checkpoint, out: Path) -> None:
    """Every layer as the layout says; in memory what is on disk."""
    assert report.problems == []
    for layer in report.layers:
        own = lean.layers[layer.layer]
        assert (layer.n_routed_experts, layer.top_k) == (own.n_experts, own.top_k)
        assert layer.condensed == own.condensed and layer.ran
    stored = (out / "model.safetensors").stat().st_size
    assert report.weight_bytes == pytest.approx(stored, rel=0.02)


def test_stock_vllm_stops_at_a_layout_whose_shapes_are_its_own(tmp_path):
    source, out = write_tiny(tmp_path / "source", "mixtral"), tmp_path / "lean"
    plan = tmp_path / "plan.json"
    plan.write_text('{"layers": {"1": {"keep": [0, 1, 2, 3, 4, 5, 6, 7], "top_k": 1}}}')
    assert main(["prune", str(source), "--plan", str(plan), "-o", str(out)]) == 0
    with (
        one_process(tmp_path / "log", plugin=False) as arm,
        pytest.raises(LeanMoEError, match=r"layers\.1\..*gate\.layout|layout"),
    ):
        start(arm, out, FLAGS)
