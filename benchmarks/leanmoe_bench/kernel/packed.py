"""Times packed experts against vLLM's dense CPU kernel, threads and all.

``command.py`` runs it in a process with the engine's environment: it prints raw seconds, a
JSON object for each number of rows. Weights and masks are random and larger than the caches, every
group balanced; routing is uniform. What memory can do is timed in the same turns: a large copy,
which reads and writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from leanmoe.sparse.scale_blocks import Blocks
from leanmoe.sparse.sparse_format import GROUP, SparseFormat
from leanmoe_bench.kernel.crossover import ROWS, dense_kernel, seconds_per_way
from leanmoe_bench.printed import put
from leanmoe_runtime.sparse.kernel import PackedExperts, PackedProjection, Scales
from leanmoe_runtime.sparse.storage import empty_pages

COPIED = 1 << 28
# Masks to draw from; each is of one group.
_MASKS = 4096
# Positive codes that are numbers.
_CODES = 0x7F


def _projection(
    experts: int, rows: int, columns: int, keep: int, halves: int, *, float8: bool
) -> PackedProjection:
    dtype = torch.float8_e4m3fn if float8 else torch.bfloat16
    values = empty_pages((experts, rows, columns // GROUP * keep), dtype)
    if float8:
        values.view(torch.uint8).random_(0, _CODES)
    else:
        values.normal_(0.0, 0.02)
    ranks = torch.rand(_MASKS, GROUP).argsort(1).numpy()
    pool = np.packbits(ranks < keep, axis=1, bitorder="little").view(np.int32)
    mask = empty_pages((experts, rows, columns // 8), torch.uint8)
    words = mask.view(torch.int32)
    drawn = torch.randint(_MASKS, words.shape, dtype=torch.int32)
    words.copy_(torch.from_numpy(pool.reshape(-1))[drawn.long()])
    if not float8:
        return PackedProjection(values, mask)
    blocks = Blocks()
    numbers = torch.rand(experts, halves, *blocks.count(rows // halves, columns)) * 1e-4
    return PackedProjection(values, mask, scales=Scales(numbers, blocks))


def _packed(layer: dict[str, Any], keep: int, *, float8: bool) -> Callable[..., torch.Tensor]:
    experts, hidden, ffn = layer["experts"], layer["hidden"], layer["ffn"]
    gate_up = _projection(experts, 2 * ffn, hidden, keep, 2, float8=float8)
    down = _projection(experts, hidden, ffn, keep, 1, float8=float8)
    # As a pattern with input orders has it, which costs a little more.
    orders = torch.stack([torch.randperm(hidden, dtype=torch.int32) for _ in range(experts)])
    return PackedExperts(gate_up, down, orders, "silu")


def _step(layer: dict[str, Any], rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(rows)
    experts, top_k = layer["experts"], layer["top_k"]
    ids = np.stack([random.permutation(experts)[:top_k] for _ in range(rows)]).astype(np.int32)
    x_TD = torch.randn(rows, layer["hidden"]).to(torch.bfloat16)
    return x_TD, torch.full((rows, top_k), 1.0 / top_k), torch.from_numpy(ids)


def _row(
    layer: dict[str, Any], rows: int, kernels: dict[str, Callable[..., torch.Tensor]]
) -> dict[str, Any]:
    step = _step(layer, rows)
    source = torch.ones(COPIED, dtype=torch.uint8, device="cpu")
    target = torch.empty_like(source)
    ways = {name: partial(kernel, *step) for name, kernel in kernels.items()}
    seconds = seconds_per_way({**ways, "copy": lambda: target.copy_(source)}, layer["rounds"])
    distinct = len(np.unique(step[2].numpy()))
    dense = 2 * 3 * distinct * layer["hidden"] * layer["ffn"]
    return {"rows": rows, "dense_bytes": dense, "copied_bytes": 2 * COPIED, "seconds": seconds}


def main() -> None:
    """One JSON object: experts, top_k, hidden, ffn, rounds, seed, patterns, float8.

    The last is what is added to the names of float8 ways, empty for none.
    """
    layer: dict[str, Any] = json.loads(sys.argv[1])
    torch.manual_seed(layer["seed"])
    kernels = {"dense": dense_kernel(layer["experts"], layer["hidden"], layer["ffn"])}
    for pattern in layer["patterns"]:
        keep = SparseFormat.of_pattern(pattern, "bfloat16").keep
        kernels[pattern] = _packed(layer, keep, float8=False)
        if layer["float8"]:
            kernels[pattern + layer["float8"]] = _packed(layer, keep, float8=True)
    put(_row(layer, rows, kernels) for rows in ROWS)


if __name__ == "__main__":
    main()
