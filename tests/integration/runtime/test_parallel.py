"""Two workers of one model, each with half of every expert: as one, counted once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe.cli import main
from leanmoe.messages import HandshakeReport, SkipSnapshot
from leanmoe_pruning.cutting.layer_plan import LayerPlan, PrunePlan
from tests.integration.runtime.one_process import running
from tests.planned_models import mixed_plan, write_planned
from tests.tiny_families import write_tiny
from tests.unit.pruning.test_small_floats import rewrite_in_float8

PROMPTS = [[7 + (13 * i + 5 * j) % 400 for j in range(4 + i % 5)] for i in range(8)]


@pytest.fixture(params=["dense", "packed"])
def model(request, tmp_path) -> Path:
    """Layers that differ; packed ones of float8, in blocks that two workers share."""
    family, out = "mixtral" if request.param == "dense" else "qwen3_moe", tmp_path / "lean"
    source = write_tiny(tmp_path / "source", family, dtype="float32")
    if request.param == "dense":
        write_planned(source, out)
        return out
    rewrite_in_float8(source)
    write_planned(source, tmp_path / "mixed", unmerged_plan)
    pruned = ["prune", str(tmp_path / "mixed"), "--method", "magnitude", "--pattern", "16:32"]
    assert main([*pruned, "--compress", "-o", str(out)]) == 0
    return out


def unmerged_plan(checkpoint: Checkpoint) -> PrunePlan:
    """Float8 experts are not summed: the last layer is cut to top-1."""
    last = LayerPlan(keep=(0, 1, 4, 5), top_k=1)
    return PrunePlan(
        layers={**mixed_plan(checkpoint).layers, checkpoint.shape.moe_layers[-1]: last}
    )


def test_tensor_parallel_workers_agree_with_one(start_engine, model, tmp_path):
    """vLLM binds each worker to a core of its own: two cores, as the README asks for."""
    out = model
    betas = dict.fromkeys(open_checkpoint(out).skip_layers, 0.5)
    with running(out, tmp_path / "log", dtype="float32") as alone:
        alone.set_betas(betas)
        expected, counts = alone.generate(PROMPTS, 12), alone.snapshot().layers
        whole = alone.handshake().weight_bytes
    cores = sorted(os.sched_getaffinity(0))[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, cores)))
        both = start_engine(True, out, enforce_eager=True, dtype="float32", tensor_parallel_size=2)
    both.set_betas(betas)
    assert both.generate(PROMPTS, 12) == expected
    reports = both.rpc_all("leanmoe_handshake", HandshakeReport)
    assert [report.worker for report in reports] == ["rank0", "rank1"]
    assert all(report.problems == [] for report in reports)
    # The routers are on both.
    assert whole < sum(report.weight_bytes for report in reports) < 1.05 * whole
    first, second = both.rpc_all("leanmoe_snapshot", SkipSnapshot)
    assert first.layers == second.layers
    for one, other in zip(first.layers, counts, strict=True):
        assert (one.tokens, one.skipped) == (other.tokens, other.skipped)
