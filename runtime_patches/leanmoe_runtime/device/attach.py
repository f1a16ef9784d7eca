"""Ties a layer's router to its decision on the device, and the engine to its step's rows."""

from __future__ import annotations

import logging
from typing import Any

from leanmoe_runtime.compat import (
    current_platform,
    device_of_worker,
    get_current_vllm_config,
    padding_mask,
    wrap_triton_call,
)
from leanmoe_runtime.device.alignment import request_rows_unavailable
from leanmoe_runtime.device.assignment import with_blocks
from leanmoe_runtime.device.layer import DeviceLayer, step_rows
from leanmoe_runtime.device.routing import NotCoveredError, Routing, routing_of
from leanmoe_runtime.device.rows import StepRows
from leanmoe_runtime.device.tiles import with_finer_tiles
from leanmoe_runtime.engine import Engine
from leanmoe_runtime.hook import watch_device_requests
from leanmoe_runtime.router import wrap_router
from leanmoe_runtime.state import LayerState

_LOG = logging.getLogger(__name__)


def step_of(engine: Engine) -> StepRows:
    """The one buffer of an engine's steps, filled from its first layer's making on."""
    if engine.step is not None:
        return engine.step
    config = get_current_vllm_config()
    aligned = request_rows_unavailable(config) is None
    step = step_rows(config, device_of_worker(), aligned=aligned, least_union=least_union(config))
    engine.step, engine.state.device_union = step, step.union
    watch_device_requests()
    if current_platform.is_cuda():
        wrap_triton_call("_prepare_expert_assignment", with_blocks)
        wrap_triton_call("invoke_fused_moe_triton_kernel", with_finer_tiles)
    return step


def least_union(vllm_config: Any) -> int:
    """The smallest budget on distinct experts that the engine was started for, 0 for none."""
    ours = (vllm_config.additional_config or {}).get("leanmoe", {})
    return int(ours.get("union_budget") or 0)


def attach(router: Any, experts: Any, state: LayerState) -> None:
    """Let ``router`` skip on its device, in the mode its ``experts`` can take."""
    shared, step = experts.engine.state, step_of(experts.engine)
    layer = DeviceLayer(state, shared, step, experts, _routing(router, state), padding_mask)
    wrap_router(router, layer)


def _routing(router: Any, state: LayerState) -> Routing | None:
    # A routing already replaced, as for a transferred router, is none that vLLM's classes have.
    if "_compute_routing" in vars(router):
        return None
    try:
        return routing_of(router)
    except NotCoveredError as reason:
        _LOG.warning("layer %d decides in a launch behind its router: %s", state.layer, reason)
        return None
