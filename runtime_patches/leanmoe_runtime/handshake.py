"""A worker's answer to "did you wrap every MoE layer?", read off the loaded model."""

from __future__ import annotations

import os
from typing import Any

import torch

from leanmoe import __version__
from leanmoe.messages import HandshakeReport, LayerReport, SkipMode
from leanmoe_runtime.compat import current_platform, vllm_version
from leanmoe_runtime.device.alignment import request_rows_unavailable
from leanmoe_runtime.experts import LeanRoutedExperts
from leanmoe_runtime.layers import SharedOnly, layer_index
from leanmoe_runtime.runner import LeanRunner


def report(worker: Any) -> HandshakeReport:
    """Every layer vLLM counts as MoE, wrapped or not, and the weights this worker holds."""
    compilation, model = worker.vllm_config.compilation_config, worker.model_runner.get_model()
    runners = {n: compilation.static_forward_context[n] for n in compilation.static_all_moe_layers}
    drafts = _draft_layers(worker, runners)
    layers = [_layer(name, runner) for name, runner in runners.items() if name not in drafts]
    layers += [_shared_only(one) for one in model.modules() if isinstance(one, SharedOnly)]
    return HandshakeReport(
        worker=worker_name(worker),
        engine=engine_index(worker),
        pid=os.getpid(),
        plugin_version=__version__,
        vllm_version=vllm_version(),
        layers=sorted(layers, key=lambda layer: layer.layer),
        weight_bytes=weight_bytes(model),
        draft_layers=drafts,
        request_levels_unavailable=_request_levels_unavailable(worker.vllm_config),
    )


def engine_index(worker: Any) -> int:
    """The number of a worker's engine among the data-parallel ones, 0 where there is one."""
    return int(worker.vllm_config.parallel_config.data_parallel_index)


def worker_name(worker: Any) -> str:
    """What a worker is called: ranks are counted in each engine anew."""
    several = worker.vllm_config.parallel_config.data_parallel_size > 1
    return f"engine{engine_index(worker)}-rank{worker.rank}" if several else f"rank{worker.rank}"


def _draft_layers(worker: Any, runners: dict[str, Any]) -> list[str]:
    """vLLM lists the layers of a draft with those of the model that it proposes to."""
    if worker.vllm_config.speculative_config is None:
        return []
    own = set(map(id, worker.model_runner.get_model().modules()))
    return [name for name, runner in runners.items() if id(runner) not in own]


def _request_levels_unavailable(vllm_config: Any) -> str | None:
    # On a CPU the API process knows by the arguments alone.
    return None if current_platform.is_cpu() else request_rows_unavailable(vllm_config)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of weights and of buffers a checkpoint would hold, shared storages once.

    vLLM's CPU linears move their weight into a packed copy outside any parameter and
    leave an empty one behind; those count by their shape.
    """
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *_stored_buffers(model))
    }
    return sum(storages.values()) + sum(map(_packed_bytes, model.modules()))


def _stored_buffers(model: torch.nn.Module) -> list[torch.Tensor]:
    """Tables that are computed, as rotary angles are, are no weights."""
    return [
        buffer
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    ]


def _packed_bytes(module: Any) -> int:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.numel() or not hasattr(module, "output_size"):
        return 0
    rows = getattr(module, "output_size_per_partition", module.output_size)
    columns = getattr(module, "input_size_per_partition", module.input_size)
    return int(rows * columns) * weight.element_size()


def _layer(name: str, runner: Any) -> LayerReport:
    experts = getattr(runner, "routed_experts", None)
    monolithic = bool(getattr(getattr(experts, "quant_method", None), "is_monolithic", False))
    wrapped = isinstance(runner, LeanRunner) and isinstance(experts, LeanRoutedExperts)
    return LayerReport(
        layer=layer_index(name),
        name=name,
        wrapped=wrapped,
        ran=wrapped and runner.skip_state is not None and runner.skip_state.calls > 0,
        modular=not monolithic,
        condensed=wrapped and runner.condensed,
        n_routed_experts=_n_experts(experts),
        top_k=getattr(experts, "top_k", 0),
        renormalize=bool(getattr(experts, "renormalize", False)),
        mode=runner.skip_mode if wrapped else SkipMode.ZERO,
        experts_class=_kernel_class(experts),
        problem=_problem(runner, experts, monolithic),
    )


def _shared_only(block: SharedOnly) -> LayerReport:
    """Nothing routes and nothing can skip: there is no seam that a run would have to reach."""
    return LayerReport(
        layer=layer_index(block.layer_name),
        name=block.layer_name,
        wrapped=True,
        ran=True,
        modular=True,
        condensed=True,
        n_routed_experts=0,
        top_k=0,
        renormalize=block.renormalize,
        mode=SkipMode.ZERO,
        experts_class=type(block.shared).__name__,
    )


def _n_experts(experts: Any) -> int:
    """Those a router scores, without the copies that expert-parallel load balancing adds."""
    stand_ins = getattr(experts, "stand_ins", None)
    if stand_ins is not None:
        return int(stand_ins.n_experts)
    config = getattr(experts, "moe_config", None)
    return int(getattr(config, "num_logical_experts", getattr(experts, "global_num_experts", 0)))


def _fused_experts(experts: Any) -> Any:
    kernel = getattr(getattr(experts, "quant_method", None), "moe_kernel", None)
    return getattr(kernel, "fused_experts", experts)


def _kernel_class(experts: Any) -> str:
    return type(_fused_experts(experts)).__name__


def _problem(runner: Any, experts: Any, monolithic: bool) -> str | None:
    # Whatever else is true of it: such a class gives an id of none to expert 0.
    if hasattr(experts, "expert_substitution"):
        return (
            f"its experts are {type(experts).__name__}, which puts constants in place of experts "
            "(expert_substitution in config.json) and computes expert 0 for every skipped one; "
            "serve this checkpoint with stock vLLM, or cut the model it was made from with "
            "`leanmoe prune --replace constant`"
        )
    if not isinstance(runner, LeanRunner):
        return f"its runner is {type(runner).__name__}, which the plugin does not replace"
    if not isinstance(experts, LeanRoutedExperts):
        return f"its experts are {type(experts).__name__}, which the plugin does not replace"
    if monolithic:
        return "its kernel routes by itself (monolithic); choose another --moe-backend"
    if runner.skip_state is None or runner.skip_state.layer < 0:
        return "its name carries no decoder layer number"
    if experts.stand_ins is not None and (missing := experts.stand_ins.missing()):
        return (
            f"the checkpoint brought no stand-in for its removed experts {missing[:8]}; cut the "
            "model again"
        )
    if experts.sees_other_ranks():
        return (
            f"its quantisation ({type(experts.quant_method).__name__}) brings the tokens of all "
            "data-parallel ranks together before the router, where each rank would count them "
            "all; serve this checkpoint with --data-parallel-size 1"
        )
    fused = _fused_experts(experts)
    if getattr(fused, "post_gemm2_hook", None) is not None:  # since vLLM 0.33
        return (
            f"its model adds up the rows of {type(fused).__name__} by itself (post_gemm2_hook) and "
            "would read those of skipped experts, which nobody wrote; serve it with stock vLLM"
        )
    return None
