"""Times the ways of leaving assignments out against the full kernel.

``command.py`` runs it in a process with the engine's environment: it prints raw seconds, a JSON
object for each number of rows.
Weights are random and larger than the caches; half the tokens lose their weakest
experts: one, half, or all but one. The ways are timed in turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from leanmoe_bench.printed import put
from leanmoe_runtime.compat import cpu_fused_moe, cpu_prepack_moe_weight
from leanmoe_runtime.skip.cpu import Kernel, Planner, run
from leanmoe_runtime.state import LayerState

ROWS = (1, 2, 4, 8, 16, 32, 64, 256)


def dense_kernel(experts: int, hidden: int, ffn: int) -> Kernel:
    """vLLM's grouped kernel on random weights."""

    def weights(rows: int, columns: int) -> torch.Tensor:
        drawn = torch.empty(experts, rows, columns, dtype=torch.bfloat16).normal_(0.0, 0.02)
        packed: torch.Tensor = cpu_prepack_moe_weight(drawn, "vec")
        return packed

    w13, w2 = weights(2 * ffn, hidden), weights(hidden, ffn)

    def kernel(x: torch.Tensor, weights_TK: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        cpu_fused_moe(out, x, w13, w2, None, None, weights_TK, ids_TK, "silu", "vec")
        return out

    return kernel


def _ways(
    kernel: Kernel, rows: int, experts: int, top_k: int, hidden: int, lost: int
) -> dict[str, Callable[[], torch.Tensor]]:
    random = np.random.default_rng(rows)
    ids = np.stack([random.permutation(experts)[:top_k] for _ in range(rows)]).astype(np.int32)
    # Half of the rows lose their last experts.
    weights_TK = np.full((rows, top_k), 1.0 / top_k, dtype=np.float32)
    weights_TK[: (rows + 1) // 2, top_k - lost :] = 0.1 / top_k
    x_TD = torch.randn(rows, hidden).to(torch.bfloat16)
    weights, ids_TK = torch.from_numpy(weights_TK), torch.from_numpy(ids)
    planner = Planner()
    layer = LayerState(layer=0, top_k=top_k, renormalize=True, n_experts=experts)
    layer.set_beta(0.5)

    def skipping(redirect_max_rows: int) -> torch.Tensor:
        plan = planner.plan(weights, ids_TK, layer, redirect_max_rows=redirect_max_rows)
        return kernel(x_TD, weights, ids_TK) if plan is None else run(kernel, x_TD, plan)

    return {
        "full": lambda: kernel(x_TD, weights, ids_TK),
        "redirect": lambda: skipping(rows),
        "compact": lambda: skipping(0),
    }


def seconds_per_way(
    ways: dict[str, Callable[[], torch.Tensor]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every way in every round; one warm-up round is left out."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn >= 0:
                taken[name].append(time.perf_counter() - start)
    return taken


def main() -> None:
    """Arguments: one JSON object with experts, top_k, hidden, ffn, rounds, seed."""
    layer: dict[str, Any] = json.loads(sys.argv[1])
    torch.manual_seed(layer["seed"])
    kernel = dense_kernel(layer["experts"], layer["hidden"], layer["ffn"])
    top_k = layer["top_k"]
    for lost in sorted({1, top_k // 2, top_k - 1} - {0}):
        for rows in ROWS:
            ways = _ways(kernel, rows, layer["experts"], top_k, layer["hidden"], lost)
            seconds = seconds_per_way(ways, layer["rounds"])
            skipped = (rows + 1) // 2 * lost / (rows * top_k)
            put([{"rows": rows, "skipped": round(skipped, 4), "seconds": seconds}])


if __name__ == "__main__":
    main()
