"""Where tokens stand that are not simply one after the other.

Continuations of one prompt can stand beside one another behind it, each seeing the prompt and
itself only; a new token can follow keys and values kept from before. N rows, T tokens of a
row, S tokens that may be seen: those kept before, then the row's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Placing:
    """Positions of the tokens and of all that may be seen, and what each token sees."""

    positions_NT: torch.Tensor
    seen_positions_NS: torch.Tensor
    seen_NTS: torch.Tensor
    # transformers' cache of keys and values, which grows as it is used.
    cache: Any = None
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        """What attention adds to its scores, float32 ``[N, 1, T, S]``; the same for many layers."""
        if window not in self._masks:
            seen_NTS = self.seen_NTS
            if window is not None:
                back_NTS = self.positions_NT[:, :, None] - self.seen_positions_NS[:, None]
                seen_NTS = seen_NTS & (back_NTS < window)
            zeros = torch.zeros(seen_NTS.shape)
            self._masks[window] = zeros.masked_fill(~seen_NTS, float("-inf"))[:, None]
        return self._masks[window]


class Tree:
    """Rows of token ids that share their beginnings, every shared token there once."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, row: Sequence[int]) -> list[int]:
        """Where in the tree each token of ``row`` stands."""
        path: list[int] = []
        for depth, token in enumerate(row):
            parent = path[-1] if path else -1
            if (parent, token) not in self._children:
                self._children[parent, token] = len(self.tokens)
                self.tokens.append(token)
                self.depths.append(depth)
                self._parents.append(parent)
            path.append(self._children[parent, token])
        return path

    def seen(self, size: int) -> torch.Tensor:
        """What each token sees, bool ``[size, size]``: those it follows, and itself."""
        seen_TT = torch.eye(size, dtype=torch.bool)
        for place, parent in enumerate(self._parents):
            if parent >= 0:
                seen_TT[place] |= seen_TT[parent]
        return seen_TT


def place_trees(trees: Sequence[Tree]) -> tuple[torch.Tensor, Placing]:
    """One row of ids per tree, int64 ``[N, T]``, padded on the right, and their places."""
    size = max(map(len, trees))
    ids_NT = torch.tensor([_padded(tree.tokens, size) for tree in trees])
    positions_NT = torch.tensor([_padded(tree.depths, size) for tree in trees])
    seen_NTT = torch.stack([tree.seen(size) for tree in trees])
    return ids_NT, Placing(positions_NT, positions_NT, seen_NTT)


def _padded(values: Sequence[int], size: int) -> list[int]:
    return [*values, *[0] * (size - len(values))]
