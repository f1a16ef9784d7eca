"""The kernel against its reference on random steps, on a GPU or under Triton's interpreter.

Run as a module: prints one JSON object. ``TRITON_INTERPRET=1`` in its environment runs it on the
CPU; its argument is the device.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from leanmoe.messages import SkipMode
from leanmoe_runtime.device.kernel import skip
from leanmoe_runtime.device.table import DeviceTable
from leanmoe_runtime.rule import decide
from leanmoe_runtime.state import N_ROWS

# Tokens, experts per token, experts.
SIZES = ((1, 2, 8), (7, 3, 11), (33, 8, 128), (257, 6, 64), (1500, 1, 16))
MODES = (SkipMode.MASK, SkipMode.REDIRECT, SkipMode.ZERO)


def compare(
    size: tuple[int, int, int], mode: SkipMode, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """One step of random weights, a tenth of it padding, one token broken."""
    tokens, top_k, experts = size
    random = torch.Generator().manual_seed(tokens)
    weights = torch.rand(tokens, top_k, generator=random).softmax(-1)
    weights[0, 0] = float("nan")
    order = torch.rand(tokens, experts, generator=random).argsort(dim=1)[:, :top_k]
    rows = torch.randint(-1, N_ROWS, (tokens,), generator=random, dtype=torch.int32)
    rows[torch.rand(tokens, generator=random) < 0.1] = -1
    betas = torch.rand(N_ROWS, generator=random)
    weights, ids = weights.to(dtype), order.int()
    expected = decide(weights, ids, betas, rows, renormalize=True, mode=mode)
    table = DeviceTable.make(betas, experts, device)
    on_device = weights.to(device), ids.to(device)
    skip(*on_device, rows.to(device), table, renormalize=True, mode=mode)
    found_weights, found_ids = (tensor.cpu() for tensor in on_device)
    counts = table.read()
    same = (
        torch.equal(found_ids, expected.ids_TK)
        and torch.allclose(
            found_weights.float(),
            expected.weights_TK.float(),
            rtol=1e-2 if dtype == torch.bfloat16 else 1e-5,
            equal_nan=True,
        )
        and counts[:3] == (expected.tokens, expected.skipped, expected.nonfinite)
        and counts.distinct_experts == expected.distinct_experts
        and abs(counts.dropped_mass - expected.dropped_mass) <= 1e-5 * max(1, expected.dropped_mass)
    )
    name = f"{mode.value} {str(dtype).removeprefix('torch.')} {tokens}x{top_k} of {experts}"
    return {"case": name, "passed": same}


def main() -> None:
    device = sys.argv[1]
    rows = [
        compare(size, mode, dtype, device)
        for size in SIZES
        for mode in MODES
        for dtype in (torch.float32, torch.bfloat16)
    ]
    failed = [row["case"] for row in rows if not row["passed"]]
    print(json.dumps({"passed": not failed, "cases": len(rows), "failed": failed}))


if __name__ == "__main__":
    main()
