"""Which of a matrix's weights are kept, given their scores: a share of each row, or N of every M.

Weights are compared within an output row only. Where scores are equal the smaller weight goes,
then the one that stands first, so that columns without any input are not zeroed by their order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

import torch

from leanmoe.errors import CheckpointError, InputError

MAX_GROUP = 64
# In groups up to this size comparing each pair of places is faster than selecting.
_SMALL_GROUP = 8


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


def _plain(number: Decimal) -> str:
    """All its digits and no exponent: 0.9999999 is not 1."""
    return f"{number.normalize():f}"


@dataclass(frozen=True)
class Unstructured:
    """The lowest share of each row is zeroed."""

    sparsity: float

    @property
    def tag(self) -> str:
        return f"unstructured{_plain(100 * Decimal(repr(self.sparsity)))}"

    @property
    def text(self) -> str:
        return _plain(Decimal(repr(self.sparsity)))

    def check(self, columns: int, where: str) -> None:
        if self.dropped(columns) == 0:
            raise InputError(
                f"--sparsity {self.text} zeroes none of the {columns} weights in a row of "
                f"{where}; give more"
            )

    def dropped(self, columns: int) -> int:
        return int(columns * self.sparsity)

    def keep(self, score: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        return _keep_highest(score, size, self.dropped(score.shape[1]))


def _keep_highest(score: torch.Tensor, size: torch.Tensor, dropped: int) -> torch.Tensor:
    """All but the lowest ``dropped`` of each row."""
    if dropped == 0:
        return torch.ones_like(score, dtype=torch.bool)
    keep = score > score.kthvalue(dropped, dim=1, keepdim=True)[0]
    tied = (~keep).sum(1) > dropped
    if tied.any():
        keep[tied] = _keep_by_order(score[tied], size[tied], dropped)
    return keep


def _keep_by_order(score: torch.Tensor, size: torch.Tensor, count: int) -> torch.Tensor:
    by_size = size.argsort(dim=1, stable=True)
    order = by_size.gather(1, score.gather(1, by_size).argsort(dim=1, stable=True))
    return torch.ones_like(score, dtype=torch.bool).scatter_(1, order[:, :count], False)


@dataclass(frozen=True)
class OfEvery:
    """Of every ``group`` consecutive weights of a row the highest ``kept`` stay: N:M keeps N of M.

    A row may be grouped in another order than it is stored in: see ``keep_in_order``.
    """

    kept: int
    group: int

    @property
    def dropped(self) -> int:
        return self.group - self.kept

    @property
    def tag(self) -> str:
        return f"{self.kept}of{self.group}"

    @property
    def text(self) -> str:
        return f"{self.kept}:{self.group}"

    def check(self, columns: int, where: str) -> None:
        if columns % self.group:
            raise InputError(
                f"--pattern {self.text} does not fit {where}: its rows have {columns} weights, "
                f"no multiple of {self.group}; give another pattern or --sparsity"
            )

    def keep(self, score: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        if self.group > _SMALL_GROUP:
            groups = (score.reshape(-1, self.group), size.reshape(-1, self.group))
            return _keep_highest(*groups, self.dropped).view(score.shape)
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

    def check_followed(self, weight: torch.Tensor, order: torch.Tensor | None, where: str) -> None:
        """Raise ``CheckpointError`` where a matrix ``[rows, columns]`` holds more than it keeps.

        ``order`` is the order its columns are grouped in, new position to column.
        """
        self.check(weight.shape[1], where)
        used = weight != 0
        grouped = used if order is None else used[:, order]
        held = grouped.view(len(used), -1, self.group).sum(-1)
        if bool((held > self.kept).any()):
            row, group = (held > self.kept).nonzero()[0].tolist()
            raise CheckpointError(
                f"{where} breaks the pattern {self.text}: group {group} of row {row} holds "
                f"{int(held[row, group])} weights that are not zero, expected at most "
                f"{self.kept}; prune the source again"
            )


def keep_in_order(
    pattern: Pattern, score: torch.Tensor, size: torch.Tensor, order: torch.Tensor | None
) -> torch.Tensor:
    """What stays where columns are grouped in ``order``, in the order they are stored in."""
    if order is None:
        return pattern.keep(score, size)
    keep = torch.empty(score.shape, dtype=torch.bool)
    keep[:, order] = pattern.keep(score[:, order], size[:, order])
    return keep


DEFAULT = OfEvery(16, 32)
_HALF = 0.5
_UNSTRUCTURED = "unstructured"
_WRITTEN = re.compile(r"([0-9]{1,3}):([0-9]{1,3})")


def read_pattern(sparsity: float | None, pattern: str | None) -> Pattern:
    """The rule that ``--sparsity`` or ``--pattern`` asks for, ``DEFAULT`` where neither does."""
    if pattern is None and sparsity is None:
        return DEFAULT
    if pattern is None or pattern == _UNSTRUCTURED:
        return _unstructured(_HALF if sparsity is None else sparsity)
    found = _of_every(pattern)
    if sparsity is not None:
        raise InputError(
            f"--pattern {found.text} says what share is kept and --sparsity {sparsity} was given "
            "too; both were given, drop one"
        )
    return found


def _unstructured(sparsity: float) -> Unstructured:
    if not 0 < sparsity < 1:
        raise InputError(
            f"--sparsity is {sparsity}, expected the share to zero, above 0 and below 1"
        )
    return Unstructured(sparsity)


def _of_every(pattern: str) -> OfEvery:
    match = _WRITTEN.fullmatch(pattern)
    kept, group = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < kept < group <= MAX_GROUP:
        raise InputError(
            f"--pattern is {pattern!r}, expected N:M with N of every M weights kept, as 16:32 "
            f"(M at most {MAX_GROUP}), or {_UNSTRUCTURED}"
        )
    return OfEvery(kept, group)
