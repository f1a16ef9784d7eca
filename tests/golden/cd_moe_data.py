"""The CD-MoE golden set and prune runs of it, through the command line."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from leanmoe.cli import main

CDMOE = Path(__file__).parent / "data" / "cdmoe"
CHECKPOINT = CDMOE / "checkpoint"
_INPUTS = CDMOE / "inputs.safetensors"
DOCUMENTS = ",".join(f"{_INPUTS}:doc.{n}.input_ids" for n in range(6))
PROBE = f"{_INPUTS}:probe_input_ids"


@lru_cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(CDMOE / "results.safetensors")


@lru_cache
def golden_json() -> dict:
    return json.loads((CDMOE / "results.json").read_text())


def inputs() -> dict[str, torch.Tensor]:
    return load_file(_INPUTS)


def condense(out: Path, layers: int, *more: str, model: Path = CHECKPOINT) -> int:
    arguments = ["prune", str(model), "--method", "cd-moe", "--layers", str(layers)]
    return main([*arguments, "--data", DOCUMENTS, "-o", str(out), *more])
