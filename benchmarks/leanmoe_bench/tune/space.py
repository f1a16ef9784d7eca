"""Which tiles are worth timing at a batch size, those nearest to vLLM's own choice first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from leanmoe.tuned_tables import Tiles
from leanmoe_bench.tune.kernel_shapes import TuneShape

# From so many rows on Hopper multiplies by other instructions (wgmma), which sum in another order.
_WIDE_M = 64
_M = (16, 32, 64, 128)
_N = (32, 64, 128, 256)
_K = (64, 128, 256)
_GROUPS = (1, 16)
_WARPS = (4, 8)
_STAGES = (2, 3, 4, 5)


def candidates(
    shape: TuneShape, batch: int, own: Tiles, others: Sequence[Tiles], shared_bytes: int
) -> list[Tiles]:
    """``own``, vLLM's choice, then ``others``, then the grid by its distance from these.

    Rows of tiles stay on ``own``'s side of the instructions that change with them: a tile of the
    other side would round otherwise, and level 0 is to give the bits that stock gives.
    """
    first = list(dict.fromkeys([own, *(one for one in others if _same_side(one, own))]))
    grid = [tiles for tiles in _grid(shape, batch, own) if _fits(tiles, shape, shared_bytes)]
    new = sorted(set(grid) - set(first), key=lambda one: (_distance(one, first), str(one)))
    return [*first, *new]


def _same_side(tiles: Tiles, own: Tiles) -> bool:
    return (tiles.BLOCK_SIZE_M < _WIDE_M) == (own.BLOCK_SIZE_M < _WIDE_M)


def _grid(shape: TuneShape, batch: int, own: Tiles) -> Iterator[Tiles]:
    block = shape.weights.block_shape
    # No expert is given more rows than the batch has tokens.
    most = max(own.BLOCK_SIZE_M, _M[0], 1 << (batch - 1).bit_length())
    for m, n, k, group, warps, stages in product(_M, _N, _K, _GROUPS, _WARPS, _STAGES):
        tiles = Tiles(
            BLOCK_SIZE_M=m,
            BLOCK_SIZE_N=n,
            BLOCK_SIZE_K=k,
            GROUP_SIZE_M=group,
            num_warps=warps,
            num_stages=stages,
        )
        in_block = block is None or (block[0] % n == 0 and block[1] % k == 0)
        if m <= most and in_block and _same_side(tiles, own):
            yield tiles


def _fits(tiles: Tiles, shape: TuneShape, shared_bytes: int) -> bool:
    """Not surely too large for shared memory or registers, nor smaller than its warps' products."""
    m, n, k = tiles.BLOCK_SIZE_M, tiles.BLOCK_SIZE_N, tiles.BLOCK_SIZE_K
    staged = (tiles.num_stages - 1) * (m * k + k * n) * shape.weights.bytes
    sums_per_thread = m * n // (32 * tiles.num_warps)
    return staged <= shared_bytes and 4 <= sums_per_thread <= 128


def _distance(tiles: Tiles, first: Sequence[Tiles]) -> int:
    """In how many settings it differs from the nearest of ``first``."""
    own = tiles.keys()
    return min(sum(own[key] != one.keys().get(key) for key in own) for one in first)
