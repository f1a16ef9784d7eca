"""What stands in for removed experts: a constant (MoNE, arXiv 2507.00390) or a map of low rank.

The router keeps all its rows and chooses among all experts. One that was removed gives
``c + (x into^T) out`` instead of its output, with ``c`` [D] and, where the rank R is above 0,
``into`` and ``out`` [R, D]. Kept experts keep their names in the files.

Constants alone are said as vLLM 0.33 says them: ``approximate_experts`` in ``config.json``, expert
numbers by decoder layer, beside tensors ``….experts.E.approx_value``; ours have a marker, too.
Anything else stands in the layout (``leanmoe.layout``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from leanmoe.errors import CheckpointError
from leanmoe.families.base import Family

APPROXIMATE_KEY = "approximate_experts"
Part = Literal["approx_value", "approx_in", "approx_out"]
PARTS: tuple[Part, ...] = get_args(Part)


def stand_in_name(family: Family, layer: int, expert: int, part: Part) -> str:
    """The name of a stand-in's tensor; ``ValueError`` for families that stack their experts."""
    prefix = family.expert_name(layer, expert, "gate_proj").rsplit(".", 2)[0]
    return f"{prefix}.{part}"


def constants_marker_name(block_prefix: str, ids: Sequence[int]) -> str:
    """Beside the router of a layer with constants, the first of them a second time.

    vLLM 0.33 reads it as the same constant; an engine that does not know constants stops at it
    (vLLM 0.32 passes over tensors it does not know among the experts, and not here).
    """
    return f"{block_prefix}.gate.{ids[0]}.approx_value"


def stand_in_sizes(width: int, rank: int) -> dict[Part, tuple[int, ...]]:
    """The tensors of one stand-in of a model ``width`` wide."""
    maps: dict[Part, tuple[int, ...]] = {"approx_in": (rank, width), "approx_out": (rank, width)}
    return {"approx_value": (width,), **(maps if rank else {})}


def read_constants(config: Mapping[str, Any], where: str) -> dict[int, tuple[int, ...]]:
    """Experts with a constant in their place by decoder layer, ascending, none where none is said.

    Raises ``CheckpointError``, naming ``where``, for what vLLM would not read so.
    """
    stated = config.get(APPROXIMATE_KEY)
    if stated is None:
        return {}
    try:
        found = {int(layer): tuple(sorted(map(_number, ids))) for layer, ids in stated.items()}
    except (AttributeError, TypeError, ValueError):
        raise _wrong(where, f"it is {str(stated)[:80]!r}") from None
    for layer, ids in found.items():
        if len(set(ids)) < len(ids) or any(one < 0 for one in ids):
            raise _wrong(where, f"layer {layer} names {list(ids)}")
    return {layer: ids for layer, ids in found.items() if ids}


def _number(stated: Any) -> int:
    if type(stated) is not int:  # true would be expert 1
        raise TypeError("no number of an expert")
    return stated


def _wrong(where: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: {APPROXIMATE_KEY} must map decoder layers to the numbers of experts with a "
        f"constant in their place, each once, and {found}; cut the model again"
    )
