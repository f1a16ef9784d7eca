"""``--replace``: what is put in the place of removed experts, and which go.

Fitting it (``fitting.py``) takes torch; this does not, for sizes of cuts are planned without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from leanmoe.errors import CheckpointError, InputError
from leanmoe_pruning.checkpoints.opening import OpenedModel
from leanmoe_pruning.cutting.layer_plan import LayerPlan

NONE, CONSTANT, LOW_RANK = "none", "constant", "lowrank"
Plans = Mapping[int, LayerPlan]


@dataclass(frozen=True)
class Replacement:
    """A constant at rank 0, else a map of that rank beside it."""

    rank: int

    @classmethod
    def of(cls, text: str, model: OpenedModel) -> Self | None:
        """What ``--replace`` says, checked against the model; ``None`` for none."""
        if text == NONE:
            return None
        kind, _, rank = text.partition(":")
        width = model.shape.hidden_size
        if text != CONSTANT and not (kind == LOW_RANK and rank.isdecimal() and rank.isascii()):
            raise InputError(
                f"--replace is {text!r}, expected {NONE}, {CONSTANT} or {LOW_RANK}:R with a rank R "
                "such as 8"
            )
        found = cls(int(rank or 0))
        if kind == LOW_RANK and not 1 <= found.rank <= width:
            raise InputError(
                f"--replace {text} has rank {rank}, expected 1 to {width}, the width of "
                f"{model.path}; --replace {CONSTANT} has no map"
            )
        _check_family(model)
        return found

    def __str__(self) -> str:
        return f"{LOW_RANK}:{self.rank}" if self.rank else CONSTANT


def _check_family(model: OpenedModel) -> None:
    if model.family.stacked:
        raise CheckpointError(
            f"{model.path} is a {model.family.name} model, whose files stack a layer's experts in "
            "one tensor: stand-ins need a tensor for each; leave --replace out"
        )


def removed_experts(plans: Plans, model: OpenedModel) -> dict[int, tuple[int, ...]]:
    """Which experts go, by layer; raises ``InputError`` where they do not simply go, or none do."""
    gone: dict[int, tuple[int, ...]] = {}
    for layer, plan in plans.items():
        if plan.keep is None:
            what = "condenses" if plan.condense is not None else "merges"
            raise InputError(
                f"--replace puts stand-ins in the place of removed experts, and the plan {what} "
                f"layer {layer}; leave --replace out, or keep experts there as they are"
            )
        left = set(range(model.layers[layer].n_experts)) - set(plan.kept)
        if left:
            gone[layer] = tuple(sorted(left))
    if not gone:
        raise InputError("--replace was given and no expert is removed; leave it out")
    return gone
