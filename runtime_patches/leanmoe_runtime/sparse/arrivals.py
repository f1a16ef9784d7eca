"""What a checkpoint's files bring for one layer, gathered until a matrix is whole.

vLLM hands over tensors one by one, in the order of the files. A matrix is put in its place once all
its parts are here, so that at most a few wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from leanmoe.errors import CheckpointError
from leanmoe.sparse.packing import Packed, assemble, check, check_one_order, check_order, pack_by
from leanmoe.sparse.scale_blocks import SCALE, Blocks, check_codes
from leanmoe.sparse.sparse_format import INPUT_ORDER, NUMBERS, PARTS, WEIGHT, SparseFormat

# Expert, and the name vLLM has for a projection: w1 gate, w3 up, w2 down.
Place = tuple[int, str]


@dataclass(frozen=True)
class Arrived:
    """A whole matrix; its input order and, of float8, its scales, a row of them per row block."""

    packed: Packed
    order: torch.Tensor | None = None
    scale_RC: NDArray[np.float32] | None = None


Put = Callable[[Place, Arrived], None]

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class Arrivals:
    """The parts of a layer's matrices; ``put`` gets each that is whole.

    ``dtype`` is that of the values that are put. Packed numbers come in the type that ``how``
    states and, like dense ones, are converted; float8 has to come as it is, with scales.
    """

    def __init__(self, how: SparseFormat, dtype: torch.dtype, where: str, put: Put) -> None:
        self._how, self._dtype, self._where, self._put = how, dtype, where, put
        self._blocks = Blocks.of(how.inner) if how.is_float8 else None
        self._waiting: dict[Place, dict[str, torch.Tensor]] = {}
        # Of experts whose other matrix with an input order is not here yet.
        self._orders: dict[int, NDArray[np.int32]] = {}
        self.done: set[Place] = set()

    def take(self, place: Place, end: str, tensor: torch.Tensor) -> None:
        """Take one tensor of a file, by the end of its name."""
        if end not in {WEIGHT, *self._whole(place, dense=False)}:
            raise CheckpointError(
                f"{self.name(place)} holds {end.removeprefix('.')}, which config.json says nothing "
                "of; config and shards are of different models"
            )
        held = self._waiting.setdefault(place, {})
        held[end] = tensor.cpu()
        if set(held) == self._whole(place, dense=WEIGHT in held):
            del self._waiting[place]
            self._finish(place, held)

    def _whole(self, place: Place, *, dense: bool) -> set[str]:
        ordered = self._how.input_orders and place[1] != "w2" and not dense
        parts = {WEIGHT} if dense else {*PARTS[self._how.layout]}
        return {
            *parts,
            *([INPUT_ORDER] if ordered else []),
            *([SCALE] if self._blocks is not None else []),
        }

    def _finish(self, place: Place, held: dict[str, torch.Tensor]) -> None:
        if place in self.done:
            raise CheckpointError(
                f"{self.name(place)} stands in the checkpoint twice, so it is not clear which it "
                "is; fetch or pack the model again"
            )
        is_dense = WEIGHT in held
        packed = self._packed_dense(place, held[WEIGHT]) if is_dense else self._packed(place, held)
        check(packed, self._how.keep, self.name(place))
        order = held.get(INPUT_ORDER)
        if self._how.input_orders and place[1] != "w2":
            self._check_order(place, order, 8 * packed.mask_RB.shape[1])
        self._put(place, Arrived(packed, order, self._scale(place, packed, held)))
        self.done.add(place)

    def _check_order(self, place: Place, order: torch.Tensor | None, columns: int) -> None:
        """The kernel takes inputs by it, of both matrices: what points outside would be read."""
        usual = np.arange(columns, dtype=np.int32)
        order_C: NDArray[np.int32] = usual if order is None else order.numpy()
        check_order(order_C, columns, self.name(place))
        other = self._orders.pop(place[0], None)
        if other is None:
            self._orders[place[0]] = order_C
        else:
            check_one_order(other, order_C, f"expert {place[0]} of {self._where}")

    def _scale(
        self, place: Place, packed: Packed, held: dict[str, torch.Tensor]
    ) -> NDArray[np.float32] | None:
        if self._blocks is None:
            return None
        scale_RC: NDArray[np.float32] = held[SCALE].to(torch.float32).numpy()
        rows, width = packed.mask_RB.shape
        self._blocks.check(scale_RC, rows, 8 * width, self.name(place))
        check_codes(packed.values_RV, self.name(place))
        if packed.overflow is not None:
            check_codes(packed.overflow.values_N, self.name(place))
        return scale_RC

    def _packed(self, place: Place, held: dict[str, torch.Tensor]) -> Packed:
        stored = getattr(torch, self._how.dtype)
        for tensor in (held[end] for end in NUMBERS if end in held):
            if tensor.dtype != stored:  # converted, its bits would be other numbers
                raise self._mistyped(place, tensor, stored)
        parts = {
            end: self._words(place, tensor) if end in NUMBERS else tensor.numpy()
            for end, tensor in held.items()
            if end != SCALE
        }
        return assemble(parts, self.name(place))

    def _packed_dense(self, place: Place, weight_RC: torch.Tensor) -> Packed:
        return pack_by(self._how, self._words(place, weight_RC), self.name(place))

    def _words(
        self, place: Place, tensor: torch.Tensor
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
        if torch.float8_e4m3fn in {tensor.dtype, self._dtype} and tensor.dtype != self._dtype:
            raise self._mistyped(place, tensor, self._dtype)
        numbers = tensor.to(self._dtype).contiguous()
        words = numbers.view(_WORDS[self._dtype.itemsize]).numpy()
        return words.view(f"u{self._dtype.itemsize}")

    def _mistyped(
        self, place: Place, tensor: torch.Tensor, expected: torch.dtype
    ) -> CheckpointError:
        return CheckpointError(
            f"{self.name(place)} holds {tensor.dtype}, expected {expected} by config.json; "
            "config and shards are of different models"
        )

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
