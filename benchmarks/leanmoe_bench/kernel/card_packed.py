"""Times packed experts beside vLLM's Triton experts on a GPU, every way a replayed CUDA graph.

``command.py`` and ``gpu_check`` run it in a process of its own: it prints raw seconds, an object of
JSON for each number of tokens, as ``packed.py`` does. Weights and masks are random, every group
balanced, inputs in an order of each expert's own; routing is uniform. A graph holds several steps
of other experts, so that weights come from memory and not from the cache that the step before
filled.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from leanmoe.sparse.sparse_format import GROUP, SparseFormat
from leanmoe_bench.printed import put
from leanmoe_runtime.compat import fused_experts
from leanmoe_runtime.native import gpu_library
from leanmoe_runtime.sparse.gpu import Kernels, PackedBlock, PackedMatrix
from leanmoe_runtime.sparse.units import Units
from leanmoe_runtime.sparse.workspace import Workspace

TOKENS = (1, 2, 4, 8, 16, 64, 256)
COPIED = 1 << 30
_STEPS = 8
_REPLAYS = 20
# Masks to draw from; each is of one group.
_POOL = 4096
# The two of four weights that are kept, as a nibble.
_FOURS = (0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110)
Step = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Way = Callable[..., torch.Tensor]


def masks(how: SparseFormat, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Words of a group to draw from: bits, or of 2:4 eight nibbles."""
    if how.layout == "indices":
        nibbles = random.choice(np.array(_FOURS, np.uint32), (_POOL, 8))
        words = (nibbles << np.arange(0, 32, 4, dtype=np.uint32)).sum(1, dtype=np.uint32)
        nibbled: np.ndarray[Any, np.dtype[np.int32]] = words.view(np.int32)
        return nibbled
    kept = random.random((_POOL, GROUP)).argsort(1) < how.keep
    bits: np.ndarray[Any, np.dtype[np.int32]]
    bits = np.packbits(kept, axis=1, bitorder="little").view(np.int32).reshape(-1)
    return bits


def matrix(
    how: SparseFormat, size: tuple[int, int, int], device: torch.device, seed: int
) -> PackedMatrix:
    """Random values of unit gain ``[E, R, C]``, packed."""
    experts, rows, columns = size
    units = Units.of(how, rows, columns)
    values = units.empty_values(experts, torch.bfloat16, device)
    values.normal_(0.0, float((columns * how.keep / GROUP) ** -0.5))
    pool = torch.from_numpy(masks(how, np.random.default_rng(seed))).to(device)
    mask = units.empty_mask(experts, how.keep, device)
    words = mask.view(torch.int32)
    for one in words:
        one.copy_(pool[torch.randint(len(pool), one.shape, device=device)])
    return PackedMatrix(units, values, mask)


def dense_on_map(map_E: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    """vLLM's kernel on experts that were written out; id 0 is none, 1 the first."""
    x, w13, w2, weights, ids = given
    count = len(w13) + 1
    found: torch.Tensor = fused_experts(
        x, w13, w2, weights, ids, global_num_experts=count, expert_map=map_E[:count]
    )
    return found


def block(
    layer: Mapping[str, Any], pattern: str, device: torch.device, kernels: Kernels, dense: Way
) -> PackedBlock:
    """A layer's packed experts."""
    how = SparseFormat.of_pattern(pattern, "bfloat16")
    experts, wide, hidden = layer["experts"], layer["hidden"], layer["ffn"]
    orders = [torch.randperm(wide, dtype=torch.int32, device=device) for _ in range(experts)]
    return PackedBlock(
        kernels,
        matrix(how, (experts, 2 * hidden, wide), device, layer["seed"]),
        matrix(how, (experts, wide, hidden), device, layer["seed"] + 1),
        torch.stack(orders),
        "silu",
        dense,
        Workspace(),
        torch.bfloat16,
    )


def dense(layer: Mapping[str, Any], device: torch.device) -> Way:
    """vLLM's Triton experts on random weights, as stock serves them."""
    experts, wide, hidden = layer["experts"], layer["hidden"], layer["ffn"]
    shapes = ((experts, 2 * hidden, wide), (experts, wide, hidden))
    w13, w2 = (
        torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0.0, shape[2] ** -0.5)
        for shape in shapes
    )
    return lambda x, weights, ids: fused_experts(x, w13, w2, weights, ids)


def steps(layer: Mapping[str, Any], tokens: int, device: torch.device) -> list[Step]:
    """What the passes of a graph are given."""
    experts, top_k = layer["experts"], layer["top_k"]

    def one() -> Step:
        x = torch.randn(tokens, layer["hidden"], device=device).to(torch.bfloat16)
        ids = torch.rand(tokens, experts, device=device).argsort(1)[:, :top_k].int().contiguous()
        return x, torch.full(ids.shape, 1.0 / top_k, device=device), ids

    return [one() for _ in range(_STEPS)]


def _graph(way: Way, given: list[Step]) -> Callable[[], None]:
    for step in given[:2]:
        way(*step)  # what has to be compiled or tried first is
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in given:
            way(*step)

    def replay() -> None:
        for _ in range(_REPLAYS):
            graph.replay()

    return replay


def _copy() -> Callable[[], None]:
    source = torch.ones(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    return copy


def _seconds(call: Callable[[], None], times: int) -> float:
    make: Callable[..., Any] = torch.cuda.Event
    start, end = (make(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3 / times


def error(packed: PackedBlock, step: Step) -> float:
    """The largest difference from vLLM's kernel on what is written out dense, over the largest."""
    found, expected = packed(*step).float(), packed.through_dense(*step).float()
    return float((found - expected).abs().max() / expected.abs().max())


def _row(
    layer: Mapping[str, Any], tokens: int, ways: Mapping[str, Way], device: torch.device
) -> dict[str, Any]:
    given = steps(layer, tokens, device)
    calls = {name: (_graph(way, given), _REPLAYS * _STEPS) for name, way in ways.items()}
    calls["copy"] = (_copy(), 1)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1, layer["rounds"]):
        for name, (call, times) in calls.items():
            seconds = _seconds(call, times)
            if turn >= 0:
                taken[name].append(seconds)
    distinct = sum(len(np.unique(step[2].cpu().numpy())) for step in given) / len(given)
    read = 2 * 3 * distinct * layer["hidden"] * layer["ffn"]
    blocks = {name: way for name, way in ways.items() if isinstance(way, PackedBlock)}
    return {
        "rows": tokens,
        "dense_bytes": read,
        "copied_bytes": 2 * COPIED,
        "seconds": taken,
        "errors": {name: error(way, given[0]) for name, way in blocks.items()},
        "ways": {
            name: way.regime(tokens, layer["top_k"]).way.name.lower()
            for name, way in blocks.items()
        },
    }


def measured(layer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each number of tokens."""
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(layer["seed"])
    ways: dict[str, Way] = {"dense": dense(layer, device)}
    kernels = Kernels(gpu_library())
    on_map = partial(
        dense_on_map, torch.arange(-1, layer["experts"], dtype=torch.int32, device=device)
    )
    ways |= {
        pattern: block(layer, pattern, device, kernels, on_map) for pattern in layer["patterns"]
    }
    for tokens in TOKENS:
        yield _row(layer, tokens, ways, device)


def main() -> None:
    """Arguments: one JSON object with experts, top_k, hidden, ffn, rounds, seed, patterns."""
    put(measured(json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
