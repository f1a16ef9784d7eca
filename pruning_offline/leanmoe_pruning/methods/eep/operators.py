"""EEP's two operators as released: mutation, discrete or with noise, and crossover.

From ``imagination-research/EEP`` (``search_utils.py``). In the prune phase a mutation gives slots
other experts; in the merge phase it adds noise to entries. Crossover takes rows from two parents.
"""

from __future__ import annotations

import torch

from leanmoe_pruning.methods.eep.draws import Draws, Settings
from leanmoe_pruning.methods.eep.individual import Individual
from leanmoe_pruning.methods.eep.population import Population

Flags = list[bool]


def discrete_mutate(
    parent: Individual, change: Flags, row_probability: float, draws: Draws
) -> Individual:
    """In the groups to change some slots take an expert that no other slot of theirs holds."""
    child = parent.copy(parent.interleaved)
    for group, changed in enumerate(change):
        if not changed:
            continue
        for slot in range(child.n_slots):
            if draws.uniform() < row_probability:
                redraw_slot_(child, group, slot, draws)
    return child


def redraw_slot_(child: Individual, group: int, slot: int, draws: Draws) -> None:
    """Give a slot, in place, an expert that no other slot of its group holds."""
    experts, router = child.experts[group], child.router[group]
    experts[slot], router[slot] = 0.0, 0.0
    held = (experts != 0).any(0)
    while held[expert := draws.randint(0, child.n_experts - 1)]:
        pass
    experts[slot, expert] = router[slot, expert] = 1.0


def mutate(
    parent: Individual, change_experts: Flags, change_router: Flags, how: Settings, draws: Draws
) -> Individual:
    """Add noise to some entries of the matrices to change."""
    child = parent.copy(parent.interleaved)
    for matrix in _to_change(child, change_experts, change_router):
        flat = matrix.view(-1)
        for place in range(len(flat)):
            if draws.uniform() < how.entry_probability:
                flat[place] += draws.gauss() * how.entry_scale
    return child


def _to_change(
    child: Individual, change_experts: Flags, change_router: Flags
) -> list[torch.Tensor]:
    experts = [(child.experts[g], on) for g, on in enumerate(change_experts)]
    router = [(child.router[g], on) for g, on in enumerate(change_router)]
    if child.interleaved:
        pairs = [one for both in zip(experts, router, strict=True) for one in both]
    else:
        pairs = [*experts, *router]
    return [matrix for matrix, on in pairs if on]


def crossover(
    population: Population,
    threshold: float,
    change_experts: Flags,
    change_router: Flags,
    how: Settings,
    draws: Draws,
) -> Individual:
    """Two of the best: matrices to change row by row from either, the others whole from one."""
    pool = max(population.first_below(threshold), how.crossover_least)
    first, second = (population.members[i] for i in draws.sample(pool, 2))
    experts = _crossed(first.experts, second.experts, change_experts, how, draws)
    router = _crossed(first.router, second.router, change_router, how, draws)
    return Individual(experts, router, interleaved=False)


def _crossed(
    first: torch.Tensor, second: torch.Tensor, change: Flags, how: Settings, draws: Draws
) -> torch.Tensor:
    child = first.clone()
    for group, changed in enumerate(change):
        if changed:
            for slot in range(child.shape[1]):
                if not draws.uniform() < how.front_probability:
                    child[group, slot] = second[group, slot]
        elif not draws.uniform() < how.front_probability:
            child[group] = second[group]
    return child


def without_doubles(child: Individual, draws: Draws) -> Individual:
    """Slots of two parents can hold one expert: the later one draws another."""
    for group in range(child.n_groups):
        held: set[int] = set()
        for slot, expert in enumerate(child.experts[group].argmax(-1).tolist()):
            if expert in held:
                redraw_slot_(child, group, slot, draws)
            held.add(int(child.experts[group, slot].argmax()))
    return child
