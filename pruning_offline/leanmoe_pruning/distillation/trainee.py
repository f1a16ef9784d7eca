"""A student's checkpoint in training: read like any other, trained tensors with their graph.

The stream reads every weight by its name; where that name is trained it gets the current
values, so training runs through the same forward pass as everything else. Only the non-zero
weights of the student are parameters, in float32: a zero stays zero because it is none, and
no optimiser or weight decay can reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from leanmoe.checkpoint import Checkpoint
from leanmoe_pruning.checkpoints.shards import ShardReader

_INT32 = 1 << 31


class _Spread(torch.autograd.Function):
    """Values put in their places of a tensor of zeros, in a dtype to compute with."""

    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        places: torch.Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.save_for_backward(places)
        dense = torch.zeros(shape, dtype=dtype)
        dense.view(-1).scatter_(0, places.long(), values.to(dtype))
        return dense

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (places,) = ctx.saved_tensors
        return gradient.reshape(-1).index_select(0, places).float(), None, None, None


class Trainee(ShardReader):
    """The tensors of a student; ``values`` holds what is trained, flat, by tensor name."""

    def __init__(self, checkpoint: Checkpoint, compute: torch.dtype) -> None:
        super().__init__(checkpoint.path, checkpoint.family.stacks)
        self.values: dict[str, nn.Parameter] = {}
        # Where each value stands in its flattened tensor.
        self._places: dict[str, torch.Tensor] = {}
        self._compute = compute
        self._dtypes: dict[str, torch.dtype] = {}

    def start(self, names: Iterable[str], exact: bool = False) -> list[nn.Parameter]:
        """Make the non-zero weights of these tensors parameters; ``exact``: read in float32."""
        started = []
        for name in names:
            flat = super().read(name).flatten()
            places = flat.nonzero().flatten()
            self.values[name] = nn.Parameter(flat[places].float())
            self._places[name] = places.int() if len(flat) < _INT32 else places
            self._dtypes[name] = torch.float32 if exact else self._compute
            started.append(self.values[name])
        return started

    @torch.no_grad()
    def settle(self, names: Iterable[str]) -> None:
        """Round the trained values as the files will hold them."""
        for name in names:
            values = self.values[name]
            values.copy_(values.to(self.info(name).dtype.torch))

    def stop(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The trained tensors in the dtype of the files; they are parameters no longer."""
        found = {name: self._dense(name, self.info(name).dtype.torch).detach() for name in names}
        for name in found:
            del self.values[name], self._places[name]
        return found

    def read(self, name: str, shape: Sequence[int] | None = None) -> torch.Tensor:
        if name not in self.values:
            return super().read(name, shape)
        return self._dense(name, self._dtypes[name])

    def _dense(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        spread: Callable[..., torch.Tensor] = _Spread.apply
        return spread(self.values[name], self._places[name], self.info(name).shape, dtype)
