"""Every kernel compiled with what ``launch.py`` passes, for a GPU that need not be there.

Prints a JSON list of [kernel, PTX]; the argument is a compute capability.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from leanmoe.messages import SkipMode
from leanmoe_runtime.device import launch, sum_kernel
from leanmoe_runtime.device.blocks import empty_blocks
from leanmoe_runtime.device.routing import SOFTMAX, TANH_SIGMOID, Routing
from leanmoe_runtime.device.rows import Union
from leanmoe_runtime.device.table import DeviceTable

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
MEASURED_ON = 90
FOUND: list[tuple[str, str]] = []


class Compiled:
    """Stands in for a kernel: compiles each launch instead of running it."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.target = kernel, GPUTarget("cuda", capability, 32)

    def __getitem__(self, grid: Any) -> Any:
        return self.compile

    def compile(self, *given: Any, **named: Any) -> None:
        options = {key: named.pop(key) for key in ("num_warps", "enable_fp_fusion") if key in named}
        bound = {**dict(zip(self.kernel.arg_names, given, strict=False)), **named}
        # Device functions are part of what must compile.
        bound |= {"DEVICE_MATH": True} if "DEVICE_MATH" in bound else {}
        signature, constants, known = {}, {}, {}
        for place, param in enumerate(self.kernel.params):
            value = bound[param.name]
            # As a launch does: a number 1 is a constant, and what 16 divides is known to be so.
            special = not param.do_not_specialize and isinstance(value, int)
            if param.is_constexpr or (special and value == 1):
                signature[param.name], constants[(place,)] = "constexpr", value
                continue
            signature[param.name] = TYPES[value.dtype] if hasattr(value, "dtype") else "i32"
            if hasattr(value, "dtype") or (special and value % 16 == 0):
                known[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constexprs=constants, attrs=known)
        built = triton.compile(source, target=self.target, options=options)
        FOUND.append((self.kernel.fn.__name__, built.asm["ptx"]))


def step(experts: int, *, only: bool = False) -> launch.Step:
    mine, other = (DeviceTable.make(torch.zeros(102), experts, "cpu") for _ in range(2))
    rows = torch.zeros(4096, dtype=torch.int32)
    return launch.Step(
        rows, torch.zeros_like(rows), mine, mine if only else other, True, SkipMode.MASK
    )


def main() -> None:
    capability = int(sys.argv[1])
    for module in (launch, sum_kernel):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            kernel = getattr(module, name)
            if isinstance(kernel, triton.runtime.JITFunction):
                setattr(module, name, Compiled(kernel, capability))
    if capability == MEASURED_ON:
        # Nothing in these depends on the card; they take longest.
        plain = Routing(8, 2, SOFTMAX, renormalize=True)
        logits, padding = torch.zeros(4, 8, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.bool)
        blocks = empty_blocks(4, 2, 16, logits.device)
        launch.route(logits, plain, step(8), padding_T=padding, blocks=blocks)
        launch.route(torch.zeros(100, 5), Routing(5, 2, SOFTMAX, renormalize=False), None)
    bias = torch.zeros(64)
    grouped = Routing(64, 4, TANH_SIGMOID, True, 2.5, bias_E=bias, groups=8, kept_groups=4)
    launch.route(torch.zeros(1, 64), grouped, step(64), ids=torch.int64)
    weights, ids = torch.zeros(9, 8), torch.zeros(9, 8, dtype=torch.int32)
    launch.decide(weights, ids, step(128, only=True))
    launch.spend(weights, ids, torch.zeros(9, 40), Union(4, "cpu"), step(40, only=True))
    rows = torch.zeros(9, 8, 96, dtype=torch.bfloat16)
    sum_kernel.sum_computed(rows, torch.zeros(9, 96, dtype=torch.bfloat16), ids)
    print(json.dumps(FOUND))


if __name__ == "__main__":
    main()
