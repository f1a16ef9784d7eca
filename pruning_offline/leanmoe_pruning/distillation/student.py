"""A student run layer by layer with gradients, through the forward pass everything else uses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from leanmoe_pruning.checkpoints.opening import OpenedModel
from leanmoe_pruning.distillation.filters import Filter, routers
from leanmoe_pruning.distillation.trainee import Trainee
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream


class StudentStream(DecoderStream):
    """A stream some of whose tensors are trained."""

    def __init__(self, checkpoint: OpenedModel, compute: str | None, chosen: Filter) -> None:
        super().__init__(checkpoint, compute)
        self._chosen = chosen
        self.reader: Trainee = Trainee(checkpoint, self.compute)
        self.weights = replace(self.weights, reader=self.reader)

    def trained(self, layer: int) -> list[str]:
        """Names of a layer's tensors that are to be trained."""
        return self._chosen(self.checkpoint, layer)

    def start(self, layer: int) -> list[nn.Parameter]:
        """Make them parameters."""
        return self.reader.start(self.trained(layer), exact=self._chosen is routers)

    def settle(self, layer: int) -> None:
        """Round them as the files will hold them, so that what is measured is what is written."""
        self.reader.settle(self.trained(layer))

    def stop(self, layer: int) -> dict[str, torch.Tensor]:
        """What has become of them, in the dtype of the files."""
        return self.reader.stop(self.trained(layer))

    def layer(self, index: int) -> DecoderLayer:
        """One layer with the current values of what is trained."""
        layer = super().layer(index)
        prefix = f"model.layers.{index}.self_attn."
        own = {
            name.removeprefix(prefix): self.reader.read(name)
            for name in self.reader.values
            if name.startswith(prefix)
        }
        if not own:
            return layer
        attention = replace(layer.attention, module=_WithWeights(layer.attention.module, own))
        return replace(layer, attention=attention)


class _WithWeights:
    """A module called with some of its weights replaced by tensors that carry a gradient."""

    def __init__(self, module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
        self._module, self._weights = module, weights

    def __call__(self, **arguments: Any) -> Any:
        return torch.func.functional_call(self._module, self._weights, (), arguments)
