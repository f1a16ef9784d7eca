"""The tensors of a cut checkpoint: where each comes from and what is done to it.

E experts of the source, E' that are left, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from leanmoe_pruning.checkpoints.shards import ShardReader, TensorInfo
from leanmoe_pruning.later import torch


class Piece(Protocol):
    """One tensor of the output."""

    @property
    def info(self) -> TensorInfo:
        """Its name, dtype and shape."""
        ...

    def read(self, reader: ShardReader) -> torch.Tensor:
        """Its content, out of the source's tensors."""
        ...


@dataclass(frozen=True)
class Copied:
    """A source tensor as it is, under its own name or another."""

    info: TensorInfo
    source: str

    def read(self, reader: ShardReader) -> torch.Tensor:
        return reader.read(self.source)


@dataclass(frozen=True)
class Rows:
    """Some rows of a source tensor, each times its factor where there are factors."""

    info: TensorInfo
    source: str
    rows: tuple[int, ...]
    factors: tuple[float, ...] | None = None

    def read(self, reader: ShardReader) -> torch.Tensor:
        tensor = reader.read(self.source)[list(self.rows)]
        if self.factors is None:
            return tensor
        sizes = (-1, *[1] * (tensor.dim() - 1))
        return (tensor.float() * torch.tensor(self.factors).view(sizes)).to(tensor.dtype)


@dataclass(frozen=True)
class Scaled:
    """A source tensor times a number."""

    info: TensorInfo
    source: str
    factor: float

    def read(self, reader: ShardReader) -> torch.Tensor:
        tensor = reader.read(self.source)
        return (tensor.float() * self.factor).to(tensor.dtype)


@dataclass(frozen=True)
class Zeros:
    """A router that prefers nobody."""

    info: TensorInfo

    def read(self, reader: ShardReader) -> torch.Tensor:
        return torch.zeros(self.info.shape, dtype=self.info.dtype.torch)


class HeldTensors:
    """The source tensors of one layer, read once although many experts are made of them."""

    def __init__(self) -> None:
        self._layer: int | None = None
        self._tensors: dict[str, torch.Tensor] = {}

    def read(self, reader: ShardReader, layer: int, name: str) -> torch.Tensor:
        """A tensor; those of the layer before are let go."""
        if layer != self._layer:
            self._layer, self._tensors = layer, {}
        if name not in self._tensors:
            self._tensors[name] = reader.read(name)
        return self._tensors[name]


def weighted_sum(
    tensor_of: Callable[[int], torch.Tensor], factors: Sequence[float], size: Sequence[int]
) -> torch.Tensor:
    """The sum of tensors times their factors, float32, in the order of the experts."""
    total = torch.zeros(size, dtype=torch.float32)
    for expert, factor in enumerate(factors):
        if factor:
            total.add_(tensor_of(expert).float(), alpha=factor)
    return total


@dataclass(frozen=True)
class Mixed:
    """A sum of a layer's tensors of one shape, summed in float32."""

    info: TensorInfo
    layer: int
    name_of: Callable[[int], str]
    factors: Sequence[float]
    held: HeldTensors

    def read(self, reader: ShardReader) -> torch.Tensor:
        def source(expert: int) -> torch.Tensor:
            return self.held.read(reader, self.layer, self.name_of(expert))

        return weighted_sum(source, self.factors, self.info.shape).to(self.info.dtype.torch)


@dataclass(frozen=True)
class MixedRows:
    """Sums of the rows of one stacked tensor: ``factors`` is ``[E', E]``."""

    info: TensorInfo
    source: str
    factors: Sequence[Sequence[float]]

    def read(self, reader: ShardReader) -> torch.Tensor:
        tensor = reader.read(self.source)
        mixed = torch.empty(self.info.shape, dtype=tensor.dtype)
        for row, factors in enumerate(self.factors):
            mixed[row] = weighted_sum(tensor.__getitem__, factors, tensor.shape[1:])
        return mixed


@dataclass(frozen=True)
class Given:
    """Numbers of a plan."""

    info: TensorInfo
    values: Sequence[float] | Sequence[Sequence[float]]

    def read(self, reader: ShardReader) -> torch.Tensor:
        return torch.tensor(self.values, dtype=self.info.dtype.torch)
