"""The tasks that ship with the project, a calibration and a held-out split each.

``items/make.py`` wrote them; ``items/README.md`` says from what and under which licences.
"""

from __future__ import annotations

from pathlib import Path

from leanmoe.errors import DataError
from leanmoe_pruning.data.builtin import Split, copyleft_home, has_copyleft
from leanmoe_pruning.data.spec import BUILTIN, COPYLEFT

ITEMS = Path(__file__).parent / "items"
# The same for lm-evaluation-harness, whose YAML files name each other by place.
LM_EVAL_TASKS = Path(__file__).parent / "lm_eval_tasks"
# Made of texts under copyleft licences, and where those are.
COPYLEFT_TASKS = (*(f"cloze-{domain}" for domain in COPYLEFT), "language")


def builtin_names() -> tuple[str, ...]:
    """Every built-in task that is installed."""
    names = {path.name.removesuffix(".heldout.jsonl") for path in ITEMS.glob("*.heldout.jsonl")}
    return tuple(sorted({*names, *(COPYLEFT_TASKS if has_copyleft() else ())}))


def task_file(name: str) -> Path:
    """Where a file of items is, such as ``cloze-fr.heldout``; ``DataError`` where it may not be."""
    task = name.partition(".")[0]
    folder = copyleft_home(BUILTIN + task) / "items" if task in COPYLEFT_TASKS else ITEMS
    return folder / f"{name}.jsonl"


def builtin_path(name: str, split: Split) -> Path:
    """The file of one split; ``DataError`` names what there is."""
    if name not in (*builtin_names(), *COPYLEFT_TASKS):
        raise DataError(f"no built-in task {name!r}; known: {', '.join(builtin_names())}")
    return task_file(f"{name}.{split}")
