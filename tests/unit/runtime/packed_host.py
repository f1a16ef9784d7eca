"""The CUDA kernels of packed experts built for a CPU (cuda_host.h), and layers to try them on."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import gelu, silu

import leanmoe_runtime.sparse
from leanmoe.sparse.packing import pack_by
from leanmoe.sparse.scale_blocks import Blocks
from leanmoe.sparse.sparse_format import SparseFormat
from leanmoe_runtime.sparse.gpu import Kernels, PackedBlock, PackedMatrix
from leanmoe_runtime.sparse.kernel import Scales
from leanmoe_runtime.sparse.units import Units, entries, put_matrix
from leanmoe_runtime.sparse.workspace import Workspace

CUDA = Path(leanmoe_runtime.sparse.__file__).parent / "cuda"
HERE = Path(__file__).parent
CPU, FLOAT8 = torch.device("cpu"), torch.float8_e4m3fn
ACTIVATIONS = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
}
HOST_FLAGS = ("-std=c++20", "-w", "-DLEANMOE_HOST", f"-I{HERE}", f"-I{CUDA}")


@cache
def host_library() -> ctypes.CDLL:
    """Built once a process; one launch after the other."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "host.so")
        flags = ("-O1", "-shared", "-fPIC", *HOST_FLAGS, "-x", "c++")
        subprocess.run(["c++", *flags, str(CUDA / "packed.cu"), "-o", str(built)], check=True)
        library = ctypes.CDLL(str(built))
    library.host_launches.restype = ctypes.c_int64
    return library


def launches() -> int:
    return host_library().host_launches()


def words_of(weight: torch.Tensor) -> np.ndarray:
    if weight.dtype == FLOAT8:
        return weight.view(torch.uint8).numpy()
    return weight.view(torch.int16).numpy().view(np.uint16)


def in_blocks(
    random, weight_ERC: torch.Tensor, blocks: Blocks, first: tuple[int, int], halves: int
):
    """Float8 codes ``[E, R, C]`` and their scales; and both as one number, float64."""
    experts, rows, columns = weight_ERC.shape
    size = rows // halves
    counts = blocks.count(first[0] + size, first[1] + columns)
    scale = torch.from_numpy(np.exp2(random.uniform(-12, 0, (experts, halves, *counts)))).float()
    by_row = scale[:, :, (first[0] + torch.arange(size)) // blocks.rows]
    grown = by_row[..., (first[1] + torch.arange(columns)) // blocks.columns]
    grown = grown.reshape(experts, rows, columns).double()
    codes = (weight_ERC.double() / grown).clamp(-448, 448).to(FLOAT8)
    return codes, Scales(scale, blocks, first), codes.double() * grown


def packed_matrix(weight_ERC: torch.Tensor, how: SparseFormat, *, halves: bool) -> PackedMatrix:
    """As the kernels read it; ``halves``: gate rows over up rows."""
    experts, rows, columns = weight_ERC.shape
    units = Units.of(how, rows, columns)
    values = units.empty_values(experts, weight_ERC.dtype, CPU)
    mask, listed = units.empty_mask(experts, how.keep, CPU), []
    for expert, weight in enumerate(weight_ERC):
        parts = np.split(words_of(weight), 2) if halves else [words_of(weight)]
        packed = [pack_by(how, part, "w") for part in parts]
        for half, one in enumerate(packed):
            put_matrix(units, (values[expert], mask[expert]), one, half if halves else None)
        listed.append([one.overflow for one in packed])
    listed_too = how.layout == "overflow"
    return PackedMatrix(units, values, mask, entries(units, listed, CPU) if listed_too else None)


def zeroed(random, weight_ERC: np.ndarray, how: SparseFormat, share: float) -> np.ndarray:
    """Weights by a pattern; some groups hold nothing and, of any mask, some everything."""
    small = 4 if how.layout == "indices" else 32
    kept_of = how.keep * small // 32
    ranks = random.random((*weight_ERC.shape[:2], weight_ERC.shape[2] // small, small)).argsort(-1)
    kept = (ranks < kept_of).reshape(weight_ERC.shape)
    if how.layout == "overflow":
        kept = random.random(weight_ERC.shape) < share
        kept.reshape(-1, 32)[1 :: weight_ERC.shape[1] + 2] = True
    kept.reshape(-1, 32)[:: weight_ERC.shape[1] + 1] = False
    return np.where(kept, weight_ERC, 0)


def dense_experts(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    activation: str = "silu",
) -> torch.Tensor:
    """In float64, in the place of vLLM's kernel: id 0 is none, 1 the first."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for expert in range(len(w13)):
        token, slot = torch.nonzero(ids == expert + 1, as_tuple=True)
        gate, up = (x[token].double() @ w13[expert].double().T).chunk(2, dim=1)
        found = (ACTIVATIONS[activation](gate) * up) @ w2[expert].double().T
        out.index_add_(0, token, weights[token, slot].double()[:, None] * found)
    return out


class Layer:
    """A random layer and what it stands for, ``[E, 2F, D]`` and ``[E, D, F]``."""

    def __init__(
        self,
        pattern: str,
        wide: int,
        hidden: int,
        dtype: torch.dtype = torch.bfloat16,
        *,
        experts: int = 3,
        ordered: bool = False,
        activation: str = "silu",
        share: float = 0.5,
        seed: int = 0,
        blocks: Blocks | None = None,
        first: tuple[int, int] = (0, 0),
    ) -> None:
        self.random = random = np.random.default_rng(seed)
        self.how, self.dtype = SparseFormat.of_pattern(pattern, "bfloat16"), dtype
        self.experts, self.wide, self.activation = experts, wide, activation
        held = self._drawn(2 * hidden, wide, share)
        self.down = self._drawn(wide, hidden, share)
        orders = np.stack([random.permutation(wide) for _ in range(experts)]).astype(np.int32)
        self.orders = torch.from_numpy(orders) if ordered else None
        # Packed place p holds the source's column order[p].
        back = self.orders.argsort(1) if ordered else None
        self.gate_up = held if back is None else self._ordered(held, back)
        matrices = self._plain(held) if blocks is None else self._coded(blocks, first)
        self.block = PackedBlock(
            *(Kernels(host_library()), *matrices, self.orders, activation, self._dense),
            *(Workspace(), dtype),
        )

    def _plain(self, held: torch.Tensor) -> tuple[PackedMatrix, PackedMatrix]:
        down = packed_matrix(self.down, self.how, halves=False)
        return packed_matrix(held, self.how, halves=True), down

    def _coded(self, blocks: Blocks, first: tuple[int, int]) -> tuple[PackedMatrix, PackedMatrix]:
        """Of float8; ``first``: the hidden channel and column at which blocks are cut."""
        how = {
            "dtype": "float8_e4m3fn",
            "inner": {"weight_block_size": [blocks.rows, blocks.columns]},
        }
        self.how = self.how.model_copy(update=how)
        top, left = (first[0], 0), (0, first[1])
        coded = in_blocks(self.random, self.gate_up, blocks, top, 2)
        self.gate_up_codes, gate_up_scales, self.gate_up = coded
        self.down_codes, down_scales, self.down = in_blocks(self.random, self.down, blocks, left, 1)
        self.scales = gate_up_scales.numbers, down_scales.numbers
        bits = self.gate_up_codes.view(torch.uint8)
        held = bits if self.orders is None else self._ordered(bits, self.orders.long())
        gate_up = packed_matrix(held.view(FLOAT8), self.how, halves=True)
        down = packed_matrix(self.down_codes, self.how, halves=False)
        return (
            replace(gate_up, scales=gate_up_scales, orders_EC=self.orders),
            replace(down, scales=down_scales),
        )

    def _drawn(self, rows: int, columns: int, share: float) -> torch.Tensor:
        weight = self.random.standard_normal((self.experts, rows, columns)) / columns**0.5
        return torch.from_numpy(zeroed(self.random, weight, self.how, share)).to(self.dtype)

    @staticmethod
    def _ordered(weight_ERC: torch.Tensor, orders_EC: torch.Tensor) -> torch.Tensor:
        pairs = zip(weight_ERC, orders_EC, strict=True)
        return torch.stack([weight[:, order] for weight, order in pairs])

    def _dense(self, *given: torch.Tensor) -> torch.Tensor:
        return dense_experts(*given, self.activation).to(self.dtype)

    def step(self, tokens: int, top_k: int = 2) -> tuple[torch.Tensor, ...]:
        """Inputs, router weights and ids of a step; three of ten pairs are skipped."""
        x = torch.from_numpy(self.random.standard_normal((tokens, self.wide))).to(self.dtype)
        weights = torch.from_numpy(self.random.random((tokens, top_k), dtype=np.float32))
        rows = [self.random.permutation(self.experts)[:top_k] for _ in range(tokens)]
        ids = np.stack(rows) if rows else np.zeros((0, top_k), np.int64)
        ids = np.where(self.random.random(ids.shape) < 0.3, -1, ids)
        return x, weights, torch.from_numpy(ids).int()

    def expected(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return dense_experts(x, self.gate_up, self.down, weights, ids + 1, self.activation)

    def error(self, found: torch.Tensor, step: Sequence[torch.Tensor]) -> float:
        """The largest difference, as a share of what half precision may leave of such sums."""
        assert found.dtype == self.dtype and found.shape == step[0].shape
        tolerance = 1e-2 if self.dtype == torch.bfloat16 else 2e-3
        difference = (found.double() - self.expected(*step)).abs()
        return difference.max().item() / tolerance if difference.numel() else 0.0
