"""Every vLLM symbol LeanMoE touches, imported in one place and checked at start.

Nothing else in this package imports vLLM. ``check_seams`` runs when the plugin
registers: a symbol that moved or changed its signature stops the process with a
sentence that names it. A plugin that silently does nothing is the worst outcome.
What is expected of each symbol stands in ``seams.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from leanmoe.engine_versions import installed_vllm, version_problem
from leanmoe.errors import RuntimeSeamError
from leanmoe.seams import check
from leanmoe_runtime import seams


def _check_version() -> None:
    if (problem := version_problem(installed_vllm())) is not None:
        raise RuntimeSeamError(problem)


# Before the imports, which would name a module and not a version.
_check_version()

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
        f"a symbol of vLLM is not where it was: {error}; "
        "install leanmoe[cpu] or leanmoe[cuda] with its pinned vLLM"
    ) from error

__all__ = [
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
    "aligns_host_weights",
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
    "model_runner_class",
    "op_registry_oot",
    "scratch_tensors",
    "second_model_runner_class",
    "tensor_model_parallel_all_reduce",
    "vllm_version",
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


def aligns_host_weights(experts: Any) -> bool:
    """Whether vLLM aligns small batches, too, because this layer's weights stay in host memory.

    0.33 does; in 0.32 where they lie changes nothing.
    """
    from vllm.model_executor.layers.fused_moe import fused_moe

    in_host = getattr(fused_moe, "_weights_host_resident", None)
    return in_host is not None and bool(in_host(experts.w13_weight, experts.w2_weight))


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
