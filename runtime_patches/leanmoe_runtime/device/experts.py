"""What the experts of a layer need on CUDA so that an id of -1 is left out, and safely so.

Without an expert map, vLLM's Triton experts drop an id of -1 from the alignment and then add the
row nobody wrote: stale workspace. An identity map switches on the sums that skip such rows.
"""

from __future__ import annotations

from typing import Any

import torch

from leanmoe.messages import SkipMode
from leanmoe_runtime.compat import (
    current_platform,
    device_of_worker,
    free_of_monolithic_kernels,
)
from leanmoe_runtime.device.modes import is_naive, mode_of, say_once


class SkipExpertsMixin:
    """Stands before ``RoutedExperts`` among the bases; changes nothing outside CUDA."""

    quant_method: Any
    global_num_experts: int
    local_num_experts: int
    # On the class: the map is read while the stock constructor still runs.
    _device_mode: SkipMode | None = None
    _identity_E: torch.Tensor | None = None
    _is_identity_given = False

    def __init__(
        self, layer_name: str, params_dtype: torch.dtype, moe_config: Any, *args: Any, **kwargs: Any
    ) -> None:
        if current_platform.is_cuda():
            free_of_monolithic_kernels(moe_config)
        super().__init__(  # type: ignore[call-arg]
            layer_name, params_dtype, moe_config, *args, **kwargs
        )
        if current_platform.is_cuda():
            # At once: memory that a capture allocates is the graph's.
            self._identity_E = torch.arange(
                self.global_num_experts, dtype=torch.int32, device=device_of_worker()
            )

    @property
    def expert_map(self) -> torch.Tensor | None:
        """Stock's map, or the identity where skipped ids need one; read at every call.

        Weights are loaded by the map's manager and never see this.
        """
        stock: torch.Tensor | None = super().expert_map  # type: ignore[misc]
        return self._identity_E if stock is None and self._is_identity_given else stock

    def device_mode(self) -> SkipMode:
        """How this layer skips; asked after loading, when vLLM has chosen the experts class."""
        if self._device_mode is None:
            kernel: Any = getattr(self.quant_method, "moe_kernel", None)
            is_cuda = current_platform.is_cuda()
            self._device_mode = mode_of(kernel) if is_cuda else SkipMode.ZERO
            say_once(type(getattr(kernel, "fused_experts", kernel)).__name__, self._device_mode)
        return self._device_mode

    def before_experts(self, ids_TK: torch.Tensor) -> None:
        """Choose the map for this call: by shape only, so a captured graph keeps its choice."""
        self._is_identity_given = self.device_mode() is SkipMode.MASK and not self._naive(
            *ids_TK.shape
        )

    def _naive(self, tokens: int, top_k: int) -> bool:
        experts = self.quant_method.moe_kernel.fused_experts
        return is_naive(experts, tokens, top_k, self.local_num_experts)
