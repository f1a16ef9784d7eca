"""vLLM's quantization method ``leanmoe_sparse``: experts stay packed from the file to the kernel.

E experts of a process, F its part of their hidden width, D model, T tokens, K top-k.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leanmoe.errors import CheckpointError, InputError, RuntimeSeamError
from leanmoe.manifest import read_manifest
from leanmoe.sparse.packing import Overflow, Packed, take_groups, take_rows
from leanmoe.sparse.sparse_format import (
    CONFIG_KEY,
    GROUP,
    INPUT_ORDER,
    MASK,
    PARTS,
    QUANT_METHOD,
    VALUES,
    WEIGHT,
    SparseFormat,
    pattern_of,
    read_sparse_format,
)
from leanmoe_runtime.compat import (
    FUSED_MOE_UNQUANTIZED_CONFIG,
    FusedMoEMethodBase,
    LinearBase,
    QuantizationConfig,
    RoutedExperts,
    UnquantizedLinearMethod,
    current_platform,
    get_current_vllm_config,
    register_quantization_config,
)
from leanmoe_runtime.sparse.arrivals import Arrivals, Place
from leanmoe_runtime.sparse.kernel import PackedProjection, instruction_sets, sparse_experts
from leanmoe_runtime.sparse.storage import empty_pages, first_kept, joined, put_half, put_rows

# What the kernel computes, as vLLM names it.
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
# Which stack of vLLM's a projection lies in.
_STACKS = {"w1": "w13", "w3": "w13", "w2": "w2"}
_DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


class LeanSparseConfig(QuantizationConfig):  # type: ignore[misc]
    """How a checkpoint's experts are packed; of a dense one, how they are to be while loading."""

    def __init__(self, how: SparseFormat | None = None) -> None:
        super().__init__()
        self.how = how

    @classmethod
    def get_name(cls) -> str:
        return QUANT_METHOD

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return list(_DTYPES.values())

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LeanSparseConfig:
        return cls(read_sparse_format({CONFIG_KEY: config}, "config.json"))

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Find how a dense checkpoint was pruned: vLLM was told to pack it while loading."""
        if self.how is not None:
            return
        folder = Path(model_name)
        manifest = read_manifest(folder) if folder.is_dir() else None
        pattern = None if manifest is None else pattern_of(manifest.settings)
        if pattern is None:
            raise InputError(
                f"{model_name} has no manifest that says by which pattern its weights were zeroed, "
                f"so --quantization {QUANT_METHOD} cannot pack it; run `leanmoe pack --pattern`"
            )
        self.how = SparseFormat.of_pattern(pattern, "bfloat16")

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        if isinstance(layer, RoutedExperts):
            assert self.how is not None, "vLLM updates a config before it builds layers"
            return LeanSparseMethod(self.how, layer.moe_config)
        return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None


class LeanSparseMethod(FusedMoEMethodBase):  # type: ignore[misc]
    """The packed experts of one layer."""

    def __init__(self, how: SparseFormat, moe: Any) -> None:
        super().__init__(moe)
        self._how = how
        self._arrivals: Arrivals | None = None
        self._overflow: dict[Place, Overflow] = {}
        self._gate_up: PackedProjection | None = None
        self._down: PackedProjection | None = None

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra: Any,
    ) -> None:
        """Room for packed weights, and one name for every tensor that a file may bring."""
        wide, hidden = hidden_size, intermediate_size_per_partition
        self._check(layer, wide, hidden, params_dtype)
        put = partial(self._put, layer)
        self._arrivals = Arrivals(self._how, params_dtype, layer.layer_name, put)
        for name, rows, columns in (("w13", 2 * hidden, wide), ("w2", wide, hidden)):
            self._add(layer, name, (num_experts, rows, columns), params_dtype)
        if self._how.input_orders:
            orders_ED = torch.arange(wide, dtype=torch.int32, device="cpu").repeat(num_experts, 1)
            self._register(layer, f"w13{INPUT_ORDER}", orders_ED)

    def _check(self, layer: Any, wide: int, hidden: int, dtype: torch.dtype) -> None:
        where, parallel = layer.layer_name, self.moe.moe_parallel_config
        if not current_platform.is_cpu():
            problem = "run on CPUs only; `leanmoe unpack` writes the model for other devices"
        elif parallel.use_ep or parallel.enable_eplb:
            problem = "are not shared out by expert parallelism; serve them with tensor parallelism"
        elif self.moe.is_lora_enabled:
            problem = "take no LoRA adapters; `leanmoe unpack` the model for them"
        elif self._how.inner is not None or dtype not in _DTYPES.values():
            problem = (
                f"of {self._how.dtype} are not computed on a CPU, which knows "
                f"{', '.join(_DTYPES)}; `leanmoe unpack` the model"
            )
        elif layer.activation.value not in ACTIVATIONS or layer.apply_router_weight_on_input:
            problem = f"do not compute {layer.activation.value}, only {', '.join(ACTIVATIONS)}"
        elif wide % GROUP or hidden % GROUP:
            problem = (
                f"come in groups of {GROUP} weights, and this process would get {hidden} of the "
                f"hidden width at a tensor parallel size of {parallel.tp_size}; take a smaller one"
            )
        else:
            instruction_sets()  # what cannot be built must fail here
            return
        raise RuntimeSeamError(f"{where}: packed experts {problem}")

    def _add(self, layer: Any, name: str, size: tuple[int, int, int], dtype: torch.dtype) -> None:
        experts, rows, columns = size
        keep = self._how.keep
        values = empty_pages((experts, rows, self._how.values_per_row(columns)), dtype)
        mask = first_kept((experts, rows, columns // 8), keep)
        held = {VALUES: values, MASK: mask}
        # Of what only passes through, a name to load it by.
        none = torch.empty(0, dtype=dtype, device="cpu")
        for end in {*PARTS[self._how.layout], *held, WEIGHT}:
            self._register(layer, f"{name}{end}", held.get(end, none))

    def _register(self, layer: Any, name: str, tensor: torch.Tensor) -> None:
        # A parameter's name has no dot; vLLM's own are w13_weight and the like.
        stem, end = name.split(".")
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        parameter.weight_loader = partial(self._load, f".{end}")  # type: ignore[attr-defined]
        layer.register_parameter(f"{stem}_{end}", parameter)

    def _load(
        self,
        end: str,
        param: torch.nn.Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int,
        return_success: bool = False,
    ) -> bool | None:
        assert self._arrivals is not None
        self._arrivals.take((expert_id, shard_id), end, loaded_weight)
        return True if return_success else None

    def _put(self, layer: Any, place: Place, packed: Packed, order: torch.Tensor | None) -> None:
        """Keep this process's part of a whole matrix."""
        expert, projection = place
        name, hidden = _STACKS[projection], layer.intermediate_size_per_partition
        part = self._part(packed, projection, hidden)
        values = layer.get_parameter(f"{name}_weight_values").data[expert]
        mask = layer.get_parameter(f"{name}_weight_mask").data[expert]
        rows = hidden if name == "w13" else len(values)
        if part.values_RV.shape != (rows, values.shape[1]):
            raise CheckpointError(
                f"{layer.layer_name}, expert {expert}, {projection}: its values are "
                f"{list(part.values_RV.shape)}, expected {[rows, values.shape[1]]} from "
                "config.json; config and shards are of different models"
            )
        groups = mask.shape[1] * 8 // GROUP
        for stored, numbers in ((values, part.values_RV), (mask, part.mask_RB)):
            rows_RX = _tensor(numbers, stored.dtype)
            if name == "w2":
                put_rows(stored, rows_RX, groups)
            else:
                put_half(stored, int(projection == "w3"), rows_RX, groups)
        if order is not None:
            layer.get_parameter("w13_weight_input_order").data[expert].copy_(order)
        if part.overflow is not None:
            self._overflow[expert, projection] = part.overflow

    def _part(self, packed: Packed, projection: str, hidden: int) -> Packed:
        first = self.moe.moe_parallel_config.tp_rank * hidden
        if projection == "w2":
            groups = first // GROUP, (first + hidden) // GROUP
            return take_groups(packed, self._how.keep, *groups)
        return take_rows(packed, first, first + hidden)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check that all is there; what only passed through loses its name."""
        experts = layer.local_num_experts
        assert self._arrivals is not None, "weights are created first"
        # Weights made up by vLLM itself, for measuring, come by no loader.
        if get_current_vllm_config().load_config.load_format != "dummy":
            self._arrivals.check_whole(experts)
        for name in [name for name, held in layer.named_parameters() if not held.numel()]:
            delattr(layer, name)
        self._gate_up = self._projection(layer, "w13", ("w1", "w3"), experts)
        self._down = self._projection(layer, "w2", ("w2",), experts)

    def _projection(
        self, layer: Any, name: str, projections: tuple[str, ...], experts: int
    ) -> PackedProjection:
        held = (
            layer.get_parameter(f"{name}_weight_values"),
            layer.get_parameter(f"{name}_weight_mask"),
        )
        if not self._overflow:
            return PackedProjection(*held)
        listed = [self._overflow[expert, one] for expert in range(experts) for one in projections]
        overflow = joined(listed, held[0].dtype)
        for end, tensor in zip(("rows", "columns", "values"), overflow, strict=True):
            layer.register_buffer(f"{name}_weight_overflow_{end}", tensor)
        return PackedProjection(*held, overflow)

    def get_fused_moe_quant_config(self, layer: Any) -> Any:
        return FUSED_MOE_UNQUANTIZED_CONFIG

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """The experts' share of the block's output, ``[T, D]``."""
        assert self._gate_up is not None and self._down is not None, "weights are loaded first"
        orders_ED = layer.w13_weight_input_order if self._how.input_orders else None
        return sparse_experts(
            x, topk_weights, topk_ids, self._gate_up, self._down, orders_ED, layer.activation.value
        )


def _tensor(numbers: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers).view(f"i{dtype.itemsize}")).view(dtype)


def register_method() -> None:
    """Let vLLM know the method by its name."""
    register_quantization_config(QUANT_METHOD)(LeanSparseConfig)
