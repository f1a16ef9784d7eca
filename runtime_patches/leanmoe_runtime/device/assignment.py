"""How ``TritonExperts`` come by the blocks of their assignments: from the routing launch if it can.

vLLM lays them out in one or two launches of its own, and where a step has few assignments for its
experts it launches a kernel that fills one number, which is the same at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from leanmoe_runtime.device.blocks import blocks_of

# With any of these vLLM aligns small steps too, or may.
_ALIGNED = ("use_int8_w8a16", "use_int4_w4a16", "weights_host_resident")

Assignment = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]


def with_blocks(stock: Callable[..., Assignment]) -> Callable[..., Assignment]:
    """``_prepare_expert_assignment`` that takes what travelled with the ids, else asks stock."""

    def prepare(
        topk_ids: torch.Tensor,
        config: dict[str, Any],
        num_tokens: int,
        top_k_num: int,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        **named: Any,
    ) -> Assignment:
        found = blocks_of(topk_ids, config["BLOCK_SIZE_M"]) if expert_map is None else None
        if found is not None:
            return found.sorted_N, found.experts, found.n_sorted
        otherwise = (expert_map is not None, *(named.get(name) for name in _ALIGNED))
        if not any(otherwise) and is_sparse(num_tokens * top_k_num, global_num_experts):
            rows = _number(topk_ids.numel() * config["BLOCK_SIZE_M"], topk_ids.device)
            if rows is not None:
                return None, topk_ids.view(-1), rows
        return stock(
            topk_ids, config, num_tokens, top_k_num, global_num_experts, expert_map, **named
        )

    return prepare


def is_sparse(assignments: int, n_experts: int) -> bool:
    """Whether vLLM gives each assignment a block of its own, unsorted."""
    return assignments * 4 <= n_experts


_NUMBERS: dict[tuple[int, torch.device], torch.Tensor] = {}


def _number(value: int, device: torch.device) -> torch.Tensor | None:
    """A tensor [1] of that value, made once; ``None`` where it would be a graph's memory.

    vLLM runs every size once before it captures it.
    """
    found = _NUMBERS.get((value, device))
    if found is not None or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return found
    with torch.inference_mode(False):
        made = torch.full((1,), value, dtype=torch.int32, device=device)
    return _NUMBERS.setdefault((value, device), made)
