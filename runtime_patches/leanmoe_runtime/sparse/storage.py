"""Packed experts in memory, in the order in which the kernel reads them.

Files keep a matrix row by row; the kernel takes 4 rows at a time, group by group (products.h). E
experts, R rows, G groups of 32 weights, V values and B bytes of mask of a row.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import numpy as np
import torch

from leanmoe.sparse.packing import Overflow
from leanmoe.sparse.sparse_format import GROUP

TILE_ROWS, BLOCK_ROWS = 4, 32
# Bytes of a group's mask.
MASK_BYTES = GROUP // 8


def empty_pages(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An empty tensor of the host in huge pages, where there are any: they are read faster."""
    size = prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype, count=prod(shape)).view(*shape)


def first_kept(shape: Sequence[int], keep: int) -> torch.Tensor:
    """Masks ``[E, R, B]`` of the first weights of each group: what nothing was loaded over."""
    bits = (1 << keep) - 1
    group = torch.tensor(list(bits.to_bytes(MASK_BYTES, "little")), dtype=torch.uint8, device="cpu")
    mask_ERB = empty_pages(shape, torch.uint8)
    mask_ERB.view(-1, MASK_BYTES).copy_(group)
    return mask_ERB


def put_rows(stored_RX: torch.Tensor, rows_RX: torch.Tensor, groups: int) -> None:
    """Put the rows of a file where the kernel finds them.

    ``X`` are values or bytes of mask, equally many in each group.
    """
    count, width = rows_RX.shape
    tiles, of_group = count // TILE_ROWS, width // groups
    placed = stored_RX.view(tiles, groups, TILE_ROWS, of_group)
    placed.copy_(rows_RX.view(tiles, TILE_ROWS, groups, of_group).transpose(1, 2))


def put_half(stored_RX: torch.Tensor, half: int, rows_RX: torch.Tensor, groups: int) -> None:
    """Put the rows of gate (``half`` 0) or up projection (1) beside those of the other.

    Blocks of 32 rows of each lie in turn: a thread reads both of a block.
    """
    count, width = rows_RX.shape
    blocks = stored_RX.view(count // BLOCK_ROWS, 2, BLOCK_ROWS, width)
    for block, rows in enumerate(rows_RX.view(count // BLOCK_ROWS, BLOCK_ROWS, width)):
        put_rows(blocks[block, half], rows, groups)


def joined(listed: Sequence[Overflow], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Overflow lists of the rows of all experts as one: starts ``[E * R + 1]``, columns, values."""
    counts = np.concatenate([np.diff(one.rows) for one in listed])
    starts = np.concatenate([np.zeros(1, np.int64), counts.cumsum(dtype=np.int64)])
    columns_N = np.concatenate([one.columns_N for one in listed])
    words_N = np.concatenate([one.values_N for one in listed])
    values_N = torch.from_numpy(words_N.view(f"i{dtype.itemsize}")).view(dtype)
    return torch.from_numpy(starts), torch.from_numpy(columns_N), values_N
