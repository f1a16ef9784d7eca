"""The random draws of the released operators, in the terms they are recorded in."""

from __future__ import annotations

import random
from typing import Protocol


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
