"""The orders of input columns that a cut takes over from its source, by the experts' new places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.input_orders import INPUT_ORDERS_NAME, order_name, read_input_orders
from leanmoe_pruning.checkpoints.opening import OpenedModel
from leanmoe_pruning.cutting.layer_plan import LayerPlan


def carried_orders(
    checkpoint: OpenedModel, plans: Mapping[int, LayerPlan], renamed: bool = True
) -> dict[str, np.ndarray]:
    """Each kept expert's order under its new name; sums of experts have none.

    Not ``renamed``, kept experts have their old names still, as beside stand-ins.

    Raises ``CheckpointError`` for a file that speaks of other experts than the checkpoint's.
    """
    family, carried = checkpoint.family, {}
    orders = _orders_of(checkpoint)
    if not orders:
        return {}
    _check_experts(checkpoint, orders)
    for layer, own in checkpoint.layers.items():
        plan = plans.get(layer)
        if plan is not None and plan.merge is not None:
            continue
        kept = tuple(range(own.n_experts)) if plan is None else plan.kept
        for place, expert in enumerate(kept):
            found = orders.get(order_name(family, layer, expert))
            if found is not None:
                carried[order_name(family, layer, place if renamed else expert)] = found
    return carried


def _orders_of(checkpoint: OpenedModel) -> dict[str, np.ndarray]:
    """Packed experts hold their orders themselves."""
    if checkpoint.packing is None or not checkpoint.packing.input_orders:
        return read_input_orders(checkpoint.path, checkpoint.shape.hidden_size)
    family = checkpoint.family
    return {
        order_name(family, part.layer, part.expert): order
        for name, order in checkpoint.reader.input_orders()
        if (part := family.parse_expert(name)) is not None
        and part.projection == "gate_proj"
        and part.layer in checkpoint.layers
    }


def check_summable(checkpoint: Checkpoint) -> None:
    """Raise ``CheckpointError`` where hidden channels of different experts no longer correspond."""
    if not is_summable(checkpoint):
        raise CheckpointError(
            f"the experts of {checkpoint.path} cannot be added up: a pattern gave each one's "
            "hidden channels an order of its own; merge its source and prune weights after"
        )


def is_summable(checkpoint: Checkpoint) -> bool:
    """Whether hidden channels of different experts correspond, as the manifest tells."""
    link: dict[str, Any] = (
        checkpoint.manifest.model_dump(mode="json") if checkpoint.manifest else {}
    )
    while link:
        if link["settings"].get("permute"):
            return False
        link = link["settings"].get("before") or {}
    return True


def _check_experts(checkpoint: Checkpoint, orders: Mapping[str, np.ndarray]) -> None:
    layers = () if checkpoint.family.stacked else checkpoint.layers.items()
    known = {
        order_name(checkpoint.family, layer, expert)
        for layer, own in layers
        for expert in range(own.n_experts)
    }
    if unknown := sorted(set(orders) - known):
        raise CheckpointError(
            f"{checkpoint.path / INPUT_ORDERS_NAME} holds {unknown[0]}, an expert that "
            f"config.json of {checkpoint.path} does not describe; copy the file again or prune "
            "the source again"
        )
