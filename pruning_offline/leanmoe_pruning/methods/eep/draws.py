"""What the search leaves to chance: the draws, and the probabilities they are held against.

Draws are named in the terms that runs of the released operators are recorded in; the numbers are
those of the released ``search.yml``, and scores run from 0 to 100: thresholds are in points.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol


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


class Draws(Protocol):
    """Where operators take their chance from."""

    def uniform(self) -> float:
        """From [0, 1)."""
        ...

    def gauss(self) -> float:
        """From N(0, 1)."""
        ...

    def randint(self, low: int, high: int) -> int:
        """Both ends may come."""
        ...

    def sample(self, n: int, count: int) -> list[int]:
        """``count`` different numbers below ``n``, in the order drawn."""
        ...

    def shuffle(self, n: int) -> list[int]:
        """The numbers below ``n`` in random order."""
        ...


class SeededDraws:
    """Python's own generator: the released code seeds the module-level one with the same call."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def uniform(self) -> float:
        return self._random.uniform(0, 1)

    def gauss(self) -> float:
        return self._random.gauss(0, 1)

    def randint(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def sample(self, n: int, count: int) -> list[int]:
        return self._random.sample(range(n), count)

    def shuffle(self, n: int) -> list[int]:
        order = list(range(n))
        self._random.shuffle(order)
        return order
