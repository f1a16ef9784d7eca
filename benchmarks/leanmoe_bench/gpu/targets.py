"""What ours must reach over stock at whole depth, as data beside the rows."""

from __future__ import annotations

from leanmoe_bench.gpu.models import GpuModel

_BATCHES = (1, 4, 8, 16, 32, 64)
_EXACT = (0.99,) * len(_BATCHES)
_QWEN3, _MIXTRAL = "qwen3-30b-a3b", "mixtral-8x7b"
_DECODE = {
    (_QWEN3, "level0"): _EXACT,
    (_MIXTRAL, "level0"): _EXACT,
    (_QWEN3, "budget_off"): _EXACT,
    (_QWEN3, "skip40"): (1.05, 1.18, 1.20, 1.22, 1.15, 1.04),
    (_QWEN3, "budget"): (0.99, 0.99, 0.99, 1.15, 1.40, 1.40),
    (_QWEN3, "top1"): (1.12, 1.40, 1.95, 2.2, 2.2, 1.65),
    (_MIXTRAL, "median"): (1.15, 1.12, 1.08, 0.99, 0.99, 0.99),
    (_MIXTRAL, "top1"): (1.45, 1.50, 1.27, 1.08, 0.99, 0.99),
    (_MIXTRAL, "16:32"): (1.4, 1.4),
}
TARGETS: dict[tuple[str, str, str], float] = {
    (model, case, f"decode_b{batch}"): ratio
    for (model, case), ratios in _DECODE.items()
    for batch, ratio in zip(_BATCHES, ratios, strict=False)
} | {
    (_QWEN3, "level0", "prefill_2048"): 0.99,
    (_MIXTRAL, "level0", "prefill_2048"): 0.99,
    (_MIXTRAL, "top1", "prefill_2048"): 1.5,
}
_COMPILED_ONLY = {(_QWEN3, "skip40", "prefill_2048"): 1.1}


# Of a kernel on packed experts over vLLM's dense one, by number of tokens; uniform routing, so that
# an expert of Mixtral gets a quarter of them.
_PACKED = {
    "mixtral": {1: 1.6, 2: 1.6, 4: 1.4, 8: 1.4, 16: 1.1, 64: 0.97, 256: 0.97},
    "qwen3": {1: 1.35, 2: 1.35, 4: 1.35, 8: 1.35, 64: 0.97, 256: 0.97},
}


def packed_target(shape: str, pattern: str, tokens: int) -> float | None:
    """The ratio asked for of 16:32."""
    return _PACKED[shape].get(tokens) if pattern == "16:32" else None


def target(model: GpuModel, case: str, measure: str, graphs: str) -> float | None:
    """The ratio asked for, ``None`` where none is: fewer layers are bound by the host."""
    if not model.whole:
        return None
    key = (model.name, case, measure)
    return _COMPILED_ONLY.get(key, TARGETS.get(key)) if graphs == "compiled" else TARGETS.get(key)
