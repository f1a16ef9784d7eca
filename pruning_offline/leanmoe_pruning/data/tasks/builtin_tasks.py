"""The tasks that ship with the project, a calibration and a held-out split each.

``items/make.py`` wrote them; ``items/README.md`` says from what and under which licences.
"""

from __future__ import annotations

from pathlib import Path

from leanmoe.errors import DataError
from leanmoe_pruning.data.builtin import Split

ITEMS = Path(__file__).parent / "items"
# The same for lm-evaluation-harness, whose YAML files name each other by place.
LM_EVAL_TASKS = Path(__file__).parent / "lm_eval_tasks"


def builtin_names() -> tuple[str, ...]:
    """Every built-in task."""
    return tuple(sorted(path.name.removesuffix(".heldout.jsonl") for path in _heldout()))


def _heldout() -> list[Path]:
    return list(ITEMS.glob("*.heldout.jsonl"))


def builtin_path(name: str, split: Split) -> Path:
    """The file of one split; ``DataError`` names what there is."""
    if name not in builtin_names():
        raise DataError(f"no built-in task {name!r}; known: {', '.join(builtin_names())}")
    return ITEMS / f"{name}.{split}.jsonl"
