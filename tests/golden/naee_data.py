"""The NAEE golden set and one prune run of it per case, through the command line."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from leanmoe.cli import main

NAEE = Path(__file__).parent / "data" / "naee"
CHECKPOINT = NAEE / "checkpoint"
CALIBRATION = f"{NAEE / 'inputs.safetensors'}:calib_input_ids"
PROBE = f"{NAEE / 'inputs.safetensors'}:probe_input_ids"

# golden name -> (variant, kept experts, sequences per batch)
RUNS = {
    "layerwise_r6": ("layerwise", 6, 2),
    "layerwise_r4": ("layerwise", 4, 2),
    "progressive_r6": ("progressive", 6, 2),
    "progressive_r4": ("progressive", 4, 2),
    "layerwise_r6_one_batch": ("layerwise", 6, 6),
    "layerwise_r6_batch1": ("layerwise", 6, 1),
}


@lru_cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(NAEE / "results.safetensors")


@lru_cache
def golden_json() -> dict:
    return json.loads((NAEE / "results.json").read_text())


def probe_ids() -> torch.Tensor:
    return load_file(NAEE / "inputs.safetensors")["probe_input_ids"]


def prune(name: str, out: Path, dump: Path) -> int:
    variant, keep, batch = RUNS[name]
    arguments = ["prune", str(CHECKPOINT), "--method", "naee", "--variant", variant]
    arguments += ["--keep", str(keep), "--data", CALIBRATION, "--batch-size", str(batch)]
    return main([*arguments, "--dump", str(dump), "-o", str(out)])
