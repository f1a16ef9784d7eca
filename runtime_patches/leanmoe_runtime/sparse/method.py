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

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe.errors import CheckpointError, InputError, RuntimeSeamError
from leanmoe.input_orders import INPUT_ORDERS_NAME
from leanmoe.manifest import read_manifest
from leanmoe.messages import SkipMode
from leanmoe.sparse.packing import Overflow, Packed, take_groups, take_rows
from leanmoe.sparse.scale_blocks import SCALE, Blocks
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
    Fp8Config,
    FusedMoEMethodBase,
    LinearBase,
    QuantizationConfig,
    RoutedExperts,
    UnquantizedLinearMethod,
    computes_float8_blocks,
    get_current_vllm_config,
    register_quantization_config,
)
from leanmoe_runtime.sparse.arrivals import Arrivals, Arrived, Place
from leanmoe_runtime.sparse.gpu import ACTIVATIONS
from leanmoe_runtime.sparse.home import STACKS, Block, Held, Size, home_of, parameter_name
from leanmoe_runtime.sparse.kernel import Scales
from leanmoe_runtime.sparse.restored import RestoredLinearMethod

# Which stack of vLLM's a projection lies in, and which half of it.
_STACKS: dict[str, tuple[str, int | None]] = {
    "w1": ("w13", 0),
    "w3": ("w13", 1),
    "w2": ("w2", None),
}
# Of names of tensors that any format has for an expert's matrix.
_ENDS = {WEIGHT, SCALE, INPUT_ORDER, *(end for parts in PARTS.values() for end in parts)}
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def in_model(name: str) -> str:
    """A module's name with the model that vLLM loads: its loaders do not tell the file."""
    config = get_current_vllm_config().model_config
    return name if config is None else f"{name} in {config.model}"


class LeanSparseConfig(QuantizationConfig):  # type: ignore[misc]
    """How a checkpoint's experts are packed; of a dense one, how they are to be while loading."""

    def __init__(
        self, how: SparseFormat | None = None, inner: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.how = how
        # The dense checkpoint's own, where it has one.
        self._dense_inner = inner
        self._mapper: Any = None
        self._inner: Any = None

    @classmethod
    def get_name(cls) -> str:
        return QUANT_METHOD

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return list(_DTYPES)

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LeanSparseConfig:
        how = read_sparse_format({CONFIG_KEY: config}, "config.json")
        return cls(how, None if how is not None else config or None)

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Any, user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """A float8 checkpoint is packed while loading where vLLM was told so."""
        return QUANT_METHOD if user_quant == QUANT_METHOD else None

    @property
    def weight_block_size(self) -> list[int] | None:
        """What vLLM asks of a config whose linear layers are its own float8 ones."""
        inner = None if self.how is None else self.how.inner
        blocks = Blocks.of(inner)
        if inner is None or not computes_float8_blocks(blocks.rows, blocks.columns):
            return None
        return [blocks.rows, blocks.columns]

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Names of modules that the source's own config lists become vLLM's."""
        self._mapper = hf_to_vllm_mapper

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        """Find how a dense checkpoint was pruned: vLLM was told to pack it while loading."""
        if self.how is None:
            self.how = self._as_pruned(model_name)
        Blocks.of(self.how.inner, f"{model_name}/config.json")  # later nobody knows the folder

    def _as_pruned(self, model_name: str) -> SparseFormat:
        folder = Path(model_name)
        manifest = read_manifest(folder) if folder.is_dir() else None
        pattern = None if manifest is None else pattern_of(manifest.settings)
        if pattern is None:
            raise InputError(
                f"{model_name} has no manifest that says by which pattern its weights were zeroed, "
                f"so --quantization {QUANT_METHOD} cannot pack it; run `leanmoe pack --pattern`"
            )
        _check_packed_as_loaded(open_checkpoint(folder))
        how = SparseFormat.of_pattern(pattern, "bfloat16")
        if self._dense_inner is not None:
            how = how.model_copy(update={"dtype": "float8_e4m3fn", "inner": self._dense_inner})
        return how

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        assert self.how is not None, "vLLM updates a config before it builds layers"
        if isinstance(layer, RoutedExperts):
            return LeanSparseMethod(self.how, layer.moe_config)
        if self.how.inner is not None:
            return self._of_inner(self.how.inner, layer, prefix)
        return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None

    def _of_inner(self, inner: dict[str, Any], layer: torch.nn.Module, prefix: str) -> Any:
        """What is no routed expert, as the source stores it: vLLM's own where it has one here."""
        if (method := inner.get("quant_method")) != "fp8":
            raise RuntimeSeamError(
                f"the source of these packed experts is quantised as {method!r}, expected 'fp8' "
                "(float8 with scales per block); `leanmoe unpack` the model"
            )
        blocks = Blocks.of(inner)
        if not computes_float8_blocks(blocks.rows, blocks.columns):
            restored = RestoredLinearMethod(blocks, in_model(prefix))
            return restored if isinstance(layer, LinearBase) else None
        if self._inner is None:
            self._inner = Fp8Config.from_config(inner)
            if self._mapper is not None:
                self._inner.apply_vllm_mapper(self._mapper)
            self._inner.packed_modules_mapping = self.packed_modules_mapping
        return self._inner.get_quant_method(layer, prefix)


class LeanSparseMethod(FusedMoEMethodBase):  # type: ignore[misc]
    """The packed experts of one layer."""

    def __init__(self, how: SparseFormat, moe: Any) -> None:
        super().__init__(moe)
        self._how, self._home = how, home_of(how)
        self._arrivals: Arrivals | None = None
        self._sizes: dict[str, Size] = {}
        self._overflow: dict[Place, Overflow] = {}
        self._block: Block | None = None
        # Set by whoever fills the weights without a checkpoint.
        self.made_up = False

    @property
    def skip_mode(self) -> SkipMode | None:
        """How the layer's kernels leave an assignment out, where the router's launch decides."""
        return self._home.skip_mode

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
        dtype = torch.float8_e4m3fn if self._how.is_float8 else params_dtype
        where = in_model(layer.layer_name)
        self._arrivals = Arrivals(self._how, dtype, where, partial(self._put, layer))
        for name, rows, columns in (("w13", 2 * hidden, wide), ("w2", wide, hidden)):
            self._sizes[name] = (num_experts, rows, columns)
            self._add(layer, name, dtype)
            if self._how.is_float8:
                self._register(layer, name, SCALE, self._empty_scales(name, hidden))
        if self._how.input_orders:
            orders_D = torch.arange(wide, dtype=torch.int32, device=self._home.device)
            self._register(layer, "w13", INPUT_ORDER, orders_D.repeat(num_experts, 1))

    def _check(self, layer: Any, wide: int, hidden: int, dtype: torch.dtype) -> None:
        where, parallel = layer.layer_name, self.moe.moe_parallel_config
        if parallel.use_ep or parallel.enable_eplb:
            problem = "are not shared out by expert parallelism; serve them with tensor parallelism"
        elif self.moe.is_lora_enabled:
            problem = "take no LoRA adapters; `leanmoe unpack` the model for them"
        elif layer.activation.value not in ACTIVATIONS or layer.apply_router_weight_on_input:
            problem = f"do not compute {layer.activation.value}, only {', '.join(ACTIVATIONS)}"
        elif wide % GROUP or hidden % GROUP:
            problem = (
                f"come in groups of {GROUP} weights, and this process would get {hidden} of the "
                f"hidden width at a tensor parallel size of {parallel.tp_size}; take a smaller one"
            )
        elif (of_device := self._home.problem(dtype)) is not None:
            problem = of_device
        else:
            return
        raise RuntimeSeamError(f"{where}: packed experts {problem}")

    def _add(self, layer: Any, name: str, dtype: torch.dtype) -> None:
        held = dict(
            zip((VALUES, MASK), self._home.empty(name, self._sizes[name], dtype), strict=True)
        )
        # Of what only passes through, a name to load it by; of what does not belong here, one to
        # refuse it by: vLLM stops at names that it does not know and says nothing of the config.
        none = torch.empty(0, dtype=dtype, device="cpu")
        for end in {*_ENDS, *held}:
            self._register(layer, name, end, held.get(end, none))

    def _register(self, layer: Any, name: str, end: str, tensor: torch.Tensor) -> None:
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        parameter.weight_loader = partial(self._load, end)  # type: ignore[attr-defined]
        layer.register_parameter(parameter_name(name, end), parameter)

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

    def _empty_scales(self, name: str, hidden: int) -> torch.Tensor:
        """Room for the scales of a stack, ``[E, halves, row blocks, column blocks]``."""
        experts, rows, columns = self._sizes[name]
        halves = 2 if name == "w13" else 1
        top, left = self._first(name, hidden)
        counts = Blocks.of(self._how.inner).count(top + rows // halves, left + columns)
        size = (experts, halves, *counts)
        # vLLM loads with the model's type as default.
        return torch.ones(size, dtype=torch.float32, device=self._home.device)

    def _first(self, name: str, hidden: int) -> tuple[int, int]:
        """Row and column within a block of the source at which this process's part begins."""
        blocks = Blocks.of(self._how.inner)
        first = self.moe.moe_parallel_config.tp_rank * hidden
        return (first % blocks.rows, 0) if name == "w13" else (0, first % blocks.columns)

    def _put_scales(self, layer: Any, place: Place, scale_RC: NDArray[np.float32]) -> None:
        name, half = _STACKS[place[1]]
        hidden = layer.intermediate_size_per_partition
        first = self.moe.moe_parallel_config.tp_rank * hidden
        wide = self._sizes["w2"][1]
        mine, whole = (first, first + hidden), (0, wide)
        spans = (mine, whole) if name == "w13" else (whole, mine)
        part = Blocks.of(self._how.inner).part(scale_RC, *spans)
        held = _parameter(layer, name, SCALE)
        held[place[0], half or 0].copy_(torch.from_numpy(part))

    def _put(self, layer: Any, place: Place, arrived: Arrived) -> None:
        """Keep this process's part of a whole matrix."""
        expert, projection = place
        packed, order = arrived.packed, arrived.order
        name, half = _STACKS[projection]
        hidden = layer.intermediate_size_per_partition
        self._check_size(place, packed, hidden)
        part = self._part(packed, projection, hidden)
        values, mask = self._held(layer, name)
        self._home.put(name, (values[expert], mask[expert]), part, half)
        if order is not None:
            _parameter(layer, "w13", INPUT_ORDER)[expert].copy_(order)
        if arrived.scale_RC is not None:
            self._put_scales(layer, place, arrived.scale_RC)
        if part.overflow is not None:
            self._overflow[expert, projection] = part.overflow

    def _check_size(self, place: Place, packed: Packed, hidden: int) -> None:
        """Raise unless a matrix is as large as config.json says: part of a larger one fits too."""
        wide, whole = self._sizes["w2"][1], hidden * self.moe.moe_parallel_config.tp_size
        rows, columns = (wide, whole) if place[1] == "w2" else (whole, wide)
        size = [rows, self._how.values_per_row(columns)]
        if list(packed.values_RV.shape) != size:
            assert self._arrivals is not None, "it is they that put"
            raise CheckpointError(
                f"{self._arrivals.name(place)}: its values are "
                f"{list(packed.values_RV.shape)}, expected {size} from config.json; config and "
                "shards are of different models"
            )

    def _held(self, layer: Any, name: str) -> Held:
        return _parameter(layer, name, VALUES), _parameter(layer, name, MASK)

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
        if not self.made_up and get_current_vllm_config().load_config.load_format != "dummy":
            self._arrivals.check_whole(experts)
        for name in [name for name, held in layer.named_parameters() if not held.numel()]:
            delattr(layer, name)
        held = {name: self._held(layer, name) for name in STACKS}
        self._block = self._home.block(layer, held, self._listed(experts), self._scales(layer))

    def _scales(self, layer: Any) -> dict[str, Scales]:
        """Scales of each stack, where values are float8."""
        if not self._how.is_float8:
            return {}
        blocks, hidden = Blocks.of(self._how.inner), layer.intermediate_size_per_partition
        return {
            name: Scales(
                _parameter(layer, name, SCALE),
                blocks,
                self._first(name, hidden),
            )
            for name in STACKS
        }

    def _listed(self, experts: int) -> dict[str, list[list[Overflow]]]:
        """Overflow lists of each stack, expert by expert; they are not needed here any more."""
        if not self._overflow:
            return {}
        found = {
            name: [[self._overflow[expert, one] for one in parts] for expert in range(experts)]
            for name, parts in (("w13", ("w1", "w3")), ("w2", ("w2",)))
        }
        self._overflow.clear()
        return found

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
        assert self._block is not None, "weights are loaded first"
        return self._block(x, topk_weights, topk_ids)


def _check_packed_as_loaded(checkpoint: Checkpoint) -> None:
    """Raise where a dense checkpoint holds what cannot be packed while loading."""
    if checkpoint.has_stand_ins:
        problem = "has stand-ins in the place of removed experts", "serve it without"
    elif (checkpoint.path / INPUT_ORDERS_NAME).exists():
        problem = "groups columns in orders of their own (--permute)", "run `leanmoe pack`"
    else:
        return
    raise InputError(
        f"{checkpoint.path} {problem[0]}, so --quantization {QUANT_METHOD} cannot pack it while "
        f"loading; {problem[1]}"
    )


def _parameter(layer: Any, name: str, end: str) -> torch.Tensor:
    held: torch.Tensor = layer.get_parameter(parameter_name(name, end)).data
    return held


def register_method() -> None:
    """Let vLLM know the method by its name."""
    register_quantization_config(QUANT_METHOD)(LeanSparseConfig)
