"""Assignments laid out by expert in blocks of rows, as vLLM's Triton experts read them.

The routing launch fills them where that is faster than the launches of vLLM's own alignment: one
program reads all assignments. They travel with the ids they were made of; whoever gets other ids,
or wants other blocks, makes its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

# Measured on an H200: in one launch 4.7 against 5.4 microseconds at 64 assignments (8 tokens of
# Qwen3-30B-A3B's shape), 7.7 against 5.6 at 256.
MOST_ASSIGNMENTS = 64
MOST_EXPERTS = 256
_NAME = "leanmoe_blocks"


class Blocks(NamedTuple):
    """``rows`` of a block; ``sorted_N`` int32 numbers of assignments, their count standing for
    "none"; ``experts`` int32 of each block; ``n_sorted`` int32 [1], rows of the blocks used."""

    rows: int
    sorted_N: torch.Tensor
    experts: torch.Tensor
    n_sorted: torch.Tensor


def may_lay_out(tokens: int, top_k: int, n_experts: int, rows: int) -> bool:
    """Whether one program can: few assignments, and no expert with more than one block."""
    padded = (1 << (tokens - 1).bit_length()) * (1 << (top_k - 1).bit_length())
    return padded <= MOST_ASSIGNMENTS and tokens <= rows and n_experts <= MOST_EXPERTS


def empty_blocks(tokens: int, top_k: int, rows: int, device: torch.device) -> Blocks:
    """Room for every assignment's expert to have a block to itself."""
    most = tokens * top_k

    def empty(size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device=device)

    return Blocks(rows, empty(most * rows), empty(most), empty(1))


def attach_blocks(ids_TK: torch.Tensor, blocks: Blocks) -> None:
    """Let the blocks travel with the ids."""
    setattr(ids_TK, _NAME, blocks)


def blocks_of(ids_TK: torch.Tensor, rows: int) -> Blocks | None:
    """The blocks of ``rows`` rows that came with these ids, if any did."""
    found: Any = getattr(ids_TK, _NAME, None)
    return found if isinstance(found, Blocks) and found.rows == rows else None
