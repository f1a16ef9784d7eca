"""Where packed experts live and what computes them: a CPU's memory, or a GPU's.

E experts of a process, R rows and C columns of a matrix, T tokens, K top-k, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from leanmoe.messages import SkipMode
from leanmoe.sparse.packing import Overflow, Packed
from leanmoe.sparse.scale_blocks import Blocks
from leanmoe.sparse.sparse_format import GROUP, INPUT_ORDER, SparseFormat
from leanmoe_runtime.compat import current_platform, device_of_worker, fused_experts
from leanmoe_runtime.engine import current_engine
from leanmoe_runtime.native import gpu_library
from leanmoe_runtime.sparse.gpu import (
    DenseKernel,
    Kernels,
    PackedBlock,
    PackedMatrix,
    registered,
    scales_problem,
)
from leanmoe_runtime.sparse.kernel import PackedExperts, PackedProjection, Scales, instruction_sets
from leanmoe_runtime.sparse.storage import (
    BLOCK_ROWS,
    empty_pages,
    first_kept,
    joined,
    put_half,
    put_rows,
)
from leanmoe_runtime.sparse.units import Units, entries, put_matrix

# (x_TD, weights_TK, ids_TK) to what the experts of each token add up to.
Block = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# Experts, rows, columns.
Size = tuple[int, int, int]
# Values and mask of a stack, or of one of its experts.
Held = tuple[torch.Tensor, torch.Tensor]
# vLLM's stacks of a layer: gate over up projection, and down.
STACKS = ("w13", "w2")
# The overflow lists of an expert's matrices of each stack, expert by expert.
Listed = Mapping[str, Sequence[Sequence[Overflow]]]
_CPU_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_GPU_DTYPES = (torch.bfloat16, torch.float16)
# The oldest with tensor cores for bfloat16 and for 2:4.
_LEAST_CAPABILITY = 80


class Home(Protocol):
    """One kind of device; stacks go by name.

    ``half`` is 0 of a gate, 1 of an up, ``None`` of a down projection.
    """

    device: torch.device
    # How the kernel leaves an assignment out, for the router's launch; ``None`` on a CPU.
    skip_mode: SkipMode | None

    def problem(self, dtype: torch.dtype) -> str | None:
        """Why this device cannot compute such experts, to follow "packed experts ..."."""

    def empty(self, name: str, size: Size, dtype: torch.dtype) -> Held:
        """Room for values ``[E, R, V]`` and masks ``[E, R, B]``; nothing loaded is a valid mask."""

    def put(
        self,
        name: str,
        stored: Held,
        packed: Packed,
        half: int | None,
    ) -> None:
        """Keep an expert's matrix in its values and mask."""

    def block(
        self, layer: Any, held: Mapping[str, Held], listed: Listed, scales: Mapping[str, Scales]
    ) -> Block:
        """What computes the layer, once all is loaded."""


def home_of(how: SparseFormat) -> Home:
    """The home on this worker's device."""
    return CpuHome(how) if current_platform.is_cpu() else GpuHome(how)


def parameter_name(stack: str, end: str) -> str:
    """Of what lies in ``stack`` under a name's ``end``: without a dot, as vLLM's w13_weight."""
    return f"{stack}{end.replace('.', '_')}"


def _orders(layer: Any) -> torch.Tensor | None:
    return getattr(layer, parameter_name("w13", INPUT_ORDER), None)


class CpuHome:
    """Read by the library of experts.cpp."""

    skip_mode: SkipMode | None = None

    def __init__(self, how: SparseFormat) -> None:
        self._how, self.device = how, torch.device("cpu")

    def problem(self, dtype: torch.dtype) -> str | None:
        if dtype not in _CPU_DTYPES:
            return _unknown_dtype(dtype, "a CPU", _CPU_DTYPES)
        instruction_sets()  # what cannot be built must fail here
        return _unknown_blocks(self._how)

    def empty(self, name: str, size: Size, dtype: torch.dtype) -> Held:
        experts, rows, columns = size
        values = empty_pages((experts, rows, self._how.values_per_row(columns)), dtype)
        return values, first_kept((experts, rows, columns // 8), self._how.keep)

    def put(
        self,
        name: str,
        stored: Held,
        packed: Packed,
        half: int | None,
    ) -> None:
        groups = packed.mask_RB.shape[1] * 8 // GROUP
        for place, numbers in zip(stored, (packed.values_RV, packed.mask_RB), strict=True):
            rows_RX = _tensor(numbers, place.dtype)
            if half is None:
                put_rows(place, rows_RX, groups)
            else:
                put_half(place, half, rows_RX, groups)

    def block(
        self, layer: Any, held: Mapping[str, Held], listed: Listed, scales: Mapping[str, Scales]
    ) -> Block:
        gate_up, down = (
            replace(
                self._projection(layer, name, held[name], listed.get(name)), scales=scales.get(name)
            )
            for name in STACKS
        )
        return PackedExperts(gate_up, down, _orders(layer), layer.activation.value)

    def _projection(
        self,
        layer: Any,
        name: str,
        held: Held,
        listed: Sequence[Sequence[Overflow]] | None,
    ) -> PackedProjection:
        if listed is None:
            return PackedProjection(*held)
        overflow = joined([one for expert in listed for one in expert], held[0].dtype)
        for end, tensor in zip(("rows", "columns", "values"), overflow, strict=True):
            layer.register_buffer(f"{name}_weight_overflow_{end}", tensor)
        return PackedProjection(*held, overflow)


class GpuHome:
    """Read by the library of cuda/packed.cu."""

    skip_mode: SkipMode | None = SkipMode.MASK

    def __init__(self, how: SparseFormat) -> None:
        self._how, self.device = how, torch.device(device_of_worker())
        self._units: dict[str, Units] = {}

    def problem(self, dtype: torch.dtype) -> str | None:
        if not current_platform.is_cuda():
            return "run on CPUs and NVIDIA GPUs; `leanmoe unpack` writes the model for others"
        if not current_platform.has_device_capability(_LEAST_CAPABILITY):
            return (
                f"take a GPU of compute capability 8.0 or newer, and this one has "
                f"{current_platform.get_device_capability().as_version_str()}; `leanmoe unpack` "
                "the model for it"
            )
        if dtype not in _GPU_DTYPES:
            return _unknown_dtype(dtype, "a GPU", _GPU_DTYPES)
        if (problem := self._unknown_scales()) is not None:
            return problem
        gpu_library()  # what cannot be built must fail here
        return None

    def _unknown_scales(self) -> str | None:
        if not self._how.is_float8:
            return None
        if self._how.layout == "indices" and self._how.input_orders:
            return (
                "of float8 in 2:4 with input orders are not computed on a GPU; prune the model "
                "with --no-permute, or `leanmoe unpack` it"
            )
        return scales_problem(Blocks.of(self._how.inner))

    def empty(self, name: str, size: Size, dtype: torch.dtype) -> Held:
        experts, rows, columns = size
        units = self._units[name] = Units.of(self._how, rows, columns)
        values = units.empty_values(experts, dtype, self.device)
        return values, units.empty_mask(experts, self._how.keep, self.device)

    def put(
        self,
        name: str,
        stored: Held,
        packed: Packed,
        half: int | None,
    ) -> None:
        put_matrix(self._units[name], stored, packed, half)

    def block(
        self, layer: Any, held: Mapping[str, Held], listed: Listed, scales: Mapping[str, Scales]
    ) -> Block:
        gate_up, down = (
            replace(
                self._matrix(layer, name, held[name], listed.get(name)),
                scales=scales.get(name),
                orders_EC=_orders(layer) if name == "w13" else None,
            )
            for name in STACKS
        )
        block = PackedBlock(
            Kernels(gpu_library()),
            gate_up,
            down,
            _orders(layer),
            layer.activation.value,
            _dense_kernel(layer.activation, layer.local_num_experts, self.device),
            current_engine().workspace,
            layer.params_dtype,
        )
        operator = registered()
        # The operator knows the block by its slot; the layer keeps it.
        return lambda x, weights, ids: operator(x, weights, ids, block.slot)

    def _matrix(
        self,
        layer: Any,
        name: str,
        held: Held,
        listed: Sequence[Sequence[Overflow]] | None,
    ) -> PackedMatrix:
        values, mask = held
        units = self._units[name]
        if listed is None:
            return PackedMatrix(units, values, mask)
        overflow = entries(units, listed, self.device)
        for end, tensor in zip(("starts", "entries"), overflow, strict=True):
            layer.register_buffer(f"{name}_weight_overflow_{end}", tensor)
        return PackedMatrix(units, values, mask, overflow)


def _dense_kernel(activation: Any, experts: int, device: torch.device) -> DenseKernel:
    """vLLM's fused experts on some of a layer's; id 0 is none, 1 the first of them."""
    # Not -1: a map that leaves experts out is what expert parallelism has used all along.
    map_E = torch.arange(-1, experts, dtype=torch.int32, device=device)

    def dense(
        x: torch.Tensor,
        w13: torch.Tensor,
        w2: torch.Tensor,
        weights: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        ids_of_map = {"global_num_experts": len(w13) + 1, "expert_map": map_E[: len(w13) + 1]}
        found: torch.Tensor = fused_experts(
            x, w13, w2, weights, ids, activation=activation, **ids_of_map
        )
        return found

    return dense


def _unknown_dtype(dtype: torch.dtype, device: str, known: Sequence[torch.dtype]) -> str:
    found, *names = (str(one).removeprefix("torch.") for one in (dtype, *known))
    return (
        f"are not computed in {found} on {device}, which knows {', '.join(names)}; serve them with "
        "--dtype, or `leanmoe unpack` the model"
    )


def _unknown_blocks(how: SparseFormat) -> str | None:
    """Of float8: rows that are computed together have to share their scales."""
    if how.is_float8 and (rows := Blocks.of(how.inner).rows) % BLOCK_ROWS:
        return (
            f"of float8 take scales for a multiple of {BLOCK_ROWS} rows, and these are for {rows}; "
            "`leanmoe unpack` the model"
        )
    return None


def _tensor(numbers: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers).view(f"i{dtype.itemsize}")).view(dtype)
