"""``input_orders.leanmoe``: in which order an expert's input columns are grouped by its pattern.

A checkpoint whose experts keep N of every M weights holds them in the order of its source. What
is balanced is the grouping: of gate and up projection the columns ``order[0]``, ``order[1]``, ...
make the groups. The file holds one such order per expert, int32 ``[D]``, new position to column,
in the safetensors format under a name that engines do not take for weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from leanmoe.errors import CheckpointError
from leanmoe.families.base import Family

INPUT_ORDERS_NAME = "input_orders.leanmoe"
# By tensor name, new position -> column.
Orders = Mapping[str, np.ndarray]


def order_name(family: Family, layer: int, expert: int) -> str:
    """What an expert's order is called; ``ValueError`` for families that stack their experts."""
    prefix = family.expert_name(layer, expert, "gate_proj").rsplit(".", 2)[0]
    return f"{prefix}.input_order"


def read_input_orders(directory: Path, columns: int) -> dict[str, np.ndarray]:
    """The orders beside a checkpoint, empty without the file.

    Raises ``CheckpointError`` where one is not an order of that many columns.
    """
    path = directory / INPUT_ORDERS_NAME
    if not path.exists():
        return {}
    try:
        orders = load(path.read_bytes())
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no readable file of orders ({error}); copy it again or prune the source "
            "again"
        ) from None
    for name, order in orders.items():
        _check(order, columns, f"{name} in {path}")
    return orders


def write_input_orders(directory: Path, orders: Orders, columns: int) -> None:
    """Write the file; raises ``CheckpointError`` where an order is none of that many columns."""
    path = directory / INPUT_ORDERS_NAME
    for name, order in orders.items():
        _check(order, columns, f"{name} for {path}")
    content = {name: np.ascontiguousarray(order) for name, order in sorted(orders.items())}
    path.write_bytes(save(content))


def _check(order: np.ndarray, columns: int, where: str) -> None:
    if order.dtype != np.int32 or order.shape != (columns,):
        found = f"{order.dtype} of shape {list(order.shape)}"
    elif not np.array_equal(np.sort(order), np.arange(columns)):
        found = "a column more than once or out of range"
    else:
        return
    raise CheckpointError(
        f"{where} is not an order of an expert's {columns} input columns: found {found}, expected "
        f"int32 [{columns}] with every column once; prune the source again"
    )
