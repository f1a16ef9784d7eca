"""What the YAML files beside this one give lm-evaluation-harness: items out of local files.

Loaded by that library by its path; needs LeanMoE installed, and neither a hub nor a network.
"""

from __future__ import annotations

from typing import Any

import datasets

from leanmoe_pruning.data.tasks.loading import load_task


def from_task(spec: str, **_: Any) -> dict[str, Any]:
    """The items of ``--tasks`` SPEC as the split "test"."""
    return {"test": datasets.Dataset.from_list([item.to_json() for item in load_task(spec).items])}
