"""What the experts of a layer need on CUDA so that an id of -1 is left out, and safely so.

vLLM's Triton experts leave an id of -1 out of the alignment, then add the row nobody wrote: stale
workspace. They get a sum of our own that reads computed rows only. The other classes that can
leave an assignment out do so where they are given an expert map: the identity.
"""

from __future__ import annotations

from typing import Any

import torch

from leanmoe.messages import SkipMode
from leanmoe_runtime.compat import (
    current_platform,
    device_of_worker,
    free_of_monolithic_kernels,
    triton_block_rows,
)
from leanmoe_runtime.device.blocks import Blocks, empty_blocks, may_lay_out
from leanmoe_runtime.device.modes import is_naive, mode_of, say_once

# Its own sum is replaced; a subclass may compute in a way of its own.
_OWN_SUM = "TritonExperts"


class SkipExpertsMixin:
    """Stands before ``RoutedExperts`` among the bases; changes nothing outside CUDA."""

    quant_method: Any
    global_num_experts: int
    local_num_experts: int
    top_k: int
    # On the class: the map is read while the stock constructor still runs.
    _device_mode: SkipMode | None = None
    _fitted_kernel: Any = None
    _identity_E: torch.Tensor | None = None
    _needs_map = False

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
        return self._identity_E if stock is None and self._needs_map else stock

    def device_mode(self) -> SkipMode:
        """How this layer skips; asked after loading, when vLLM has chosen the experts class."""
        if self._device_mode is None:
            self.take_mode(self._own_mode() or self._kernel_mode())
        assert self._device_mode is not None
        return self._device_mode

    def _own_mode(self) -> SkipMode | None:
        """Of packed experts, whose kernels are the plugin's."""
        mode: SkipMode | None = getattr(self.quant_method, "skip_mode", None)
        return mode

    def _kernel_mode(self) -> SkipMode:
        kernel = self._moe_kernel()
        mode = mode_of(kernel) if current_platform.is_cuda() else SkipMode.ZERO
        say_once(type(getattr(kernel, "fused_experts", kernel)).__name__, mode)
        return mode

    def take_mode(self, mode: SkipMode | None) -> None:
        """Skip by ``mode``, or by the layer's own. *Mask* needs a map, or our own sum."""
        self._device_mode, self._fitted_kernel = mode, self._moe_kernel()
        if mode is None:
            return
        masks = mode is SkipMode.MASK
        self._needs_map = masks and not self._has_own_sum() and self._own_mode() is None
        if self._has_own_sum():
            experts = self.quant_method.moe_kernel.fused_experts
            experts.__dict__.pop("moe_sum", None)
            if masks:
                experts.moe_sum = sum_of_computed(experts.moe_sum)

    def before_experts(self) -> None:
        """Fit a kernel that vLLM has made anew, as it does when weights are loaded again."""
        if self._fitted_kernel is not self._moe_kernel():
            self._device_mode = None
        self.device_mode()

    def _moe_kernel(self) -> Any:
        return getattr(self.quant_method, "moe_kernel", None)

    def _has_own_sum(self) -> bool:
        return type(getattr(self._moe_kernel(), "fused_experts", None)).__name__ == _OWN_SUM

    def empty_blocks(self, tokens: int, logits_TE: torch.Tensor) -> Blocks | None:
        """Room for the blocks that Triton experts will ask for, where one program can fill it."""
        if not (self._has_own_sum() and self.device_mode() is SkipMode.MASK):
            return None
        if self.expert_map is not None or self._naive(tokens) or self._is_quantised():
            return None
        if not may_lay_out(tokens, self.top_k, self.local_num_experts, tokens):
            return None
        rows = triton_block_rows(self, tokens, self.params_dtype)  # type: ignore[attr-defined]
        fits = may_lay_out(tokens, self.top_k, self.local_num_experts, rows)
        return empty_blocks(tokens, self.top_k, rows, logits_TE.device) if fits else None

    def _is_quantised(self) -> bool:
        return self.quant_method.moe_kernel.fused_experts.quant_dtype is not None

    def _naive(self, tokens: int) -> bool:
        experts = self.quant_method.moe_kernel.fused_experts
        return is_naive(experts, tokens, self.top_k, self.local_num_experts)


def sum_of_computed(stock: Any) -> Any:
    """``TritonExperts.moe_sum`` over computed rows; with a map, stock leaves them out itself."""

    def moe_sum(
        input: torch.Tensor,
        output: torch.Tensor,
        topk_ids: torch.Tensor | None = None,
        expert_map: torch.Tensor | None = None,
    ) -> None:
        if topk_ids is None or expert_map is not None:
            stock(input, output, topk_ids, expert_map)
        else:
            from leanmoe_runtime.device.sum_kernel import sum_computed

            # Never stock's without a map: that adds rows nobody wrote.
            rows = input if input.stride(-1) == 1 else input.contiguous()
            sum_computed(rows, output, topk_ids.contiguous())

    return moe_sum
