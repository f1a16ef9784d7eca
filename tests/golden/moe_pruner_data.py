"""The MoE-Pruner golden set and one prune run of it per case, through the command line."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from leanmoe.cli import main

FOLDER = Path(__file__).parent / "data" / "moe_pruner"
CHECKPOINT = FOLDER / "checkpoint"
CALIBRATION = f"{FOLDER / 'inputs.safetensors'}:calib_input_ids"
PATTERNS = {"unstructured50": ("--sparsity", "0.5"), "2of4": ("--pattern", "2:4")}
TAGS = tuple(
    f"{method}.{pattern}.{schedule}"
    for method in ("moe_pruner", "wanda")
    for pattern in PATTERNS
    for schedule in ("unpruned", "pruned")
)
MATRICES = ("w1", "w2", "w3")


@lru_cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "results.safetensors")


def probe_ids() -> torch.Tensor:
    return load_file(FOLDER / "inputs.safetensors")["probe_input_ids"]


def prune(tag: str, evidence: list[str], out: Path, dump: Path) -> int:
    """Prune as a tag says; ``evidence`` is ``--data`` or ``--scores`` with its value."""
    method, pattern, schedule = tag.split(".")
    arguments = ["prune", str(CHECKPOINT), "--method", method.replace("_", "-")]
    arguments += [*PATTERNS[pattern], "--schedule", schedule, *evidence]
    return main([*arguments, "--dump", str(dump), "-o", str(out)])
