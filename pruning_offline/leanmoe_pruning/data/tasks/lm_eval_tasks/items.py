"""What the YAML files beside this one give lm-evaluation-harness: items out of local files.

Loaded by that library by its path; needs LeanMoE installed, and neither a hub nor a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets

from leanmoe_pruning.data.tasks.loading import examples_of, load_task
from leanmoe_pruning.data.tasks.task import Item


def from_task(spec: str, **_: Any) -> dict[str, Any]:
    """The items of ``--tasks`` SPEC as the split "test"."""
    return {"test": _rows(load_task(spec).items)}


def asked(spec: str, **_: Any) -> dict[str, Any]:
    """The same, and what a chat shows before each question as the split "examples"."""
    return {**from_task(spec), "examples": _rows(examples_of(spec))}


def _rows(items: Sequence[Item]) -> Any:
    return datasets.Dataset.from_list([item.to_json() for item in items])
