"""What a selection method decides, and what it decided on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from math import comb

from leanmoe.errors import InputError
from leanmoe.families import MoEShape
from leanmoe_pruning.cutting.layer_plan import LayerPlan
from leanmoe_pruning.later import torch

MAX_SUBSETS = 20_000
ENUMERATED_UP_TO = 12  # experts, by NAEE unless told otherwise


@dataclass(frozen=True)
class LayerChoice:
    """Kept experts of one layer, ascending.

    NAEE gives their ``loss`` and, where it tried them all, ``losses`` in the order of
    ``pruned_subsets``.
    """

    layer: int
    kept: tuple[int, ...]
    losses: torch.Tensor | None = None
    loss: float | None = None


def check_keep(keep: int, shape: MoEShape, where: str, said: str | None = None) -> None:
    """Raise unless ``keep`` experts per layer can serve the model's router.

    ``said`` begins the sentence where something else than ``--keep`` was given.
    """
    advice = f"give {'' if said is None else '--keep, '}{_allowed(shape)}"
    said = said or f"--keep {keep}"
    if keep < shape.top_k:
        raise InputError(
            f"{said} is below the top-{shape.top_k} routing of {where}: each token needs "
            f"{shape.top_k} experts; {advice}"
        )
    if keep > shape.n_routed_experts:
        raise InputError(
            f"{said} is more than the {shape.n_routed_experts} experts per layer of "
            f"{where}; {advice}"
        )
    if keep % shape.n_groups or keep < shape.least_keep:
        raise InputError(
            f"{said} does not fit the router of {where}: its {shape.n_groups} groups of "
            f"experts stay equally large and need {shape.least_keep // shape.n_groups} experts "
            f"each; {advice}"
        )


def _allowed(shape: MoEShape) -> str:
    kind = "a number" if shape.n_groups == 1 else f"a multiple of {shape.n_groups}"
    return f"{kind} from {shape.least_keep} to {shape.n_routed_experts}"


def check_enumerable(keep: int, shape: MoEShape) -> None:
    """Raise when the subsets are too many to try each."""
    size, share = shape.n_routed_experts // shape.n_groups, keep // shape.n_groups
    subsets = comb(size, share) ** shape.n_groups
    if subsets > MAX_SUBSETS:
        raise InputError(
            f"--search enumerate tries every subset and keeping {keep} of "
            f"{shape.n_routed_experts} has {subsets} of them, more than {MAX_SUBSETS}; use "
            "--search greedy or beam"
        )


def pruned_subsets(n_experts: int, keep: int, n_groups: int = 1) -> list[tuple[int, ...]]:
    """Every set of pruned experts in lexicographic order, as many of each group."""
    size, share = n_experts // n_groups, (n_experts - keep) // n_groups
    groups = [combinations(range(g * size, (g + 1) * size), share) for g in range(n_groups)]
    return [tuple(chain(*parts)) for parts in product(*groups)]


def first_of_groups(order: Sequence[int], keep: int, n_groups: int = 1) -> tuple[int, ...]:
    """The experts that come first in ``order``, as many of each group, ascending."""
    size, share = len(order) // n_groups, keep // n_groups
    kept = [
        expert
        for group in range(n_groups)
        for expert in [one for one in order if one // size == group][:share]
    ]
    return tuple(sorted(kept))


def complement(pruned: Sequence[int], n_experts: int) -> tuple[int, ...]:
    """The experts that stay, ascending."""
    return tuple(expert for expert in range(n_experts) if expert not in pruned)


def plans_of(choices: Iterable[LayerChoice]) -> dict[int, LayerPlan]:
    """What the cutter is to do."""
    return {choice.layer: LayerPlan(keep=choice.kept) for choice in choices}
