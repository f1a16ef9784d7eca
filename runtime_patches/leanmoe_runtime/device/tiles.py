"""Tiles of the experts' kernel that still fill the card when skipping leaves few experts.

vLLM chooses tiles for all of a step's experts, once for both products of a layer. With one token
and one expert left, the second product of Mixtral 8x7B then runs in 32 programs on the 132
multiprocessors of an H200. A graph's tiles cannot follow the level, so where a token's top expert
alone would leave the card half idle, tiles are halved along the columns as long as the programs of
all experts still run at once. An element's sum runs over the same columns of the weights in the
same order whatever the width of its tile, so results stay the same to the bit. **The gain is not
yet measured on a GPU.**
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

# Programs of such tiles that a multiprocessor holds at once, by their shared memory.
_AT_ONCE = 4
_NARROWEST = 32
# Columns of one instruction of a warp: with fewer, warps would compute the same.
_OF_A_WARP, _WARPS = 8, 4
# From 64 rows on Hopper's wide instructions compute, whose order of additions is not known to us.
_WIDE_ROWS = 64


def finer(
    config: Mapping[str, Any], columns: int, assignments: int, tokens: int, processors: int
) -> dict[str, Any]:
    """``config`` with narrower tiles where ``tokens`` assignments alone would not fill the card."""
    width = int(config["BLOCK_SIZE_N"])
    narrowest = max(_NARROWEST, _OF_A_WARP * int(config.get("num_warps", _WARPS)))
    while (
        width > narrowest
        and tokens * -(-columns // width) < processors
        and assignments * -(-columns // (width // 2)) <= _AT_ONCE * processors
    ):
        width //= 2
    return {**config, "BLOCK_SIZE_N": width}


@cache
def _processors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


class Tiles:
    """Whether the process's experts take finer tiles; off while stock is to be run beside ours."""

    def __init__(self) -> None:
        self.finer = True


TILES = Tiles()


def with_finer_tiles(stock: Callable[..., None]) -> Callable[..., None]:
    """``invoke_fused_moe_triton_kernel`` with ``finer`` tiles where weights are not quantised."""

    def invoke(
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        A_scale: torch.Tensor | None,
        B_scale: torch.Tensor | None,
        topk_weights: torch.Tensor | None,
        sorted_token_ids: torch.Tensor | None,
        expert_ids: torch.Tensor,
        num_tokens_post_padded: torch.Tensor,
        mul_routed_weight: bool,
        top_k: int,
        config: dict[str, Any],
        *rest: Any,
        **named: Any,
    ) -> None:
        if TILES.finer and B_scale is None and config["BLOCK_SIZE_M"] < _WIDE_ROWS:
            tokens, slots = C.shape[:2]
            processors = _processors(B.device.index or 0)
            config = finer(config, B.size(1), tokens * slots, tokens, processors)
        stock(
            A,
            B,
            C,
            A_scale,
            B_scale,
            topk_weights,
            sorted_token_ids,
            expert_ids,
            num_tokens_post_padded,
            mul_routed_weight,
            top_k,
            config,
            *rest,
            **named,
        )

    return invoke
