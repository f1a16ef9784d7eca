"""How a GPU computes packed experts, by how many tokens an expert gets.

The crossover was found by a kernel experiment on one H200 (2026-11-27: Mixtral's shape, 16:32, two
experts of T tokens each): CUDA cores took 0.62 of the dense kernel's time at T = 1 and 2 where
tensor cores took 0.75, and 0.85 against 0.76 at T = 4; at T = 16 tensor cores took 0.93. These
kernels themselves were **not yet measured on a GPU**.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

# Mean tokens of an expert up to which its values are gathered on CUDA cores.
GATHER_ROWS = 1
# Up to so many tokens a step no expert can have more than are gathered at a time.
GATHER_TOKENS = 2
# Mean tokens of an expert up to which its weights are expanded piecewise on tensor cores.
TENSOR_ROWS = 16
# Pairs of token and expert that a block sorts by itself (cuda/step.cuh, FEW_PAIRS).
FEW_PAIRS = 128
_NARROW, _WIDE = 8, 16


class Way(IntEnum):
    """What computes a step; the first two as the library counts them."""

    GATHER = 0
    TENSOR = 1
    DENSE = 2


@dataclass(frozen=True)
class Regime:
    """``per_item`` pairs of an expert are computed together, in ``items`` at most."""

    way: Way
    per_item: int = 0
    items: int = 0


def regime_of(tokens: int, top_k: int, experts: int, *, gathers: bool) -> Regime:
    """By sizes alone, as a captured graph needs it.

    ``gathers``: whether values can be gathered, which 2:4 has no kernel for and very wide inputs no
    shared memory.
    """
    tokens = max(tokens, 1)
    pairs = tokens * top_k
    if pairs > TENSOR_ROWS * experts and tokens > TENSOR_ROWS:
        return Regime(Way.DENSE)
    few = tokens <= GATHER_TOKENS or pairs <= GATHER_ROWS * experts
    if gathers and few and pairs <= FEW_PAIRS:
        return _of(Way.GATHER, min(tokens, GATHER_TOKENS), pairs, experts)
    # Twice the mean is what busy experts get.
    wide = min(tokens, 2 * pairs // experts) > _NARROW
    return _of(Way.TENSOR, _WIDE if wide else _NARROW, pairs, experts)


def _of(way: Way, per_item: int, pairs: int, experts: int) -> Regime:
    return Regime(way, per_item, min(pairs, experts + pairs // per_item))
