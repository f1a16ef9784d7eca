"""The checks of one MoE layer, for each backend and kind of weights that vLLM 0.32 can combine.

What vLLM refuses there, so that no cell asks for it: CUTLASS with one scale per tensor or per block
(`allow_vllm_cutlass` holds for one per channel alone), Marlin with one per channel, DeepGEMM other
than per block, and anything but Triton for bf16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe_bench.engines.pair import WITH_PLUGIN, RemoteArm, dotted_name
from leanmoe_bench.gpu.models import CHECKED
from leanmoe_bench.gpu.prober import LayerProber
from leanmoe_bench.gpu.settings import ENVIRONMENT
from leanmoe_bench.shapes import write_checkpoint


@dataclass(frozen=True)
class Cell:
    """A backend on weights of one kind; ``quantization`` is made while loading bf16.

    ``tolerance`` is relative to the largest output. With one scale for all rows, redirected rows
    shift the scale of all others; that is quantisation, not an error.
    """

    name: str
    backend: str
    quantization: str | None
    tolerance: float

    @property
    def about(self) -> dict[str, Any]:
        weights = self.quantization or "bf16"
        return {"cell": self.name, "backend": self.backend, "weights": weights}


CELLS = {
    cell.name: cell
    for cell in (
        Cell("triton-bf16", "triton", None, 0.02),
        Cell("triton-fp8-tensor", "triton", "fp8_per_tensor", 0.15),
        Cell("triton-fp8-block", "triton", "fp8_per_block", 0.1),
        Cell("cutlass-fp8-channel", "cutlass", "fp8_per_channel", 0.1),
        Cell("marlin-fp8-tensor", "marlin", "fp8_per_tensor", 0.05),
        Cell("deep_gemm-fp8-block", "deep_gemm", "fp8_per_block", 0.1),
    )
}


def _flags(cell: Cell) -> dict[str, Any]:
    """What stock gets too."""
    return {
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 1024,
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": 1 << 28,
        "gpu_memory_utilization": 0.5,
        "enforce_eager": True,
        "moe_backend": cell.backend,
        "quantization": cell.quantization,
    }


_OWN = {"worker_extension_cls": dotted_name(LayerProber), **WITH_PLUGIN}


def check(cell: Cell, work: Path, seed: int) -> dict[str, Any]:
    """The cell's result: what ran, by which class and mode, and each check."""
    model = write_checkpoint(CHECKED, work / f"shape-{CHECKED.name}-{seed}", seed)
    with _arm("ours", work) as ours:
        refusal = start(ours, {**_flags(cell), **_OWN}, model, seed)
        if refusal is None:
            return probe(ours, cell)
    with _arm("stock", work) as stock:
        return refused(refusal, start(stock, _flags(cell), model, seed))


@contextmanager
def _arm(name: str, work: Path) -> Iterator[RemoteArm]:
    log = work / f"{name}.log"
    arm = RemoteArm(name, plugin=name == "ours", log=log, settings=ENVIRONMENT)
    try:
        yield arm
    finally:
        arm.close()


def start(arm: RemoteArm, engine: dict[str, Any], model: Path, seed: int) -> str | None:
    """Start an engine; why it does not, or ``None``."""
    about = {"model": str(model), "vocabulary": CHECKED.vocabulary, "seed": seed}
    try:
        arm.call("start", engine=engine, **about)
    except LeanMoEError as error:
        return str(error)
    return None


def refused(ours: str, stock: str | None) -> dict[str, Any]:
    """A cell that ours does not start: no failure where stock does not start it either."""
    if stock is not None:
        return {"status": "cannot run", "reason": stock}
    return {"status": "failed", "reason": f"stock starts, ours does not: {ours}", "passed": False}


def probe(arm: RemoteArm, cell: Cell) -> dict[str, Any]:
    """The checks of the engine's first MoE layer."""
    try:
        answer = arm.call("rpc", method="leanmoe_probe_layer", args=[cell.tolerance])
    except LeanMoEError as error:
        return {"status": "failed", "reason": str(error), "passed": False}
    found = json.loads(answer["results"][0])
    passed = all(result["passed"] for result in found["checks"].values())
    passed = passed and "error" not in found["routing_us"]
    return {"status": "ran", "passed": passed, **found}
