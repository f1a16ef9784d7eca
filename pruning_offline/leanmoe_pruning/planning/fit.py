"""``--fit``: the largest cut of each kind that one engine's memory holds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

from leanmoe.errors import InputError
from leanmoe_pruning.amounts import show_bytes
from leanmoe_pruning.planning.headers import HeaderModel
from leanmoe_pruning.planning.kinds import Kind
from leanmoe_pruning.planning.rows import Row, row_of

# Share of a device's memory vLLM takes, unless told otherwise.
USABLE = 0.92


def largest_fitting(
    model: HeaderModel, kinds: Sequence[Kind], memory: int, kv_tokens: int
) -> list[Row]:
    """The whole model where it fits, else each kind's largest cut that does.

    Raises ``InputError`` with the smallest there is where none fits.
    """
    usable = int(memory * USABLE)
    whole = row_of(model, None, 0, kv_tokens)
    if whole.serving.total <= usable:
        return [whole]
    smallest, fitting = [whole], []
    for kind in kinds:
        known = kind.budgets(model)
        least = row_of(model, kind, known[-1], kv_tokens)
        smallest.append(least)
        if least.serving.total <= usable:
            fitting.append(
                _largest(known, usable, partial(row_of, model, kind, kv_tokens=kv_tokens))
            )
    if not fitting:
        raise InputError(_impossible(model, min(smallest, key=_total), memory, kv_tokens))
    return fitting


def _largest(known: Sequence[int], usable: int, row_at: Callable[[int], Row]) -> Row:
    """The first budget that fits; outputs shrink along the list, and the last one fits."""
    place = bisect_left(known, True, key=lambda at: row_at(at).serving.total <= usable)
    return row_at(known[place])


def _total(row: Row) -> int:
    return row.serving.total


def _impossible(model: HeaderModel, row: Row, memory: int, kv_tokens: int) -> str:
    part = row.serving
    packing = model.checkpoint.packing
    listed = packing is not None and packing.layout == "overflow"
    unseen = "; cuts with --compress, which may be smaller, are not laid out" if listed else ""
    how = f"{row.kind.words(row.budget)} by {row.kind.methods[0]}" if row.kind else "as it is"
    return (
        f"{model.checkpoint.path} cannot be made to fit {show_bytes(memory)}, of which vLLM uses "
        f"{USABLE:.0%}: the smallest cut ({how}) needs about {show_bytes(part.total)}: "
        f"{show_bytes(part.weights)} of weights, {show_bytes(part.kv)} for {kv_tokens} tokens of "
        f"KV and {show_bytes(part.workspace)} to work in; give more memory, or several "
        f"devices{unseen}"
    )
