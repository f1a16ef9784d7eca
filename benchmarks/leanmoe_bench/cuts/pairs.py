"""Cuts of the fine-grained reference model by chance that spare its pairs of experts, or do not.

Its sixteen experts are eight pairs, 2g and 2g + 1, of which both learned one group's text. What
these cuts cost says whether it matters that a group keeps an expert.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

APART, TOGETHER = "random, one of a pair", "random, whole pairs"


def kept_by_pairs(layers: Sequence[int], keep: int, method: str, seed: int) -> dict[int, list[int]]:
    """The experts of each layer that stay, of eight pairs, ``16 - keep`` of them gone.

    ``APART`` takes one of as many pairs, ``TOGETHER`` both of half as many.
    """
    drawn, gone = random.Random(seed), 16 - keep
    kept = {}
    for layer in layers:
        pairs = drawn.sample(range(8), gone if method == APART else gone // 2)
        own = {2 * pair + drawn.randrange(2) for pair in pairs}
        removed = own if method == APART else own | {expert ^ 1 for expert in own}
        kept[layer] = [expert for expert in range(16) if expert not in removed]
    return kept
