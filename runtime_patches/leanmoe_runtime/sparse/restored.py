"""Float8 linear layers where vLLM has no kernel for them: restored to the model's type at loading.

Of vLLM's kernels for float8 with scales per block the CPU's takes AMX. What is no routed expert is
a small part of an MoE's weights: elsewhere it takes two bytes a number and vLLM's plain kernels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from leanmoe.errors import CheckpointError
from leanmoe.sparse.scale_blocks import SCALE, Blocks
from leanmoe_runtime.compat import (
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)

_SCALE = SCALE.removeprefix(".")


@register_weight_loader_v2_supported_method
class RestoredLinearMethod(UnquantizedLinearMethod):  # type: ignore[misc]
    """vLLM's plain linear layer that also takes float8 codes and their scales, in any order.

    A matrix is restored whole, before vLLM cuts or joins it, so that no part has to begin with a
    block. Matrices that the files hold in plain numbers pass through.
    """

    def __init__(self, blocks: Blocks, where: str) -> None:
        super().__init__()
        self._blocks, self._where = blocks, where
        # Of each matrix of a layer, by the arguments vLLM's loader is given for it.
        self._waiting: dict[tuple[Any, ...], dict[str, torch.Tensor]] = {}

    def create_weights(self, layer: Any, *sizes: Any, **extra: Any) -> None:
        """vLLM's own weights, and a name for scales."""
        load = extra.pop("weight_loader")
        super().create_weights(layer, *sizes, **extra, weight_loader=partial(self._weight, load))
        weight = layer.weight
        scale = torch.nn.Parameter(torch.empty(0, device=weight.device), requires_grad=False)
        scale.weight_loader = partial(self._scale, load, weight)  # type: ignore[attr-defined]
        layer.register_parameter(_SCALE, scale)

    def _weight(self, load: Any, param: Any, loaded_weight: torch.Tensor, *which: Any) -> None:
        if loaded_weight.dtype != torch.float8_e4m3fn:
            load(param, loaded_weight, *which)
        else:
            self._take(load, param, "codes", loaded_weight, which)

    def _scale(
        self, load: Any, weight: Any, param: Any, loaded_weight: torch.Tensor, *which: Any
    ) -> None:
        self._take(load, weight, "scale", loaded_weight, which)

    def _take(
        self, load: Any, weight: Any, what: str, tensor: torch.Tensor, which: tuple[Any, ...]
    ) -> None:
        held = self._waiting.setdefault(which, {})
        held[what] = tensor
        if len(held) == 2:
            del self._waiting[which]
            load(weight, self._restored(**held).to(weight.dtype), *which)

    def _restored(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        rows, columns = codes.shape
        expected = self._blocks.count(rows, columns)
        if scale.shape != expected:
            raise CheckpointError(
                f"{self._where}: float8 weights of {list(codes.shape)} have scales of "
                f"{list(scale.shape)}, expected {list(expected)}; fetch the model again"
            )
        by_row = scale.float().repeat_interleave(self._blocks.rows, 0)[:rows]
        grown = by_row.repeat_interleave(self._blocks.columns, 1)[:, :columns]
        return codes.float() * grown

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check that no codes wait for their scales."""
        if self._waiting:
            raise CheckpointError(
                f"{self._where}: a float8 linear layer of {list(layer.weight.shape)} lacks weights "
                "or scales; fetch or pack the model again"
            )
        delattr(layer, _SCALE)
        super().process_weights_after_loading(layer)
