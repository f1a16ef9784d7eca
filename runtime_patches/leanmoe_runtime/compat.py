"""Every vLLM symbol LeanMoE touches, imported in one place and checked at start.

Nothing else in this package imports vLLM. Functions here do only where a process that builds no
model should not load a module: the model runners and what CUDA's experts call. ``check_seams`` runs
when the plugin registers: a symbol that moved or changed its signature stops the process with a
sentence that names it. A plugin that silently does nothing is the worst outcome. What is expected
of each symbol stands in ``seams.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from leanmoe.engine_versions import installed_vllm, version_problem
from leanmoe.errors import RuntimeSeamError
from leanmoe.extras import engine_hint
from leanmoe.seams import check
from leanmoe_runtime import seams
from leanmoe_runtime.replacement import Function, replace_once

if TYPE_CHECKING:
    import torch


def _check_version() -> None:
    if (problem := version_problem(installed_vllm())) is not None:
        raise RuntimeSeamError(problem)


# Before the imports, which would name a module and not a version.
_check_version()

try:
    from vllm import envs
    from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight
    from vllm.compilation import backends
    from vllm.config import get_current_vllm_config
    from vllm.distributed import tensor_model_parallel_all_reduce
    from vllm.forward_context import (
        get_forward_context,
        is_forward_context_available,
        set_forward_context,
    )
    from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
    from vllm.model_executor.layers.fused_moe.config import (
        FUSED_MOE_UNQUANTIZED_CONFIG,
        RoutingMethodType,
    )
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.fused_moe.fused_moe import (
        fused_experts,
        try_get_optimal_moe_config,
    )
    from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
    from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
    from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import (
        MoEPrepareAndFinalizeNoDPEPModular,
    )
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
    from vllm.model_executor.layers.linear import (
        LinearBase,
        UnquantizedLinearMethod,
        register_weight_loader_v2_supported_method,
    )
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
    from vllm.model_executor.layers.quantization.fp8 import Fp8Config
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import direct_register_custom_op
    from vllm.v1.worker.worker_base import WorkerBase
    from vllm.v1.worker.workspace import current_workspace_manager
except ImportError as error:
    raise RuntimeSeamError(
        f"a symbol of vLLM is not where it was: {error}; "
        f"for the vLLM that this was made for run {engine_hint()}"
    ) from error

__all__ = [
    "FUSED_MOE_UNQUANTIZED_CONFIG",
    "BaseRouter",
    "CPUUnquantizedExperts",
    "Fp8Config",
    "FusedMoEFactory",
    "FusedMoEMethodBase",
    "GateLinear",
    "LinearBase",
    "MoEPrepareAndFinalizeNoDPEPModular",
    "MoERunner",
    "PluggableLayer",
    "QuantizationConfig",
    "RoutedExperts",
    "RoutingMethodType",
    "UnquantizedLinearMethod",
    "WorkerBase",
    "check_seams",
    "compute_constants_ourselves",
    "computes_float8_blocks",
    "cpu_communicator_classes",
    "cpu_fused_moe",
    "cpu_prepack_moe_weight",
    "current_platform",
    "device_of_worker",
    "direct_register_custom_op",
    "factory_holders",
    "forward_context",
    "free_of_monolithic_kernels",
    "fused_experts",
    "get_current_vllm_config",
    "get_forward_context",
    "grouped_in_one_kernel",
    "is_draft_built",
    "is_routing_simulated",
    "model_runner_class",
    "no_padding",
    "op_registry_oot",
    "padding_mask",
    "register_quantization_config",
    "register_weight_loader_v2_supported_method",
    "scratch_tensors",
    "second_model_runner_class",
    "tensor_model_parallel_all_reduce",
    "triton_block_rows",
    "vllm_version",
    "wrap_triton_call",
]


def vllm_version() -> str:
    """Version of the installed vLLM, whichever distribution carries it."""
    found = installed_vllm()
    return "" if found is None else found.version


def model_runner_class() -> Any:
    """The class whose input step orders a step's tokens; only workers need its module."""
    check(seams.FIRST_RUNNER)
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    return GPUModelRunner


def factory_holders(modules: Mapping[str, ModuleType]) -> list[Any]:
    """The loaded modules in which vLLM's factory of MoE layers is looked up by name."""
    stock: Any = FusedMoEFactory
    return [
        module
        for name, module in list(modules.items())
        if name.startswith("vllm.") and vars(module).get("FusedMoEFactory") is stock
    ]


def compute_constants_ourselves(stated: Callable[[], bool]) -> None:
    """Let vLLM 0.33 make no substitutes for the experts of a model whose constants we compute.

    Its own give every id outside the experts to expert 0, so that skipping would save nothing.
    """
    from vllm.model_executor.layers.fused_moe import layer

    if not hasattr(layer, "make_expert_substitution"):  # 0.32 has none
        return

    def around(stock: Function) -> Function:
        def make(*args: Any, **kwargs: Any) -> Any:
            return None if stated() else stock(*args, **kwargs)

        return make

    replace_once(layer, "make_expert_substitution", around)


def cpu_communicator_classes() -> tuple[Any, Any]:
    """What carries tensors between a CPU's ranks, and its base; only workers need the modules."""
    check(seams.CPU_RANKS)
    from vllm.distributed.device_communicators.base_device_communicator import (
        DeviceCommunicatorBase,
    )
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    return CpuCommunicator, DeviceCommunicatorBase


def second_model_runner_class() -> Any:
    """The model runner that CUDA takes by default; only workers need its module."""
    check(seams.SECOND_RUNNER)
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    return GPUModelRunner


def free_of_monolithic_kernels(moe_config: Any) -> None:
    """Let vLLM choose no kernel that routes by itself; on CUDA, before the kernel is chosen.

    0.33 can be told so. In 0.32 no such kernel takes ``Unspecified``, which is not for DeepSeek-V4,
    whose choice of kernels asks for its own value, nor for a CPU, whose modular classes do.
    """
    if hasattr(moe_config, "require_decomposed_backend"):
        moe_config.require_decomposed_backend = True
    elif moe_config.routing_method != RoutingMethodType.DeepseekV4:
        moe_config.routing_method = RoutingMethodType.Unspecified


def device_of_worker() -> str:
    """The kind of device this worker computes on; the current one of that kind is its own."""
    return str(current_platform.device_type)


def computes_float8_blocks(rows: int, columns: int) -> bool:
    """Whether vLLM has linear layers here for float8 with a scale per block of such a size.

    On GPUs vLLM chooses among many kernels itself. The CPU's takes AMX.
    """
    if not current_platform.is_cpu():
        return True
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUFp8BlockScaledMMKernel

    found, _ = CPUFp8BlockScaledMMKernel.is_supported()
    return bool(found) and rows % 32 == 0 and columns == 128


def forward_context(vllm_config: Any, tokens: int) -> Any:
    """The context vLLM runs a layer in, without a model runner around it."""
    return set_forward_context(None, vllm_config, num_tokens=tokens)


def scratch_tensors() -> list[Any]:
    """The memory vLLM's modular kernels share for what lies between their steps."""
    return [held for held in current_workspace_manager()._current_workspaces if held is not None]


# What vLLM calls the model that it builds, by how it drafts.
_DRAFT_TAGS = frozenset({"draft_model", "eagle_head", "dflash_head", "dspark_head"})


def is_draft_built() -> bool:
    """Whether the model that is being built proposes tokens for another to verify."""
    return backends.model_tag in _DRAFT_TAGS


def is_routing_simulated() -> bool:
    """Whether vLLM was told to route by chance, which no layer's own numbers reach."""
    return bool(envs.VLLM_MOE_ROUTING_SIMULATION_STRATEGY)


def grouped_in_one_kernel(router: Any) -> bool:
    """Whether ``GroupedTopKRouter`` runs ``ops.grouped_topk``, and its kernel of one warp a group.

    The conditions of ``grouped_topk`` in ``router/grouped_topk_router.py`` and of
    ``invokeNoAuxTc`` in ``csrc/moe/grouped_topk_kernels.cu``.
    """
    experts, groups = router.global_num_experts, router.num_expert_group
    return bool(
        envs.VLLM_USE_FUSED_MOE_GROUPED_TOPK
        and router.e_score_correction_bias is not None
        and groups > 1
        and experts % groups == 0
        and experts <= 256
        and experts // groups <= 32
        and experts // groups * router.topk_group <= 128
        and router.topk_group <= 4
        and router.top_k <= 8
    )


def padding_mask(tokens: int) -> torch.Tensor | None:
    """The rows of the step that are padding, whose ids stock's routers set to -1; or ``None``."""
    if not envs.VLLM_MOE_SKIP_PADDING or not is_forward_context_available():
        return None
    padding: torch.Tensor | None = get_forward_context().is_padding
    return None if padding is None else padding[:tokens]


@contextmanager
def no_padding() -> Iterator[None]:
    """Let routers see no padding meanwhile, for calls outside of any step."""
    if not is_forward_context_available():
        yield
        return
    context = get_forward_context()
    before, context.is_padding = context.is_padding, None
    try:
        yield
    finally:
        context.is_padding = before


def triton_block_rows(layer: Any, tokens: int, dtype: torch.dtype) -> int:
    """Rows of a block that ``TritonExperts`` will ask for at so many tokens of that type."""
    experts = layer.quant_method.moe_kernel.fused_experts
    config = try_get_optimal_moe_config(
        layer.w13_weight.size(),
        layer.w2_weight.size(),
        layer.top_k,
        experts.quant_config.config_name(dtype),
        tokens,
        block_shape=experts.block_shape,
    )
    return int(config["BLOCK_SIZE_M"])


def wrap_triton_call(name: str, wrapper: Callable[[Function], Function]) -> None:
    """Put ``wrapper`` around a function that ``TritonExperts`` call by that name; once."""
    check(seams.TRITON_CALLS)
    from vllm.model_executor.layers.fused_moe.experts import triton_moe

    replace_once(triton_moe, name, wrapper)


def check_seams() -> None:
    """Raise ``RuntimeSeamError`` naming the first symbol that is not as expected."""
    _check_version()
    check(seams.AT_START)
    for cls in (MoERunner, RoutedExperts, GateLinear):
        holder = op_registry_oot.get(cls.__name__)
        if holder is not None and not holder.__module__.startswith("leanmoe_runtime"):
            raise RuntimeSeamError(
                f"another plugin replaces vLLM's {cls.__name__} already "
                f"({holder.__module__}.{holder.__qualname__}): name only one in VLLM_PLUGINS"
            )
