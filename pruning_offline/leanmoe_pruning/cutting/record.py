"""The manifest of a cut: from what, by what, with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leanmoe.checkpoint import Checkpoint
from leanmoe.files.digest import tool_versions
from leanmoe.manifest import NO_CUT, Manifest, Source
from leanmoe_pruning.cutting.layer_plan import LayerPlan


def cut_manifest(
    checkpoint: Checkpoint,
    source: dict[str, str],
    method: str,
    settings: dict[str, Any],
    plans: Mapping[int, LayerPlan],
    calibration: tuple[str, str] | None,
    files: dict[str, str],
) -> Manifest:
    """The record beside the output; ``calibration`` is what was decided from and its digest."""
    data, digest = calibration or (None, None)
    return Manifest(
        family=checkpoint.family.name,
        source=Source(
            name=checkpoint.path.resolve().name,
            files=source,
            experts=max(own.n_experts for own in checkpoint.layers.values()),
        ),
        method=method,
        settings={**settings, **_history(checkpoint)},
        kept=_kept(checkpoint, plans),
        calibration=data,
        calibration_digest=digest,
        tools=tool_versions(),
        files=files,
    )


def _history(checkpoint: Checkpoint) -> dict[str, Any]:
    """What was done to the source before this cut."""
    before = checkpoint.manifest
    if before is None or before.method == NO_CUT:
        return {}
    return {"before": before.model_dump(mode="json", exclude={"curve", "files"})}


def _kept(checkpoint: Checkpoint, plans: Mapping[int, LayerPlan]) -> dict[int, list[int]]:
    """Source experts by layer; those of layers that no plan names are all of them."""
    every = {layer: list(range(own.n_experts)) for layer, own in checkpoint.layers.items()}
    merged = {layer for layer, plan in plans.items() if plan.merge is not None}
    named = {layer: list(plan.kept) for layer, plan in plans.items()}
    return {i: kept for i, kept in sorted({**every, **named}.items()) if i not in merged}
