"""Where a search keeps what it would otherwise compute again: in memory, or in files.

Activations of all documents at every layer, and the outputs of all experts of one layer, may
be more than memory holds; then they lie in a temporary folder that is mapped. Layers stay
loaded where they fit, and are read again where not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import torch

from leanmoe.errors import OutputError
from leanmoe_pruning.amounts import show_bytes
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream

# The shares of free memory that loaded layers and one kept tensor may take.
LAYERS_SHARE, TENSOR_SHARE = 0.5, 0.1


def free_bytes() -> int:
    """Memory that is free now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Scratch:
    """Float32 tensors to be filled, gone with the context."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="leanmoe-")
        self._files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def tensor(self, *shape: int) -> torch.Tensor:
        """A tensor of any content."""
        size = math.prod(shape)
        if 4 * size <= TENSOR_SHARE * free_bytes():
            return torch.empty(shape, dtype=torch.float32)
        self._files += 1
        file = Path(self._folder.name) / f"{self._files}.f32"
        _take_room(file, 4 * size)
        mapped = torch.from_file(str(file), shared=True, size=size, dtype=torch.float32)
        # The mapping lives on without a name, and goes with the tensor.
        file.unlink()
        return mapped.view(shape)


def _take_room(file: Path, size: int) -> None:
    """Blocks of the disk now: writing through a mapping that finds none kills the process."""
    try:
        with file.open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, size)
    except OSError as error:
        raise OutputError(
            f"{file.parent} has no room for {show_bytes(size)} of activations "
            f"({error.strerror}); set TMPDIR to a folder on a larger disk, or give less data"
        ) from error


class Layers:
    """The decoder layers of a stream, loaded once where there is room for all."""

    def __init__(self, stream: DecoderStream) -> None:
        self._stream = stream
        names = stream.reader.names
        weights = sum(math.prod(stream.reader.info(name).shape) for name in names)
        self._fits = weights * stream.compute.itemsize <= LAYERS_SHARE * free_bytes()
        self._kept: dict[int, DecoderLayer] = {}

    def following(self, first: int = 0) -> Iterator[DecoderLayer]:
        """The layers from ``first`` to the last."""
        if not self._fits:
            yield from self._stream.layers(first)
            return
        for index in range(first, self._stream.n_layers):
            if index not in self._kept:
                self._kept[index] = next(self._stream.layers(index))
            yield self._kept[index]
