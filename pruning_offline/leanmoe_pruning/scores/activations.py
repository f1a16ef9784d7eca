"""The residual stream between two layers, on disk: a few windows are in memory at a time.

One safetensors file of float32 tensors ``chunk.N`` ``[windows, length, D]``, in the order
and the portions that a layer is computed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from leanmoe_pruning.checkpoints.shards import TensorInfo, write_shard
from leanmoe_pruning.checkpoints.stored_type import StoredType
from leanmoe_pruning.forward.passes import Hidden, chunks

Portions = list[tuple[tuple[int, ...], slice]]
# Few enough for all cores to have some, enough for products to be as fast as they get.
PORTION_TOKENS = 1024


def entering_file(layer: int) -> str:
    """The name of the file of what enters a layer, or leaves the one before it."""
    return f"activations-{layer:03d}.safetensors"


def cut(hidden: Hidden) -> Iterator[tuple[torch.Tensor, slice]]:
    """Views of what is computed at a time, with the rows its tokens have among all."""
    return chunks(hidden, PORTION_TOKENS)


def portions(ids: list[torch.Tensor]) -> Portions:
    """(windows, length) of each portion, and the rows its tokens have among all."""
    return [(tuple(portion.shape), rows) for portion, rows in cut(ids)]


def write_activations(
    path: Path, parts: Portions, hidden_size: int, computed: Iterable[torch.Tensor]
) -> str:
    """Write chunks as they are computed; return the file's digest."""
    plan = [
        TensorInfo(_name(index), StoredType.F32, (*shape, hidden_size))
        for index, (shape, _) in enumerate(parts)
    ]
    return write_shard(path, plan, computed)


def read_activations(path: Path, parts: Portions) -> Iterator[tuple[torch.Tensor, slice]]:
    """Each chunk, free to be changed, with its rows among all tokens."""
    for index, (_, rows) in enumerate(parts):
        # A copy out of a short-lived mapping: mapped pages would count as ours.
        with safe_open(path, framework="pt") as file:
            chunk_NTD: torch.Tensor = file.get_tensor(_name(index)).clone()
        yield chunk_NTD, rows


def _name(index: int) -> str:
    return f"chunk.{index:06d}"
