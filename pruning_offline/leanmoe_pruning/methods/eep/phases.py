"""How a child is made in the two phases: pruning, where rows are one-hot, then merging.

``prune_child`` and ``merge_child`` are the released code's, ``paper_child`` is one iteration of
the paper's Algorithm 1 (arXiv 2407.00945), which crosses over and mutates in both phases.
"""

from __future__ import annotations

from leanmoe_pruning.methods.eep.draws import Draws, Settings
from leanmoe_pruning.methods.eep.individual import Individual
from leanmoe_pruning.methods.eep.operators import (
    Flags,
    crossover,
    discrete_mutate,
    mutate,
    without_doubles,
)
from leanmoe_pruning.methods.eep.population import Population


def draw_changes(n_groups: int, how: Settings, draws: Draws) -> tuple[Flags, Flags]:
    """Which matrices of both kinds to change, drawn again until there is one."""
    while True:
        experts = [draws.uniform() < how.group_probability for _ in range(n_groups)]
        router = [draws.uniform() < how.group_probability for _ in range(n_groups)]
        if any(experts) or any(router):
            return experts, router


def prune_child(population: Population, how: Settings, draws: Draws) -> Individual:
    """A child of the prune phase as released; often it is its parent unchanged."""
    experts, _ = draw_changes(population.members[0].n_groups, how, draws)
    draws.uniform()  # the decision about a crossover, without effect in this phase
    parent = _mutation_parent(population, how, draws)
    return _normed(discrete_mutate(parent, experts, how.row_probability, draws), how, draws)


def merge_child(population: Population, how: Settings, draws: Draws) -> Individual:
    """A child of the merge phase as released."""
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
            parent = without_doubles(Individual(parent.experts, parent.experts.clone()), draws)
    if not merging:
        return discrete_mutate(parent, experts, how.row_probability, draws)
    return _normed(mutate(parent, experts, router, how, draws), how, draws)
