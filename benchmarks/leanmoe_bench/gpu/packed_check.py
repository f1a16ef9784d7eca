"""Packed experts on a GPU against the sum over experts, on small layers of every pattern.

``packed_part.py`` runs it in a process of its own (trials.py); its argument is the first case. What
is written out dense is compared to the bit, products in float64, and a captured graph must follow
ids that change.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from itertools import product

import numpy as np
import torch
from torch.nn.functional import silu

from leanmoe.errors import RuntimeSeamError
from leanmoe.sparse.packing import pack_by
from leanmoe.sparse.sparse_format import GROUP, SparseFormat
from leanmoe_bench.gpu.trials import Case, run
from leanmoe_bench.kernel.card_packed import dense_on_map
from leanmoe_runtime.native import gpu_library
from leanmoe_runtime.sparse.gpu import Kernels, PackedBlock, PackedMatrix
from leanmoe_runtime.sparse.units import Units, entries, put_matrix
from leanmoe_runtime.sparse.workspace import Workspace

PATTERNS = ("16:32", "8:32", "24:32", "2:4", "0.5")
# Rows that share a unit, rows that fill one, both real shapes' widths.
SIZES = ((96, 64), (1024, 288), (2048, 768), (4096, 512))
TOKENS = (1, 2, 5, 16, 70)
_EXPERTS, _TOP_K = 4, 2
# What half precision of hidden values and outputs leaves of sums of these sizes, near 0;
# larger ones are rounded in proportion.
_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
Step = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Dense = Callable[..., torch.Tensor]


class Trial:
    """A random layer packed on ``device``, beside what it stands for."""

    def __init__(
        self,
        pattern: str,
        size: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
        dense: Dense | None = None,
    ) -> None:
        self.how, self.dtype, self.device = (
            SparseFormat.of_pattern(pattern, "bfloat16"),
            dtype,
            device,
        )
        self.wide, hidden = size
        self.random = np.random.default_rng(hidden)
        gate_up, down = self._drawn(2 * hidden, self.wide), self._drawn(self.wide, hidden)
        orders = np.stack([self.random.permutation(self.wide) for _ in range(_EXPERTS)])
        map_E = torch.arange(-1, _EXPERTS, dtype=torch.int32, device=device)
        self.block = PackedBlock(
            kernels,
            self._packed(gate_up, 2),
            self._packed(down, 1),
            torch.from_numpy(orders.astype(np.int32)).to(device),
            "silu",
            dense or partial(dense_on_map, map_E),
            Workspace(),
            dtype,
        )
        # Packed place p holds the source's column order[p].
        back = torch.from_numpy(orders.argsort(1))
        pairs = zip(gate_up, back, strict=True)
        self.gate_up = torch.stack([one[:, order] for one, order in pairs]).to(device)
        self.down = down.to(device)

    def _drawn(self, rows: int, columns: int) -> torch.Tensor:
        weight = self.random.standard_normal((_EXPERTS, rows, columns)) / columns**0.5
        if self.how.layout == "overflow":
            kept = self.random.random(weight.shape) < 0.5
        else:
            small = 4 if self.how.layout == "indices" else GROUP
            ranks = self.random.random((*weight.shape[:2], columns // small, small)).argsort(-1)
            kept = (ranks < self.how.keep * small // GROUP).reshape(weight.shape)
        return torch.from_numpy(np.where(kept, weight, 0)).to(self.dtype)

    def _packed(self, weight_ERC: torch.Tensor, halves: int) -> PackedMatrix:
        units = Units.of(self.how, *weight_ERC.shape[1:])
        values = units.empty_values(_EXPERTS, self.dtype, self.device)
        mask, listed = units.empty_mask(_EXPERTS, self.how.keep, self.device), []
        for expert, weight in enumerate(weight_ERC):
            words = weight.view(torch.int16).numpy().view(np.uint16)
            packed = [pack_by(self.how, part, "w") for part in np.split(words, halves)]
            for half, one in enumerate(packed):
                place = values[expert], mask[expert]
                put_matrix(units, place, one, half if halves == 2 else None)
            listed.append([one.overflow for one in packed if one.overflow is not None])
        overflow = entries(units, listed, self.device) if listed[0] else None
        return PackedMatrix(units, values, mask, overflow)

    def step(self, tokens: int) -> Step:
        """A third of all pairs is skipped."""
        x = torch.from_numpy(self.random.standard_normal((tokens, self.wide))).to(self.dtype)
        weights = torch.from_numpy(self.random.random((tokens, _TOP_K), dtype=np.float32))
        ids = np.stack([self.random.permutation(_EXPERTS)[:_TOP_K] for _ in range(tokens)])
        ids[self.random.random(ids.shape) < 1 / 3] = -1
        found = x, weights, torch.from_numpy(ids).int()
        return tuple(one.to(self.device) for one in found)  # type: ignore[return-value]

    def close(self, found: torch.Tensor, step: Step) -> bool:
        """Whether it is the sum over experts."""
        x, weights, ids = step
        expected = torch.zeros(x.shape, dtype=torch.float64, device=self.device)
        for expert in range(_EXPERTS):
            token, slot = torch.nonzero(ids == expert, as_tuple=True)
            gate, up = (x[token].double() @ self.gate_up[expert].double().T).chunk(2, dim=1)
            rows = (silu(gate) * up) @ self.down[expert].double().T
            expected.index_add_(0, token, weights[token, slot].double()[:, None] * rows)
        allowed = _TOLERANCE[self.dtype] * (1 + expected.abs())
        return bool(((found.double() - expected).abs() < allowed).all())

    def computes(self, tokens: int) -> bool:
        step = self.step(tokens)
        return self.close(self.block(*step), step)

    def writes(self) -> bool:
        """What is written out dense, to the bit; the sign of a zero is lost."""
        w13, w2 = self.block.write_out(0, _EXPERTS)
        pairs = ((w13, self.gate_up), (w2, self.down))
        return all(torch.equal(found, torch.where(one == 0, 0, one)) for found, one in pairs)

    def follows(self) -> bool:
        """A replayed graph computes with the ids and inputs of now."""
        x, weights, ids = self.step(2)
        self.block(x, weights, ids)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = self.block(x, weights, ids)
        other = self.step(2)
        for place, one in zip((x, weights, ids), other, strict=True):
            place.copy_(one)
        graph.replay()
        torch.cuda.synchronize()
        return self.close(found, other)


def cases(
    device: torch.device, kernels: Callable[[], Kernels], dense: Dense | None = None
) -> Iterator[Case]:
    """Every case by name, and what tries it; nothing is built or packed before."""

    @lru_cache(1)
    def trial(pattern: str, size: tuple[int, int], dtype: torch.dtype) -> Trial:
        return Trial(pattern, size, dtype, device, kernels(), dense)

    sizes = SIZES if device.type == "cuda" else SIZES[:1]
    for about in product(PATTERNS, sizes, (torch.bfloat16, torch.float16)):
        named = " ".join(map(str, about))
        yield from _of_layer(named, partial(trial, *about), graphs=device.type == "cuda")


def _of_layer(named: str, layer: Callable[[], Trial], *, graphs: bool) -> Iterator[Case]:
    yield f"dense {named}", lambda: layer().writes()
    for tokens in TOKENS:
        yield f"{tokens} tokens {named}", partial(lambda count: layer().computes(count), tokens)
    if graphs:
        yield f"graph {named}", lambda: layer().follows()


@cache
def _found() -> Kernels | RuntimeSeamError:
    """Looked for once: every case would wait a minute for what does not compile."""
    try:
        return Kernels(gpu_library())
    except RuntimeSeamError as error:
        return error


def _library() -> Kernels:
    found = _found()
    if isinstance(found, RuntimeSeamError):
        raise found
    return found


def main() -> None:
    """On the current GPU."""
    run(cases(torch.device("cuda", torch.cuda.current_device()), _library), int(sys.argv[1]))
