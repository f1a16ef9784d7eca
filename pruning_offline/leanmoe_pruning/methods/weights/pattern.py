"""Which of a matrix's weights are zeroed, given their scores: a share per row, or N of every M.

Weights are compared within an output row only. Where scores are equal the smaller weight goes,
then the one that stands first, so that columns without any input are not zeroed by their order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import torch

from leanmoe.errors import InputError

MAX_GROUP = 64


class Pattern(Protocol):
    """A rule of comparison."""

    @property
    def tag(self) -> str:
        """Its name in the golden sets, ``unstructured50`` or ``2of4``."""
        ...

    @property
    def text(self) -> str:
        """Its name on the command line and in the manifest."""
        ...

    def check(self, columns: int, where: str) -> None:
        """Raise ``InputError`` where rows of that many weights cannot follow it."""
        ...

    def keep(self, score: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        """What stays, bool ``[rows, columns]``; ``size`` are the weights' absolute values."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """The lowest share of each row is zeroed."""

    sparsity: float

    @property
    def tag(self) -> str:
        return f"unstructured{100 * self.sparsity:g}"

    @property
    def text(self) -> str:
        return f"{self.sparsity:g}"

    def check(self, columns: int, where: str) -> None:
        if self.dropped(columns) == 0:
            raise InputError(
                f"--sparsity {self.sparsity:g} zeroes none of the {columns} weights in a row of "
                f"{where}; give more"
            )

    def dropped(self, columns: int) -> int:
        return int(columns * self.sparsity)

    def keep(self, score: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        count = self.dropped(score.shape[1])
        if count == 0:
            return torch.ones_like(score, dtype=torch.bool)
        edge = score.kthvalue(count, dim=1, keepdim=True)[0]
        keep = score > edge
        tied = (~keep).sum(1) > count
        if tied.any():
            keep[tied] = _keep_by_order(score[tied], size[tied], count)
        return keep


def _keep_by_order(score: torch.Tensor, size: torch.Tensor, count: int) -> torch.Tensor:
    by_size = size.argsort(dim=1, stable=True)
    order = by_size.gather(1, score.gather(1, by_size).argsort(dim=1, stable=True))
    return torch.ones_like(score, dtype=torch.bool).scatter_(1, order[:, :count], False)


@dataclass(frozen=True)
class OfEvery:
    """Of every ``group`` consecutive weights of a row the lowest ``dropped`` are zeroed."""

    dropped: int
    group: int

    @property
    def tag(self) -> str:
        return f"{self.dropped}of{self.group}"

    @property
    def text(self) -> str:
        return f"{self.dropped}:{self.group}"

    def check(self, columns: int, where: str) -> None:
        if columns % self.group:
            raise InputError(
                f"--pattern {self.text} does not fit {where}: its rows have {columns} weights, "
                f"no multiple of {self.group}; give another pattern or --sparsity"
            )

    def keep(self, score: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        # One contiguous plane per place in the group: comparing planes ranks all groups at once.
        score_MG = score.reshape(-1, self.group).t().contiguous()
        size_MG = size.reshape(-1, self.group).t().contiguous()
        below_MG = torch.zeros(score_MG.shape, dtype=torch.uint8)
        for late in range(self.group):
            for early in range(late):
                same_G = score_MG[late] == score_MG[early]
                lower_G = score_MG[late] < score_MG[early]
                lower_G |= same_G & (size_MG[late] < size_MG[early])
                below_MG[early] += lower_G
                below_MG[late] += ~lower_G
        return (below_MG >= self.dropped).t().reshape(score.shape)


_WRITTEN = re.compile(r"([0-9]{1,3}):([0-9]{1,3})")


def read_pattern(sparsity: float | None, pattern: str | None) -> Pattern:
    """The rule that ``--sparsity`` or ``--pattern`` asks for."""
    if (sparsity is None) == (pattern is None):
        given = "neither was given" if sparsity is None else "both were given"
        raise InputError(f"give --sparsity SHARE or --pattern N:M to say what is zeroed; {given}")
    if sparsity is not None:
        if not 0 < sparsity < 1:
            raise InputError(
                f"--sparsity is {sparsity}, expected the share to zero, above 0 and below 1"
            )
        return Unstructured(sparsity)
    match = _WRITTEN.fullmatch(pattern or "")
    dropped, group = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < dropped < group <= MAX_GROUP:
        raise InputError(
            f"--pattern is {pattern!r}, expected N:M with N of every M weights zeroed, as 2:4 "
            f"(M at most {MAX_GROUP})"
        )
    return OfEvery(dropped, group)
