"""What a checkpoint's files bring for one layer, gathered until a matrix is whole.

vLLM hands over tensors one by one, in the order of the files. A matrix is put in its place once all
its parts are here, so that at most a few wait.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from leanmoe.errors import CheckpointError
from leanmoe.sparse.packing import Packed, assemble, check, check_order, pack_by
from leanmoe.sparse.sparse_format import INPUT_ORDER, NUMBERS, PARTS, WEIGHT, SparseFormat

# Expert, and the name vLLM has for a projection: w1 gate, w3 up, w2 down.
Place = tuple[int, str]
Put = Callable[[Place, Packed, torch.Tensor | None], None]

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class Arrivals:
    """The parts of a layer's matrices; ``put`` gets each that is whole, and its input order."""

    def __init__(self, how: SparseFormat, dtype: torch.dtype, where: str, put: Put) -> None:
        self._how, self._dtype, self._where, self._put = how, dtype, where, put
        self._waiting: dict[Place, dict[str, torch.Tensor]] = {}
        self.done: set[Place] = set()

    def take(self, place: Place, end: str, tensor: torch.Tensor) -> None:
        """Take one tensor of a file, by the end of its name."""
        tensor = tensor.cpu()
        if end == WEIGHT:
            self._finish(place, self._packed_dense(place, tensor), None)
            return
        held = self._waiting.setdefault(place, {})
        held[end] = tensor
        if set(held) == self._whole(place):
            del self._waiting[place]
            self._finish(place, self._packed(place, held), held.get(INPUT_ORDER))

    def _whole(self, place: Place) -> set[str]:
        ordered = self._how.input_orders and place[1] != "w2"
        return {*PARTS[self._how.layout], *([INPUT_ORDER] if ordered else [])}

    def _finish(self, place: Place, packed: Packed, order: torch.Tensor | None) -> None:
        check(packed, self._how.keep, self.name(place))
        if order is not None:
            # The kernel takes inputs by it: what points outside would be read.
            check_order(order.numpy(), 8 * packed.mask_RB.shape[1], self.name(place))
        self._put(place, packed, order)
        self.done.add(place)

    def _packed(self, place: Place, held: dict[str, torch.Tensor]) -> Packed:
        parts = {
            end: self._words(tensor) if end in NUMBERS else tensor.numpy()
            for end, tensor in held.items()
        }
        return assemble(parts, self.name(place))

    def _packed_dense(self, place: Place, weight_RC: torch.Tensor) -> Packed:
        return pack_by(self._how, self._words(weight_RC), self.name(place))

    def _words(self, tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
        numbers = tensor.to(self._dtype).contiguous()
        words = numbers.view(_WORDS[self._dtype.itemsize]).numpy()
        return words.view(f"u{self._dtype.itemsize}")

    def name(self, place: Place) -> str:
        """A matrix as a person finds it."""
        return f"expert {place[0]} of {self._where}, {place[1]}"

    def check_whole(self, experts: int) -> None:
        """Raise ``CheckpointError`` unless every expert's three matrices came."""
        for expert in range(experts):
            for projection in ("w1", "w2", "w3"):
                if (expert, projection) not in self.done:
                    raise CheckpointError(
                        f"{self.name((expert, projection))} was not found in the checkpoint, or "
                        "lacks parts; fetch or pack the model again"
                    )
