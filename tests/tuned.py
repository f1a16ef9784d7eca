"""What `leanmoe bench tune` writes: one row of a table, and the record beside it."""

from leanmoe.tuned_tables import Tiles

TILES = Tiles(
    BLOCK_SIZE_M=16,
    BLOCK_SIZE_N=64,
    BLOCK_SIZE_K=128,
    GROUP_SIZE_M=1,
    num_warps=4,
    num_stages=4,
)
RECORD = {
    "card": "NVIDIA H200",
    "vllm": "0.32.0",
    "triton": "3.6.0",
    "date": "2026-11-27",
    "command": "leanmoe bench tune ./lean",
    "batches": [1],
}
