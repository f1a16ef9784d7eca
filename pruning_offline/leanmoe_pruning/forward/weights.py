"""A checkpoint's tensors in the dtype they are computed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe.families.base import PROJECTIONS
from leanmoe_pruning.checkpoints.fp8 import Block, restored, scale_of
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.forward.experts import FeedForward

Size = Sequence[int]


@dataclass(frozen=True)
class Weights:
    """Tensors by their names in the files; ``compute`` is the dtype of matrix products."""

    reader: ShardReader
    compute: torch.dtype
    # Rows and columns of what shares a scale in float8 checkpoints.
    block: Block = (128, 128)

    def stored(self, name: str, size: Size | None = None) -> torch.Tensor:
        """A tensor in the dtype of the files, float32 where they hold float8."""
        tensor, scale = self.reader.read(name, size), scale_of(name, self.reader)
        return tensor if scale is None else restored(tensor, self.reader.read(scale), self.block)

    def product(self, name: str, size: Size | None = None) -> torch.Tensor:
        """A weight of a matrix product."""
        return self.stored(name, size).to(self.compute)

    def exact(self, name: str, size: Size | None = None) -> torch.Tensor:
        """A weight of norms and routers, float32."""
        return self.stored(name, size).float()

    def optional(self, name: str | None, size: Size | None = None) -> torch.Tensor | None:
        """Like ``exact``; ``None`` where the family or the files have no such tensor."""
        return self.exact(name, size) if name is not None and name in self.reader else None

    def fill(self, module: Any, prefix: str) -> Any:
        """Give a module without memory its weights, vectors in float32."""
        weights = {
            name: (self.product if meta.dim() > 1 else self.exact)(f"{prefix}.{name}", meta.shape)
            for name, meta in module.state_dict().items()
        }
        module.load_state_dict(weights, assign=True)
        # Whoever trains some of them calls the module with its own in their place.
        module.requires_grad_(False)
        return module

    def feed_forward(self, prefix: str, share: torch.Tensor | None = None) -> FeedForward:
        """The SwiGLU whose three weights have names that begin so."""
        gate, up, down = (self.product(f"{prefix}.{one}.weight") for one in PROJECTIONS)
        return FeedForward(gate, up, down, share)
