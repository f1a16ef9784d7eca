"""The evolutionary search, Algorithm 1: random selections, pruning, merging, a held-out pick.

Children are made in rounds of as many as there are workers, child i from draws of its own
seeded with (seed, i) and from the population before the round. So a run depends on seed,
settings and number of workers and on no timing, and one that was stopped repeats itself.
A child that was evaluated before is drawn again: in the released code 59 to 90 % of the
prune phase's children are unchanged and cost an evaluation each. Where no new one is found
the phase is over early: few experts in few groups have few selections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from leanmoe_pruning.methods.eep.draws import Draws, SeededDraws, Settings
from leanmoe_pruning.methods.eep.fitness import Evaluator
from leanmoe_pruning.methods.eep.individual import Individual, identity
from leanmoe_pruning.methods.eep.phases import merge_child, paper_child, prune_child
from leanmoe_pruning.methods.eep.population import Population, new_individual, shuffle_ties
from leanmoe_pruning.methods.eep.store import Store
from leanmoe_pruning.progress import Tick

Operators = Literal["released", "paper"]
INITIAL = 31
_MOST_DRAWS = 200


@dataclass(frozen=True)
class Space:
    """The matrices searched: E' slots out of E experts in G depth groups."""

    n_groups: int
    n_slots: int
    n_experts: int


@dataclass(frozen=True)
class Limits:
    """Evaluations until merging begins, in all, and how many the held-out part judges."""

    pruning: int
    total: int
    held_out: int = 20


@dataclass(frozen=True)
class Scored:
    """An evaluated individual; ``held_out`` where it came that far."""

    index: int
    individual: Individual
    score: float
    held_out: float | None = None


@dataclass
class Search:
    """One search: "train" is the part of the task that is searched on, "dev" the held-out one."""

    space: Space
    limits: Limits
    operators: Operators
    seed: int
    workers: int
    evaluator: Evaluator
    store: Store
    how: Settings = field(default_factory=Settings)
    redrawn: int = 0
    _pruned: bool = False
    _found: list[Scored] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def run(self, tick: Tick) -> list[Scored]:
        """Every individual in the order of evaluation."""
        while len(self._found) < self.limits.total:
            first = len(self._found)
            last = min(first + self.workers, self.limits.total)
            drawn = [self._child(index) for index in range(first, last)]
            children = [child for child in drawn if child is not None]
            if not children:
                break
            places = range(first, first + len(children))
            scores = self._scores("train", places, children, tick)
            self._found += map(Scored, places, children, scores)
        return list(self._found)

    def pick(self, found: Sequence[Scored], tick: Tick) -> Scored:
        """The best on held-out items among those best in training, or the best in training."""
        best = sorted(found, key=lambda one: (-one.score, one.index))
        if not self.limits.held_out:
            return best[0]
        front = best[: self.limits.held_out]
        places = [one.index for one in front]
        scores = self._scores("dev", places, [one.individual for one in front], tick)
        judged = [
            Scored(one.index, one.individual, one.score, score)
            for one, score in zip(front, scores, strict=True)
        ]
        return max(judged, key=lambda one: (one.held_out or 0.0, one.score, -one.index))

    def _scores(
        self, part: str, places: Sequence[int], members: Sequence[Individual], tick: Tick
    ) -> list[float]:
        """Scores out of the store, the missing ones worked out and put there."""
        names = [f"{part}-{place:05d}" for place in places]
        held = [self.store.score(n, m) for n, m in zip(names, members, strict=True)]
        missing = [place for place, score in enumerate(held) if score is None]
        for start in range(0, len(missing), self.workers):
            some = missing[start : start + self.workers]
            scores = self.evaluator.scores([members[place] for place in some], part)
            for place, score in zip(some, scores, strict=True):
                self.store.add(names[place], members[place], score)
                held[place] = score
                tick()
        for _ in range(len(members) - len(missing)):
            tick()
        return [score for score in held if score is not None]

    def _child(self, index: int) -> Individual | None:
        """A new individual for place ``index``, or ``None`` where none is found."""
        draws = SeededDraws(f"{self.seed}:{index}")
        population = self._population(draws)
        if not self._merging(index):
            child = self._new_child(index, population, False, draws)
            if child is not None or self.limits.total == self.limits.pruning:
                return child
            self._pruned = True
        return self._new_child(index, population, True, draws)

    def _merging(self, index: int) -> bool:
        return self._pruned or index >= self.limits.pruning

    def _new_child(
        self, index: int, population: Population, merging: bool, draws: Draws
    ) -> Individual | None:
        for _ in range(_MOST_DRAWS):
            child = self._draw(index, population, merging, draws)
            digest = child.digest()
            if digest not in self._known and child.can_route and child.is_finite:
                self._known.add(digest)
                return child
            self.redrawn += 1
        return None

    def _population(self, draws: Draws) -> Population:
        order = shuffle_ties([one.score for one in self._found], draws)
        members = [self._found[place] for place in order]
        return Population([one.individual for one in members], [one.score for one in members])

    def _draw(self, index: int, population: Population, merging: bool, draws: Draws) -> Individual:
        space = self.space
        size = (space.n_groups, space.n_slots, space.n_experts)
        if not len(population) and space.n_slots == space.n_experts:
            return identity(space.n_groups, space.n_experts)
        if not len(population) or (index < INITIAL and not merging):
            return new_individual(*size, draws)
        if self.operators == "paper":
            return paper_child(population, merging, self.how, draws)
        child = merge_child if merging else prune_child
        return child(population, self.how, draws)
