"""Layers that differ, in a real engine: the tokens the plan should give, computed without it."""

from __future__ import annotations

import pytest

from leanmoe.checkpoint import open_checkpoint
from leanmoe.manifest import read_manifest
from leanmoe_pruning.plan import PrunePlan
from tests.integration.runtime.one_process import running
from tests.planned_models import write_planned
from tests.reference_model import Reference
from tests.tiny_families import write_tiny

PROMPTS = [[7 + (13 * i + 5 * j) % 400 for j in range(4 + i % 5)] for i in range(8)]
TOKENS = 10
# transformers has no class for the first DeepSeek, and PhiMoE's router can neither be condensed
# nor mapped.
FAMILIES = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe"),
    *("deepseek_v2", "deepseek_v3"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_planned_checkpoint_computes_its_plan(family, tmp_path):
    source, out = write_tiny(tmp_path / "source", family, dtype="float32"), tmp_path / "lean"
    plan = write_planned(source, out)
    lean = open_checkpoint(out)
    recorded = PrunePlan.model_validate(read_manifest(out).settings["plan"])
    assert recorded == plan
    with running(out, tmp_path / "log", plugin=True, dtype="float32") as engine:
        found = engine.generate(PROMPTS, TOKENS)
        report = engine.handshake()
        engine.set_betas(dict.fromkeys(lean.skip_layers, 1.0))
        top_one = engine.generate(PROMPTS, TOKENS)
        counts = {one.layer: one for one in engine.snapshot().layers}
    assert found == Reference(source, plan).generate(PROMPTS, TOKENS)
    assert top_one != found
    assert report.problems == [] and sorted(counts) == list(lean.skip_layers)
    for layer in report.layers:
        own = lean.layers[layer.layer]
        assert (layer.n_routed_experts, layer.top_k) == (own.n_experts, own.top_k)
        assert layer.condensed == own.condensed and layer.ran
    # Tied embeddings and padded vocabularies apart, what is loaded is what is stored.
    stored = (out / "model.safetensors").stat().st_size
    assert report.weight_bytes == pytest.approx(stored, rel=0.02)
