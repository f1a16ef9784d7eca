"""A MoE block on packed experts, on CPUs: the library of experts.cpp, called by address.

It knows nothing of torch but the OpenMP threads that both use, so that one library serves beside
any torch. E experts, H halves (gate and up projection, or one), R rows, V values and B bytes of
mask of a row, T tokens, K top-k, D model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch

from leanmoe.sparse.scale_blocks import Blocks
from leanmoe.sparse.sparse_format import GROUP
from leanmoe_runtime.native import sparse_library
from leanmoe_runtime.sparse.storage import BLOCK_ROWS

# As experts.cpp numbers them; the last is of values alone.
_TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn)
_FLOAT8 = torch.float8_e4m3fn
_ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
_DONE = -1


@dataclass(frozen=True)
class Scales:
    """What float8 values are multiplied by, ``[E, H, row blocks, column blocks]`` of float32.

    ``first`` is the row and column within the first block at which a process's part begins.
    """

    numbers: torch.Tensor
    blocks: Blocks
    first: tuple[int, int] = (0, 0)

    def fits(self, experts: int, halves: int, rows: int, columns: int) -> bool:
        """Whether these are of such a projection, and rows that are multiplied together agree."""
        top, left = self.first
        expected = (experts, halves, *self.blocks.count(top + rows, left + columns))
        return (
            self.numbers.shape == expected
            and self.numbers.dtype == torch.float32
            and self.numbers.is_contiguous()
            and top < self.blocks.rows
            and left < self.blocks.columns
            and self.blocks.rows % BLOCK_ROWS == top % BLOCK_ROWS == 0
        )


@dataclass(frozen=True)
class PackedProjection:
    """One projection of all experts, as the library reads it (storage.py).

    ``overflow`` is empty, or the starts of all rows' entries, their columns and values; ``scales``
    are of float8 values.
    """

    values_ERV: torch.Tensor
    mask_ERB: torch.Tensor
    overflow: Sequence[torch.Tensor] = field(default=())
    scales: Scales | None = None

    @property
    def groups(self) -> int:
        return self.mask_ERB.shape[2] * 8 // GROUP

    @property
    def keep(self) -> int:
        return self.values_ERV.shape[2] // self.groups

    def tensors(self) -> tuple[torch.Tensor, ...]:
        scales = () if self.scales is None else (self.scales.numbers,)
        return (self.values_ERV, self.mask_ERB, *self.overflow, *scales)


class _Scales(ctypes.Structure):
    _fields_ = (
        ("numbers", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("halves", "row_blocks", "column_blocks")),
        *((name, ctypes.c_int64) for name in ("block_rows", "block_columns")),
        *((name, ctypes.c_int64) for name in ("first_row", "first_column")),
    )


class _Projection(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "mask", "starts", "narrow", "wide")),
        ("overflow", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "groups", "keep")),
        ("scales", _Scales),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("gate_up", _Projection),
        ("down", _Projection),
        ("orders", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("experts", "type", "activation")),
        ("isa", ctypes.c_char_p),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weights", "ids", "out")),
        *((name, ctypes.c_int64) for name in ("tokens", "top_k", "threads", "type")),
    )


class PackedExperts:
    """The experts of a layer; called with a step's tokens it adds up what theirs give, ``[T, D]``.

    A pair of id -1 costs nothing. Inputs are of the type of the values, of any where these are
    float8. ``isa`` names an instruction set, the best the processor has if empty. ``ValueError``
    where the tensors are not of one layer.
    """

    def __init__(
        self,
        gate_up: PackedProjection,
        down: PackedProjection,
        orders_ED: torch.Tensor | None,
        activation: str,
        isa: str = "",
    ) -> None:
        # The library is told addresses: what lies there must live as long.
        self._held = (*gate_up.tensors(), *down.tensors(), orders_ED)
        self._n_experts, self._width = down.mask_ERB.shape[:2]
        self._dtype = down.values_ERV.dtype
        _check(gate_up, down, orders_ED)
        self._layer = _Layer(
            _told(gate_up),
            _told(down),
            None if orders_ED is None else orders_ED.data_ptr(),
            *(self._n_experts, _TYPES.index(self._dtype), _ACTIVATIONS.index(activation)),
            (isa or instruction_sets()[0]).encode(),
        )
        self._run = sparse_library().leanmoe_packed_experts
        self._run.argtypes = [ctypes.POINTER(_Layer), ctypes.POINTER(_Step)]
        self._run.restype = ctypes.c_int64

    def __call__(
        self, x_TD: torch.Tensor, weights_TK: torch.Tensor, ids_TK: torch.Tensor
    ) -> torch.Tensor:
        x_TD, weights_TK = x_TD.contiguous(), weights_TK.to(torch.float32).contiguous()
        ids_TK = ids_TK.to(torch.int32).contiguous()
        self._check_step(x_TD, weights_TK, ids_TK)
        out_TD = torch.empty_like(x_TD)
        addresses = (one.data_ptr() for one in (x_TD, weights_TK, ids_TK, out_TD))
        threads, dtype = torch.get_num_threads(), _TYPES.index(x_TD.dtype)
        step = _Step(*addresses, *ids_TK.shape, threads, dtype)
        found = self._run(self._layer, step)
        if found != _DONE:
            raise self._refusal(found, ids_TK)
        return out_TD

    def _check_step(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> None:
        pairs = ids.shape
        is_known = x.dtype in _TYPES[:-1] if self._dtype == _FLOAT8 else x.dtype == self._dtype
        if not is_known or x.shape != (pairs[0], self._width) or weights.shape != pairs:
            raise ValueError(
                f"inputs are {list(x.shape)} of {x.dtype} with weights {list(weights.shape)} and "
                f"ids {list(pairs)}, expected rows of {self._width} of {self._dtype} and as many "
                "weights as ids"
            )

    def _refusal(self, found: int, ids_TK: torch.Tensor) -> Exception:
        if found < 0:
            return MemoryError("packed experts found no memory for a step's hidden values")
        return IndexError(f"expert {int(ids_TK.flatten()[found])} of {self._n_experts}")


def _check(
    gate_up: PackedProjection, down: PackedProjection, orders_ED: torch.Tensor | None
) -> None:
    experts, width, hidden = *down.mask_ERB.shape[:2], down.groups * GROUP
    values = gate_up.values_ERV, down.values_ERV
    rows = [one.shape[:2] for one in (gate_up.mask_ERB, *values)]
    scaled = ((gate_up, 2, hidden, width), (down, 1, width, hidden))
    is_one_layer = (
        rows == [(experts, 2 * hidden), (experts, 2 * hidden), (experts, width)]
        and gate_up.groups * GROUP == width
        and gate_up.keep == down.keep
        and values[0].dtype == values[1].dtype
        and all(one.mask_ERB.is_contiguous() for one in (gate_up, down))
        and all(one.is_contiguous() for one in values)
        and (orders_ED is None or orders_ED.shape == (experts, width))
        and all(_is_scaled(one, experts, *size) for one, *size in scaled)
    )
    if not is_one_layer:
        raise ValueError("values, masks and orders are not of one layer's packed experts")


def _is_scaled(one: PackedProjection, experts: int, halves: int, rows: int, columns: int) -> bool:
    """Whether float8 values have their scales, and no others have any."""
    if one.scales is None or one.values_ERV.dtype != _FLOAT8:
        return one.scales is None and one.values_ERV.dtype != _FLOAT8
    return one.scales.fits(experts, halves, rows, columns)


def _told_scales(scales: Scales | None) -> _Scales:
    if scales is None:
        return _Scales()
    numbers, blocks = scales.numbers, scales.blocks
    sizes = (*numbers.shape[1:], blocks.rows, blocks.columns, *scales.first)
    return _Scales(numbers.data_ptr(), *sizes)


def _told(projection: PackedProjection) -> _Projection:
    values, mask = projection.values_ERV, projection.mask_ERB
    rows, addresses = mask.shape[1], [values.data_ptr(), mask.data_ptr(), None, None, None, None]
    if projection.overflow:
        starts, columns, beyond = projection.overflow
        if starts.numel() != len(mask) * rows + 1:
            raise ValueError(f"overflow of {starts.numel() - 1} rows for {len(mask) * rows}")
        is_narrow = columns.dtype == torch.int16
        addresses[2:] = [
            starts.data_ptr(),
            columns.data_ptr() if is_narrow else None,
            None if is_narrow else columns.data_ptr(),
            beyond.data_ptr(),
        ]
    sizes = (rows, projection.groups, projection.keep)
    return _Projection(*addresses, *sizes, _told_scales(projection.scales))


@cache
def instruction_sets() -> tuple[str, ...]:
    """What this processor can compute with, best first; builds and loads the library."""
    named = sparse_library().leanmoe_packed_instruction_sets
    named.restype = ctypes.c_char_p
    found: bytes = named()
    return tuple(found.decode().split(","))
