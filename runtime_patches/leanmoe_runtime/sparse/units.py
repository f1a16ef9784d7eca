"""Packed experts in a GPU's memory, in the order in which its kernels read them (cuda/step.cuh).

A group of 32 weights falls to a lane of a warp, 32 groups are a unit: R rows of L groups. The units
of R rows follow each other. A group's values lie from its last column to its first, 8 to a vector,
and a vector of all lanes in a row; ``keep`` is a multiple of 8, filled up with zeros. 2:4 has units
of 16 rows and 64 columns, as fragments of ``mma.sp`` (cuda/pairs.cuh). Values are of two bytes, or
float8 codes of one. Rows of gate and up projection lie in turn. E experts, R rows, C columns, G
groups, N entries of an overflow list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from leanmoe.errors import RuntimeSeamError
from leanmoe.sparse.packing import Overflow, Packed, to_indices
from leanmoe.sparse.sparse_format import GROUP, SparseFormat

LANES = 32
VECTOR = 8
MOST_KEPT = 24
FOUR, TILE_ROWS, STEPS = 4, 16, 2
_FOURS_OF_STEP = 8
# Bytes that x may take in shared memory where rows that share a unit each have a copy.
_COPIED_BYTES = 64 << 10
# The nibble of 2:4 for the first two of four weights.
_FIRST_TWO = 0b0100


@dataclass(frozen=True)
class Units:
    """How a matrix ``[rows, columns]`` lies; ``keep`` is 0 for 2:4."""

    rows: int
    columns: int
    keep: int
    lanes: int
    across: int

    @classmethod
    def of(cls, how: SparseFormat, rows: int, columns: int) -> Units:
        """Raises ``RuntimeSeamError`` for a pattern that is not computed."""
        if how.layout == "indices":
            return cls(rows, columns, 0, LANES, -(-columns // (STEPS * GROUP)))
        keep = -(-how.keep // VECTOR) * VECTOR
        if keep > MOST_KEPT:
            raise RuntimeSeamError(
                f"packed experts that keep {how.keep} of {GROUP} weights are not computed on a "
                f"GPU, which knows up to {MOST_KEPT}; `leanmoe unpack` the model"
            )
        groups = columns // GROUP
        lanes = _lanes_of(groups)
        return cls(rows, columns, keep, lanes, -(-groups // lanes))

    @property
    def unit_rows(self) -> int:
        return LANES // self.lanes if self.keep else TILE_ROWS

    @property
    def padded(self) -> int:
        """Columns with those that fill up the last unit."""
        return self.across * (self.lanes * GROUP if self.keep else STEPS * GROUP)

    @property
    def count(self) -> int:
        return self.rows // self.unit_rows * self.across

    @property
    def values_per_row(self) -> int:
        return self.padded // GROUP * (self.keep or GROUP // 2)

    @property
    def gather_bytes(self) -> int:
        """Shared memory that x takes (cuda/gather.cuh)."""
        return self.across * (GROUP + 1) * LANES * 4

    def empty_values(self, experts: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Room for the values of all experts, ``[E, R, V]`` by size."""
        return torch.empty(experts, self.rows, self.values_per_row, dtype=dtype, device=device)

    def empty_mask(self, experts: int, kept: int, device: torch.device) -> torch.Tensor:
        """Room for masks (2:4: places), of the first weights of each group until loaded over."""
        word = (1 << kept) - 1 if self.keep else _FIRST_TWO * 0x11111111
        words = np.full(1, word, np.uint32).view(np.int32)[0]
        size = (experts, self.rows, self.padded // GROUP)
        mask = torch.full(size, int(words), dtype=torch.int32, device=device)
        return mask.view(torch.uint8)


def _lanes_of(groups: int) -> int:
    """Groups of a row that a unit holds: as a row divides, and x fits with its copies."""
    for lanes in (32, 16, 8, 4):
        if groups % lanes == 0 and groups * GROUP * (LANES // lanes) * 4 <= _COPIED_BYTES:
            return lanes
    return 4 if groups * GROUP * (LANES // 4) * 4 <= _COPIED_BYTES else LANES


def put_matrix(
    units: Units,
    stored: tuple[torch.Tensor, torch.Tensor],
    packed: Packed,
    half: int | None,
) -> None:
    """Put an expert's matrix where the kernels read its values and mask.

    ``half`` 0 is the gate, 1 the up projection, whose rows lie in turn; ``None`` stands alone.
    """
    if units.keep:
        _put_groups(units, *stored, packed, half)
    else:
        _put_fours(units, *stored, packed, half)


def _on(device: torch.device, words: NDArray[Any], kind: type) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(words).view(kind)).to(device)


def _words_on(device: torch.device, words: NDArray[Any]) -> torch.Tensor:
    """Values as signed words of their size, which torch knows."""
    return _on(device, words, np.int8 if words.itemsize == 1 else np.int16)


def _put_groups(
    units: Units, values: torch.Tensor, mask: torch.Tensor, packed: Packed, half: int | None
) -> None:
    lanes, across, rows = units.lanes, units.across, len(packed.mask_RB)
    vectors, groups = units.keep // VECTOR, packed.mask_RB.shape[1] * 8 // GROUP
    source = _words_on(values.device, packed.values_RV).view(rows, groups, -1).flip(2)
    more = (0, units.keep - source.shape[2], 0, across * lanes - groups)
    source = pad(source, more).view(rows, across, lanes, vectors, VECTOR).transpose(2, 3)
    stored = values.view(source.dtype).view(-1, across, vectors, LANES, VECTOR)
    _put_rows(units, stored, source, half)
    words = _on(mask.device, packed.mask_RB, np.int32).view(rows, groups)
    words = pad(words, (0, across * lanes - groups)).view(rows, across, 1, lanes, 1)
    _put_rows(units, mask.view(torch.int32).view(-1, across, 1, LANES, 1), words, half)


def _put_rows(units: Units, stored: torch.Tensor, source: torch.Tensor, half: int | None) -> None:
    """``stored [blocks, across, X, 32, Y]`` from ``source [rows, across, X, lanes, Y]``."""
    shared, lanes = units.unit_rows, units.lanes
    if half is None:
        rows = source.view(-1, shared, *source.shape[1:])
        stored.view(*stored.shape[:3], shared, lanes, -1).copy_(rows.permute(0, 2, 3, 1, 4, 5))
    elif shared == 1:
        stored.view(-1, 2, *stored.shape[1:])[:, half].copy_(source)
    else:
        rows = source.view(-1, shared // 2, *source.shape[1:])
        places = stored.view(*stored.shape[:3], shared // 2, 2, lanes, -1)
        places[..., half, :, :].copy_(rows.permute(0, 2, 3, 1, 4, 5))


def _put_fours(
    units: Units, values: torch.Tensor, mask: torch.Tensor, packed: Packed, half: int | None
) -> None:
    """Fragments: see cuda/pairs.cuh for the order."""
    rows, columns = len(packed.mask_RB), packed.mask_RB.shape[1] * 8
    tiles, more = units.rows // TILE_ROWS, (units.padded - columns) // FOUR
    # Rows of a tile: its halves, then rows of it; those of gate and up lie in turn.
    turns = 1 if half is None else 2
    split = (tiles, 2, 8 // turns, units.across, STEPS)
    source = _words_on(values.device, packed.values_RV).view(rows, -1, 2)
    # Of eight fours: b, then the pair of registers, then a, where a lane is 2 a + b of four.
    source = pad(source, (0, 0, 0, more)).view(*split, 2, 2, 2, 2)
    fragments = source.permute(0, 3, 4, 2, 7, 5, 6, 1, 8)
    stored = values.view(source.dtype).view(tiles, units.across, STEPS, 8 // turns, turns, *[2] * 5)
    stored[:, :, :, :, half or 0].copy_(fragments)
    bytes_RB = torch.from_numpy(to_indices(packed.mask_RB)).to(mask.device)
    nibbles = torch.stack([bytes_RB & 15, bytes_RB >> 4], dim=-1).view(rows, -1)
    nibbles = pad(nibbles, (0, more), value=_FIRST_TWO).view(*split, 2, 2, 2)
    # Four l of a fragment is the source's 4 (l % 2) + l // 2; a word holds four of two rows.
    order = nibbles.permute(0, 3, 2, 4, 6, 1, 7, 5)
    words = order[..., 0] | order[..., 1] << 4
    places = mask.view(torch.uint8).view(tiles, units.across, 8 // turns, turns, STEPS, 2, 2, 2)
    places[:, :, :, half or 0].copy_(words)


def entries(
    units: Units, listed: Sequence[Sequence[Overflow]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overflow lists of all experts, an expert's gate and up rows in turn: starts and entries.

    Starts ``[E * units * R + 1]`` count by unit and row; an entry is a value, its place in a group
    and the lane of the group.
    """
    counts, words = zip(*(_of_expert(units, one) for one in listed), strict=True)
    starts = np.concatenate([np.zeros(1, np.int64), np.concatenate(counts).cumsum()])
    if starts[-1] >= 1 << 31:
        raise RuntimeSeamError(
            f"{starts[-1]} weights of a layer lie in overflow lists, expected less than 2^31; "
            "pack the model with a pattern of N:32"
        )
    found = torch.from_numpy(np.concatenate(words).view(np.int32)).to(device)
    return torch.from_numpy(starts.astype(np.int32)).to(device), found


def _of_expert(
    units: Units, halves: Sequence[Overflow]
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    turns, lanes, shared = len(halves), units.lanes, units.unit_rows
    rows = np.concatenate(
        [
            np.repeat(np.arange(len(one.rows) - 1), np.diff(one.rows)) * turns + half
            for half, one in enumerate(halves)
        ]
    )
    columns = np.concatenate([one.columns_N for one in halves]).astype(np.int64)
    values = np.concatenate([one.values_N for one in halves]).astype(np.uint32)
    groups, inner = columns // GROUP, rows % shared
    at = ((rows // shared) * units.across + groups // lanes) * shared + inner
    order = np.argsort(at, kind="stable")
    words = values << 16 | (columns % GROUP << 5 | inner * lanes + groups % lanes).astype(np.uint32)
    return np.bincount(at, minlength=units.count * shared), words[order]
