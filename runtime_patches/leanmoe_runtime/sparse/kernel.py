"""A MoE block on packed experts, on CPUs: the library of experts.cpp, called by address.

It knows nothing of torch but the OpenMP threads that both use, so that one library serves beside
any torch. E experts, R rows, V values and B bytes of mask of a row, T tokens, K top-k, D model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch

from leanmoe.sparse.sparse_format import GROUP
from leanmoe_runtime.native import sparse_library

# As experts.cpp numbers them.
_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
_DONE = -1


@dataclass(frozen=True)
class PackedProjection:
    """One projection of all experts, as the library reads it (storage.py).

    ``overflow`` is empty, or the starts of all rows' entries, their columns and values.
    """

    values_ERV: torch.Tensor
    mask_ERB: torch.Tensor
    overflow: Sequence[torch.Tensor] = field(default=())

    @property
    def groups(self) -> int:
        return self.mask_ERB.shape[2] * 8 // GROUP

    @property
    def keep(self) -> int:
        return self.values_ERV.shape[2] // self.groups

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.values_ERV, self.mask_ERB, *self.overflow)


class _Projection(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "mask", "starts", "narrow", "wide")),
        ("overflow", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "groups", "keep")),
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
        *((name, ctypes.c_int64) for name in ("tokens", "top_k", "threads")),
    )


class PackedExperts:
    """The experts of a layer; called with a step's tokens it adds up what theirs give, ``[T, D]``.

    A pair of id -1 costs nothing. ``isa`` names an instruction set, the best the processor has
    if empty. ``ValueError`` where the tensors are not of one layer.
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
        step = _Step(*addresses, *ids_TK.shape, torch.get_num_threads())
        found = self._run(self._layer, step)
        if found != _DONE:
            raise self._refusal(found, ids_TK)
        return out_TD

    def _check_step(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> None:
        pairs = ids.shape
        if x.dtype != self._dtype or x.shape != (pairs[0], self._width) or weights.shape != pairs:
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
    is_one_layer = (
        rows == [(experts, 2 * hidden), (experts, 2 * hidden), (experts, width)]
        and gate_up.groups * GROUP == width
        and gate_up.keep == down.keep
        and values[0].dtype == values[1].dtype
        and all(one.mask_ERB.is_contiguous() for one in (gate_up, down))
        and all(one.is_contiguous() for one in values)
        and (orders_ED is None or orders_ED.shape == (experts, width))
    )
    if not is_one_layer:
        raise ValueError("values, masks and orders are not of one layer's packed experts")


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
    return _Projection(*addresses, rows, projection.groups, projection.keep)


@cache
def instruction_sets() -> tuple[str, ...]:
    """What this processor can compute with, best first; builds and loads the library."""
    named = sparse_library().leanmoe_packed_instruction_sets
    named.restype = ctypes.c_char_p
    found: bytes = named()
    return tuple(found.decode().split(","))
