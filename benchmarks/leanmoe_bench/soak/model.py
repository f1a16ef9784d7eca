"""The checkpoint a soak serves: the reference model with layers that differ, and its curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leanmoe_bench.reference import leanmoe, reference_model

_CONDENSED_EVERY = 10
_DATA = "builtin:gen:2,builtin:c:2"


def plan(layers: int, experts: int) -> dict[str, Any]:
    """Every layer keeps all, one less or two less of its experts; some are condensed."""

    def of(layer: int) -> dict[str, Any]:
        if layer % _CONDENSED_EVERY == _CONDENSED_EVERY - 1:
            return {"condense": {"0": 0.4, "3": 0.3, "5": 0.3}}
        return {"keep": list(range(experts - layer % 3))}

    return {"layers": {str(layer): of(layer) for layer in range(layers)}}


def soak_model(work: Path) -> Path:
    """Build it with the commands a user has; what is there already stays."""
    lean = work / "lean"
    if (lean / "leanmoe.json").exists():
        return lean
    whole = reference_model(work)
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    wanted = plan(config["num_hidden_layers"], config["num_local_experts"])
    file = work / "plan.json"
    file.write_text(json.dumps(wanted), encoding="utf-8")
    leanmoe("prune", str(whole), "--plan", str(file), "-o", str(lean))
    leanmoe("curve", str(lean), "--data", _DATA, "--levels", "3")
    return lean
