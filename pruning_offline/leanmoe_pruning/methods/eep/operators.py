"""EEP's operators as released, and the paper's order of them (arXiv 2407.00945).

From ``imagination-research/EEP`` (``search_utils.py``, ``search.yml``). Scores run from 0 to
100: the thresholds are in points. A population is sorted, the best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from leanmoe_pruning.methods.eep.draws import Draws
from leanmoe_pruning.methods.eep.individual import Individual

Flags = list[bool]


@dataclass(frozen=True)
class Settings:
    """The shipped ``search.yml``."""

    group_probability: float = 0.25
    row_probability: float = 0.15
    crossover_probability: float = 0.3
    crossover_threshold: float = 1.0
    crossover_least: int = 6
    front_probability: float = 0.6
    mutation_threshold: float = 3.0
    entry_probability: float = 0.25
    entry_scale: float = 0.065
    norm_probability: float = 0.1


@dataclass(frozen=True)
class Population:
    """Individuals and their scores, the best first."""

    members: Sequence[Individual]
    scores: Sequence[float]

    def __len__(self) -> int:
        return len(self.members)

    def first_below(self, threshold: float) -> int:
        """The first place, not 0, whose score is more than ``threshold`` under the best."""
        best = self.scores[0]
        below = (i for i in range(1, len(self)) if best - self.scores[i] > threshold)
        return next(below, len(self) - 1)


def shuffle_ties(scores: Sequence[float], draws: Draws) -> list[int]:
    """Places sorted by score, the best first, those of equal scores in random order."""
    order: list[int] = []
    for score in sorted(set(scores), reverse=True):
        equal = [place for place, other in enumerate(scores) if other == score]
        order += [equal[i] for i in draws.shuffle(len(equal))]
    return order


def new_individual(n_groups: int, n_slots: int, n_experts: int, draws: Draws) -> Individual:
    """Each group keeps a random selection of experts, in ascending order."""
    experts = torch.zeros(n_groups, n_slots, n_experts)
    for group in range(n_groups):
        kept = sorted(draws.sample(n_experts, n_slots))
        experts[group, torch.arange(n_slots), kept] = 1.0
    return Individual(experts, experts.clone())


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
                _redraw_slot(child, group, slot, draws)
    return child


def _redraw_slot(child: Individual, group: int, slot: int, draws: Draws) -> None:
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


def draw_changes(n_groups: int, how: Settings, draws: Draws) -> tuple[Flags, Flags]:
    """Which matrices of both kinds to change, drawn again until there is one."""
    while True:
        experts = [draws.uniform() < how.group_probability for _ in range(n_groups)]
        router = [draws.uniform() < how.group_probability for _ in range(n_groups)]
        if any(experts) or any(router):
            return experts, router


def prune_child(population: Population, how: Settings, draws: Draws) -> Individual:
    """A child of the prune stage as released; often it is its parent unchanged."""
    experts, _ = draw_changes(population.members[0].n_groups, how, draws)
    draws.uniform()  # the decision about a crossover, without effect in this stage
    parent = _mutation_parent(population, how, draws)
    return _normed(discrete_mutate(parent, experts, how.row_probability, draws), how, draws)


def merge_child(population: Population, how: Settings, draws: Draws) -> Individual:
    """A child of the merge stage as released."""
    experts, router = draw_changes(population.members[0].n_groups, how, draws)
    enough = len(population) >= how.crossover_least
    if draws.uniform() < how.crossover_probability and enough:
        threshold = how.crossover_threshold
        parent = crossover(population, threshold, experts, router, how, draws)
    else:
        parent = _mutation_parent(population, how, draws)
    return _normed(mutate(parent, experts, router, how, draws), how, draws)


def _mutation_parent(population: Population, how: Settings, draws: Draws) -> Individual:
    # The bound is inclusive in the released code, so one more than those near the best.
    place = draws.randint(0, population.first_below(how.mutation_threshold))
    return population.members[min(len(population) - 1, place)]


def _normed(child: Individual, how: Settings, draws: Draws) -> Individual:
    if draws.uniform() < how.norm_probability:
        sums = child.experts.sum(-1, keepdim=True)
        return Individual(child.experts / sums, child.router, child.interleaved)
    return child


def paper_child(population: Population, merging: bool, how: Settings, draws: Draws) -> Individual:
    """The paper's Algorithm 1: crossover, then mutation, in both phases.

    What it leaves open is taken from the release. While pruning, both matrices stay one: a slot
    and its router row come from the same parent.
    """
    experts, router = draw_changes(population.members[0].n_groups, how, draws)
    if len(population) < how.crossover_least:
        parent = _mutation_parent(population, how, draws)
    else:
        crossed = router if merging else experts
        threshold = how.crossover_threshold
        parent = crossover(population, threshold, experts, crossed, how, draws)
        if not merging:
            parent = _without_doubles(Individual(parent.experts, parent.experts.clone()), draws)
    if not merging:
        return discrete_mutate(parent, experts, how.row_probability, draws)
    return _normed(mutate(parent, experts, router, how, draws), how, draws)


def _without_doubles(child: Individual, draws: Draws) -> Individual:
    """Slots of two parents can hold one expert: the later one draws another."""
    for group in range(child.n_groups):
        held: set[int] = set()
        for slot, expert in enumerate(child.experts[group].argmax(-1).tolist()):
            if expert in held:
                _redraw_slot(child, group, slot, draws)
            held.add(int(child.experts[group, slot].argmax()))
    return child
