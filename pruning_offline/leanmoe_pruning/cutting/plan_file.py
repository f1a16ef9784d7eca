"""Writing ``plan.json``: a decision as a file that a person may read, edit and cut later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError, OutputError
from leanmoe.files.output import atomic_write_text, check_name, check_writable
from leanmoe_pruning.cutting.layer_plan import LayerPlan


def check_plan_target(target: Path, force: bool, inputs: Iterable[Path]) -> None:
    """Raise unless a plan can be written to ``target`` without losing anything else."""
    check_name(target)
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise InputError(f"output {target} is no plain file; give a file, such as plan.json")
    for other in (path.resolve() for path in inputs):
        if other in (target.resolve(), *target.resolve().parents):
            raise InputError(f"output {target} lies in {other}, which is read; choose another path")
    if target.exists() and not force:
        raise InputError(f"output {target} exists already; choose another path or pass --force")
    if not target.parent.is_dir():
        raise InputError(f"output {target} cannot be made: {target.parent} is no folder; make it")
    check_writable(target)


def write_plan(target: Path, layers: Mapping[int, LayerPlan], note: str) -> None:
    """One line per layer, so that a change of one is a change of a line."""
    lines = [f'    "{layer}": {_line(layers[layer])}' for layer in sorted(layers)]
    text = "\n".join(
        [
            "{",
            '  "schema_version": 1,',
            f'  "note": {json.dumps(note, ensure_ascii=False)},',
            '  "layers": {',
            ",\n".join(lines),
            "  }",
            "}",
        ]
    )
    try:
        atomic_write_text(target, f"{text}\n")
    except OSError as error:
        raise OutputError(f"could not write {target}: {error.strerror or error}") from error


def _line(plan: LayerPlan) -> str:
    return json.dumps(plan.model_dump(mode="json", exclude_none=True))


def plan_note(
    model: str, method: str, settings: Mapping[str, Any], calibration: tuple[str, str] | None
) -> str:
    """Where a plan comes from: method, settings, and what it was decided from."""
    said = "; ".join(f"{name} {_plain(value)}" for name, value in sorted(settings.items()))
    how = f"for {model}, by {method} ({said})"
    if calibration is None:
        return how
    data, digest = calibration
    return f"{how}, decided from {data} ({digest})"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
