"""A MoE block on packed experts on a GPU: the library of cuda/packed.cu, called by ctypes.

The library has a C interface and no part of torch in it: it is built without torch's headers, and
one build serves any torch. The operator ``leanmoe::packed_experts`` hides the call from Dynamo. E
experts, T tokens, K top-k, D model, F hidden width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch

from leanmoe.errors import RuntimeSeamError
from leanmoe.sparse.scale_blocks import Blocks
from leanmoe.sparse.sparse_format import GROUP
from leanmoe_runtime.compat import direct_register_custom_op
from leanmoe_runtime.sparse.kernel import Scales
from leanmoe_runtime.sparse.regimes import FEW_PAIRS, Regime, Way, regime_of
from leanmoe_runtime.sparse.units import Units
from leanmoe_runtime.sparse.workspace import Workspace

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
# Dense experts that are unpacked at a time take no more than this, or one expert.
WORKSPACE_BYTES = 512 << 20
# What a block needs beside x: room to sort its pairs (cuda/packed.cu, few_bytes).
_SORTING_BYTES = 4 << 10
# (x, w13, w2, weights, ids) to what vLLM makes of dense experts; id 0 is none, 1 the first.
DenseKernel = Callable[..., torch.Tensor]


class _Scales(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("numbers", "orders")),
        *((name, ctypes.c_int32) for name in ("halves", "row_blocks", "column_blocks")),
        *((name, ctypes.c_int32) for name in ("block_rows", "column_shift")),
        *((name, ctypes.c_int32) for name in ("first_row", "first_column", "unused")),
    )


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "mask", "starts", "entries")),
        *((name, ctypes.c_int32) for name in ("rows", "columns", "keep", "lanes", "across")),
        ("is_coded", ctypes.c_int32),
        ("scales", _Scales),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("gate_up", _Matrix),
        ("down", _Matrix),
        *((name, ctypes.c_void_p) for name in ("x", "weights", "ids", "orders", "out")),
        *((name, ctypes.c_void_p) for name in ("hidden", "rows", "ordered", "sorted")),
        *((name, ctypes.c_int32) for name in ("tokens", "top_k", "experts", "is_half")),
        *((name, ctypes.c_int32) for name in ("activation", "way", "per_item", "most_items")),
    )


class _Writing(ctypes.Structure):
    _fields_ = (
        ("matrix", _Matrix),
        ("orders", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("first", "count", "joined", "is_half")),
    )


def _at(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@dataclass(frozen=True)
class PackedMatrix:
    """One projection of all experts, as the kernels read it (units.py).

    Float8 values have ``scales``; their columns are in the order of ``orders_EC`` where there is
    one. Raises ``RuntimeSeamError`` for scales that the kernels do not take.
    """

    units: Units
    values: torch.Tensor
    mask: torch.Tensor
    overflow: tuple[torch.Tensor, torch.Tensor] | None = None
    scales: Scales | None = None
    orders_EC: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.scales is not None and (problem := scales_problem(self.scales.blocks)):
            raise RuntimeSeamError(f"packed experts {problem}")

    def told(self) -> _Matrix:
        starts, listed = self.overflow or (None, None)
        u = self.units
        held = (_at(self.values), _at(self.mask), _at(starts), _at(listed))
        sizes = (u.rows, u.columns, u.keep, u.lanes, u.across)
        return _Matrix(*held, *sizes, int(self.scales is not None), self._told_scales())

    def _told_scales(self) -> _Scales:
        if self.scales is None:
            return _Scales()
        numbers, blocks = self.scales.numbers, self.scales.blocks
        shift = blocks.columns.bit_length() - 1
        sizes = (*numbers.shape[1:], blocks.rows, shift, *self.scales.first)
        return _Scales(_at(numbers), _at(self.orders_EC), *sizes)


def scales_problem(blocks: Blocks) -> str | None:
    """Why the kernels do not take such blocks: a group of 32 lies within one, found by shifting."""
    columns = blocks.columns
    if columns % GROUP == 0 and columns & (columns - 1) == 0:
        return None
    return (
        f"of float8 take scales for {GROUP} columns or a power of two more on a GPU, and these are "
        f"for {columns}; `leanmoe unpack` the model"
    )


class Kernels:
    """The library's functions; a launch that fails raises ``RuntimeSeamError``."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.leanmoe_packed_error.restype = ctypes.c_char_p
        for name in ("leanmoe_packed_step", "leanmoe_packed_dense"):
            getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    @property
    def shared_bytes(self) -> int:
        """Of shared memory that a block may have on the current device."""
        return int(self._library.leanmoe_packed_shared_bytes())

    def step(self, told: _Step, stream: int) -> None:
        self._check(self._library.leanmoe_packed_step(ctypes.addressof(told), stream))

    def write_dense(self, told: _Writing, stream: int) -> None:
        self._check(self._library.leanmoe_packed_dense(ctypes.addressof(told), stream))

    def _check(self, error: int) -> None:
        if error:
            words = self._library.leanmoe_packed_error(error).decode()
            raise RuntimeSeamError(f"a kernel of packed experts could not be launched: {words}")


def _stream(tensor: torch.Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


@dataclass
class PackedBlock:
    """The packed experts of a layer on a GPU."""

    kernels: Kernels
    gate_up: PackedMatrix
    down: PackedMatrix
    orders_ED: torch.Tensor | None
    activation: str
    dense: DenseKernel
    workspace: Workspace
    # Of inputs and of weights that are written out.
    dtype: torch.dtype
    slot: int = field(default_factory=count().__next__)

    def __post_init__(self) -> None:
        fits = self.kernels.shared_bytes - _SORTING_BYTES
        widest = max(self.gate_up.units.gather_bytes, self.down.units.gather_bytes)
        self._gathers = bool(self.gate_up.units.keep) and widest <= fits
        values = self.gate_up.values
        self.experts = len(values)
        _, numbers = self._pieces()
        self.workspace.reserve(numbers, self.dtype, values.device)
        _BLOCKS[self.slot] = self

    def regime(self, tokens: int, top_k: int) -> Regime:
        return regime_of(tokens, top_k, self.experts, gathers=self._gathers)

    def __call__(
        self, x_TD: torch.Tensor, weights_TK: torch.Tensor, ids_TK: torch.Tensor
    ) -> torch.Tensor:
        """``[T, D]``; a pair of id -1 costs nothing."""
        x_TD, weights_TK = x_TD.contiguous(), weights_TK.float().contiguous()
        ids_TK = ids_TK.to(torch.int32).contiguous()
        regime = self.regime(*ids_TK.shape)
        if regime.way is Way.DENSE:
            return self.through_dense(x_TD, weights_TK, ids_TK)
        return self._packed(x_TD, weights_TK, ids_TK, regime)

    def _packed(
        self, x_TD: torch.Tensor, weights_TK: torch.Tensor, ids_TK: torch.Tensor, regime: Regime
    ) -> torch.Tensor:
        (tokens, top_k), (wide, hidden) = ids_TK.shape, self._widths()
        reorders = self.orders_ED is not None and regime.way is Way.TENSOR
        sorts = reorders or ids_TK.numel() > FEW_PAIRS
        out_TD = torch.empty_like(x_TD)
        rows = x_TD.new_empty(tokens * top_k, hidden + wide * (2 if reorders else 1))
        hidden_at, rows_at = rows.data_ptr(), rows.data_ptr() + 2 * tokens * top_k * hidden
        items = 4 + regime.items * (1 + regime.per_item)
        found = ids_TK.new_empty(items if sorts else 0)
        told = _Step(
            self.gate_up.told(),
            self.down.told(),
            *map(_at, (x_TD, weights_TK, ids_TK, self.orders_ED, out_TD)),
            *(hidden_at, rows_at, rows_at + 2 * tokens * top_k * wide, _at(found)),
            *(tokens, top_k, self.experts, int(x_TD.dtype == torch.float16)),
            *(ACTIVATIONS.index(self.activation), regime.way, regime.per_item, regime.items),
        )
        self.kernels.step(told, _stream(x_TD))
        return out_TD

    def _widths(self) -> tuple[int, int]:
        return self.down.units.rows, self.down.units.columns

    def _pieces(self) -> tuple[int, int]:
        """Experts that are written out at a time, and how many numbers they have."""
        wide, hidden = self._widths()
        each = 3 * wide * hidden
        most = max(1, WORKSPACE_BYTES // (each * self.dtype.itemsize))
        pieces = -(-self.experts // most)
        size = -(-self.experts // pieces)
        return size, size * each

    def through_dense(
        self, x_TD: torch.Tensor, weights_TK: torch.Tensor, ids_TK: torch.Tensor
    ) -> torch.Tensor:
        """vLLM's own kernel on as many experts at a time as the workspace holds."""
        size, _ = self._pieces()
        sum_TD: torch.Tensor | None = None
        for first in range(0, self.experts, size):
            some = min(size, self.experts - first)
            w13, w2 = self.write_out(first, some)
            inside = (ids_TK >= first) & (ids_TK < first + some)
            # 0 is none of these experts.
            ids = ids_TK.sub(first - 1).where(inside, 0)
            part_TD = self.dense(x_TD, w13, w2, weights_TK, ids)
            if some == self.experts:
                return part_TD
            sum_TD = part_TD.float() if sum_TD is None else sum_TD.add_(part_TD)
        assert sum_TD is not None, "a layer has experts"
        return sum_TD.to(x_TD.dtype)

    def write_out(self, first: int, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Some experts' weights ``[e, 2F, D]`` and ``[e, D, F]``, as vLLM's kernels read them."""
        wide, hidden = self._widths()
        w13, w2 = self.workspace.views((experts, 2 * hidden, wide), (experts, wide, hidden))
        for matrix, out, orders in ((self.gate_up, w13, self.orders_ED), (self.down, w2, None)):
            turns, is_half = int(matrix is self.gate_up), int(self.dtype == torch.float16)
            where = (_at(orders), _at(out), first, experts, turns, is_half)
            self.kernels.write_dense(_Writing(matrix.told(), *where), _stream(out))
        return w13, w2


# What the operator is told a layer by.
_BLOCKS: WeakValueDictionary[int, PackedBlock] = WeakValueDictionary()


def packed_experts(
    x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, slot: int
) -> torch.Tensor:
    """The body of ``leanmoe::packed_experts``: ``slot`` says which layer's."""
    return _BLOCKS[slot](x, topk_weights, topk_ids)


def packed_experts_fake(
    x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, slot: int
) -> torch.Tensor:
    """What Dynamo is told of it."""
    return torch.empty_like(x)


def registered() -> Any:
    """The operator, defined at first use."""
    if not hasattr(torch.ops.leanmoe, "packed_experts"):
        direct_register_custom_op(
            op_name="packed_experts",
            op_func=packed_experts,
            fake_impl=packed_experts_fake,
            target_lib=_LIBRARY,
            dispatch_key="CUDA",
        )
    return torch.ops.leanmoe.packed_experts


_LIBRARY = torch.library.Library("leanmoe", "FRAGMENT")  # type: ignore[no-untyped-call]
