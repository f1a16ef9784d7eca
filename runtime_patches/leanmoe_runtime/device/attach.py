"""Ties a layer's router to its decision on the device, and the process to its step's rows."""

from __future__ import annotations

from functools import cache
from typing import Any

from leanmoe_runtime.compat import device_of_worker, get_current_vllm_config
from leanmoe_runtime.device.alignment import device_supports_request_rows
from leanmoe_runtime.device.hook import watch_device_requests
from leanmoe_runtime.device.layer import DeviceLayer, step_rows
from leanmoe_runtime.device.rows import StepRows
from leanmoe_runtime.router import wrap_router
from leanmoe_runtime.state import SKIP_STATE, LayerState


@cache
def process_step() -> StepRows:
    """The process's one buffer, filled from its first layer's making on."""
    config = get_current_vllm_config()
    aligned = device_supports_request_rows(config) is None
    step = step_rows(config, device_of_worker(), aligned=aligned)
    watch_device_requests(SKIP_STATE, step)
    return step


def attach(router: Any, experts: Any, state: LayerState) -> None:
    """Let ``router`` skip on its device, in the mode its ``experts`` can take."""
    layer = DeviceLayer(
        state, SKIP_STATE, process_step(), experts.global_num_experts, experts.device_mode
    )
    wrap_router(router, layer)
