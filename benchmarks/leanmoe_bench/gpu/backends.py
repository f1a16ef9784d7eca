"""The four checks of one MoE layer, for each backend of vLLM that can be asked for by name."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe_bench.gpu.models import CHECKED
from leanmoe_bench.pair import RemoteArm
from leanmoe_bench.shapes import write_checkpoint

_PROBE = "leanmoe_runtime.device.probe.LayerProbe"
_NO_BF16 = "vLLM has no kernel of this backend for weights that are not quantised"


@dataclass(frozen=True)
class Cell:
    """A backend on weights of one kind; ``quantization`` is made while loading bf16.

    ``tolerance`` is relative to the largest output. With one scale for all rows, redirected rows
    shift the scale of all others; that is quantisation, not an error.
    """

    backend: str
    quantization: str | None
    tolerance: float

    @property
    def name(self) -> dict[str, Any]:
        named = {"backend": self.backend, "weights": self.quantization or "bf16"}
        return named if self.backend == "triton" else {**named, "bf16": f"cannot run: {_NO_BF16}"}


CELLS = (
    Cell("triton", None, 0.02),
    Cell("marlin", "fp8_per_tensor", 0.05),
    Cell("cutlass", "fp8_per_tensor", 0.15),
    Cell("deep_gemm", "fp8_per_block", 0.1),
    Cell("triton", "fp8_per_tensor", 0.15),
)
NEEDS_SECONDS = 45.0


def _flags(cell: Cell) -> dict[str, Any]:
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
        "worker_extension_cls": _PROBE,
        "additional_config": {"leanmoe": {"plugin": True}},
    }


def check(cell: Cell, work: Path, seed: int) -> dict[str, Any]:
    """The cell's result: what ran, by which class and mode, and each check."""
    model = write_checkpoint(CHECKED, work / f"shape-{CHECKED.name}-{seed}", seed, "cuda")
    with tempfile.TemporaryDirectory(prefix="leanmoe-gpu-") as folder:
        arm = RemoteArm(cell.backend, plugin=True, log=Path(folder, "engine.log"))
        try:
            return _on_engine(arm, cell, model, seed)
        finally:
            arm.close()


def _on_engine(arm: RemoteArm, cell: Cell, model: Path, seed: int) -> dict[str, Any]:
    try:
        arm.call(
            "start",
            model=str(model),
            engine=_flags(cell),
            vocabulary=CHECKED.vocabulary,
            seed=seed,
        )
    except LeanMoEError as error:
        return {**cell.name, "status": "cannot run", "reason": str(error)}
    try:
        answer = arm.call("rpc", method="leanmoe_probe_layer", args=[cell.tolerance])
    except LeanMoEError as error:
        return {**cell.name, "status": "failed", "reason": str(error), "passed": False}
    found = json.loads(answer["results"][0])
    passed = all(result["passed"] for result in found["checks"].values())
    return {**cell.name, "status": "ran", "passed": passed, **found}
