"""Packed experts in a checkpoint's files, as the one dense tensor that they stand for.

A reader shows ``NAME.weight`` where a file holds ``NAME.weight_values`` and what belongs to it, so
that everything that reads weights reads packed ones too. Columns that were packed in another order
are put back. Of a family that stacks its experts it shows their stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanmoe.errors import CheckpointError
from leanmoe.families.base import Projection, Stacks
from leanmoe.sparse.packing import Words, assemble, check_order, unpack
from leanmoe.sparse.sparse_format import (
    GROUP,
    INDICES,
    INPUT_ORDER,
    MASK,
    NUMBERS,
    OVERFLOW_COLUMNS,
    OVERFLOW_ROWS,
    PARTS,
    VALUES,
    WEIGHT,
)
from leanmoe_pruning.checkpoints.stored_type import StoredType
from leanmoe_pruning.later import torch

_SUFFIXES = tuple(sorted({INPUT_ORDER, *(part for parts in PARTS.values() for part in parts)}))
# Types of parts that have one; values have the matrix's.
_TYPES: Mapping[str, tuple[StoredType, ...]] = {
    MASK: (StoredType.U8,),
    INDICES: (StoredType.U8,),
    INPUT_ORDER: (StoredType.I32,),
    OVERFLOW_ROWS: (StoredType.I32,),
    OVERFLOW_COLUMNS: (StoredType.I16, StoredType.I32),
}
# What a file's header says of its tensors.
Shapes = Mapping[str, tuple[StoredType, tuple[int, ...]]]
_WORDS: Mapping[int, tuple[StoredType, type[Any]]] = {
    1: (StoredType.U8, np.uint8),
    2: (StoredType.I16, np.uint16),
    4: (StoredType.I32, np.uint32),
}


def to_words(tensor: torch.Tensor) -> Words:
    """A tensor's numbers as raw words."""
    signed, unsigned = _WORDS[tensor.dtype.itemsize]
    words: Words = tensor.contiguous().view(signed.torch).numpy().view(unsigned)
    return words


def to_tensor(words: Words, dtype: StoredType) -> torch.Tensor:
    """Raw words as the numbers they are."""
    signed = np.int8 if words.itemsize == 1 else np.dtype(f"i{words.itemsize}")
    return torch.from_numpy(words.view(signed)).view(dtype.torch)


@dataclass(frozen=True)
class PackedTensor:
    """A matrix that a file holds in parts, by the ends of their names."""

    name: str
    dtype: StoredType
    shape: tuple[int, int]
    keep: int
    parts: tuple[str, ...]

    def read(self, part: Callable[[str], torch.Tensor], file: Path) -> torch.Tensor:
        """The dense matrix; ``part`` gives a tensor of ``file`` by its name."""
        what = f"{self.name} in {file}"
        held = {end: part(self.part_name(end)) for end in self.parts}
        plain: dict[str, NDArray[Any]] = {
            end: to_words(tensor) if end in NUMBERS else tensor.numpy()
            for end, tensor in held.items()
        }
        words_RC = unpack(assemble(plain, what), self.keep, what)
        if INPUT_ORDER in held:
            words_RC = _put_back(words_RC, plain[INPUT_ORDER], what)
        return to_tensor(words_RC, self.dtype)

    def part_name(self, end: str) -> str:
        return self.name.removesuffix(WEIGHT) + end

    @property
    def part_names(self) -> tuple[str, ...]:
        """The file's tensors that it is read from."""
        return tuple(map(self.part_name, self.parts))


@dataclass(frozen=True)
class PackedStack:
    """All experts of a layer as one tensor ``[E, R, C]``, of which a file holds each packed."""

    name: str
    # Of each expert the matrices that a row of the stack holds, one over the other.
    rows: tuple[tuple[PackedTensor, ...], ...]

    @property
    def _one(self) -> PackedTensor:
        return self.rows[0][0]

    @property
    def dtype(self) -> StoredType:
        return self._one.dtype

    @property
    def keep(self) -> int:
        return self._one.keep

    @property
    def parts(self) -> tuple[str, ...]:
        return self._one.parts

    @property
    def shape(self) -> tuple[int, int, int]:
        rows, columns = self._one.shape
        return len(self.rows), len(self.rows[0]) * rows, columns

    @property
    def part_names(self) -> tuple[str, ...]:
        """The file's tensors that it is read from."""
        return tuple(name for row in self.rows for one in row for name in one.part_names)

    def read(self, part: Callable[[str], torch.Tensor], file: Path) -> torch.Tensor:
        """The dense stack; ``part`` gives a tensor of ``file`` by its name."""
        found = torch.empty(self.shape, dtype=self.dtype.torch)
        for place, row in zip(found, self.rows, strict=True):
            for rows, one in zip(place.chunk(len(row)), row, strict=True):
                rows.copy_(one.read(part, file))
        return found


def _put_back(words_RC: Words, order_C: NDArray[Any], what: str) -> Words:
    check_order(order_C, words_RC.shape[1], what)
    found = np.empty_like(words_RC)
    found[:, order_C] = words_RC
    return found


def matrix_of(name: str) -> str | None:
    """The matrix, without ``.weight``, of which a file's tensor is a packed part, or ``None``."""
    end = next((one for one in _SUFFIXES if name.endswith(one)), None)
    return None if end is None else name.removesuffix(end)


def is_part(name: str) -> bool:
    """Whether a name in a file is of a part of a packed matrix."""
    return name.endswith(_SUFFIXES)


def find_packed(
    shapes: Shapes, file: Path, stacks: Stacks | None = None
) -> list[PackedTensor | PackedStack]:
    """What is packed among a file's tensors; ``CheckpointError`` where something lacks parts.

    With ``stacks``, experts are shown as their family stacks them.
    """
    matrices = _matrices(shapes, file)
    return [*matrices] if stacks is None else _stacked(matrices, file, stacks)


def _stacked(
    matrices: list[PackedTensor], file: Path, stacks: Stacks
) -> list[PackedTensor | PackedStack]:
    held: dict[str, dict[tuple[int, Projection], PackedTensor]] = {}
    alone: list[PackedTensor | PackedStack] = []
    for one in matrices:
        part = stacks.parse(one.name)
        if part is None:
            alone.append(one)
        else:
            stack = stacks.stack(part.layer, part.projection)
            held.setdefault(stack, {})[part.expert, part.projection] = one
    return alone + [_stack(name, file, found, stacks.held(name)) for name, found in held.items()]


def _stack(
    name: str,
    file: Path,
    found: Mapping[tuple[int, Projection], PackedTensor],
    projections: tuple[Projection, ...],
) -> PackedStack:
    places = {(e, one) for e in range(1 + max(e for e, _ in found)) for one in projections}
    if missing := sorted(places - set(found)):
        expert, projection = missing[0]
        raise CheckpointError(
            f"of the packed experts that make up {name} {file} holds {len(found)} matrices and not "
            f"{projection} of expert {expert}; they belong into one file: fetch or pack the model "
            "again"
        )
    kinds = {(one.dtype, one.shape, one.keep, one.parts): one.name for one in found.values()}
    if len(kinds) > 1:
        left, right, *_ = kinds.values()
        raise CheckpointError(
            f"{left} and {right} in {file} are packed in different sizes or ways and belong into "
            f"one tensor, {name}; fetch or pack the model again"
        )
    count = len(found) // len(projections)
    rows = tuple(tuple(found[expert, one] for one in projections) for expert in range(count))
    return PackedStack(name, rows)


def _matrices(shapes: Shapes, file: Path) -> list[PackedTensor]:
    ends: dict[str, set[str]] = {}
    for name in shapes:
        for end in _SUFFIXES:
            if name.endswith(end):
                ends.setdefault(name.removesuffix(end) + WEIGHT, set()).add(end)
    return [_packed(name, found, shapes, file) for name, found in ends.items()]


def _packed(name: str, ends: set[str], shapes: Shapes, file: Path) -> PackedTensor:
    stem = name.removesuffix(WEIGHT)
    if (ends - {INPUT_ORDER}) not in [set(parts) for parts in PARTS.values()]:
        raise CheckpointError(
            f"of the packed matrix {stem} {file} holds {', '.join(sorted(ends))} and not what "
            "belongs together; fetch or pack the model again"
        )
    dtype, values = shapes[stem + VALUES]
    for end in ends:
        found = shapes[stem + end][0]
        if found not in _TYPES.get(end, (dtype,)) or dtype.itemsize not in _WORDS:
            raise CheckpointError(
                f"{stem}{end} in {file} is of {found}, which is not what it is packed as; fetch or "
                "pack the model again"
            )
    bits = shapes[stem + (INDICES if INDICES in ends else MASK)][1]
    if len(values) != 2 or len(bits) != 2 or values[0] != bits[0] or bits[1] % (GROUP // 8):
        raise CheckpointError(
            f"the packed matrix {stem} in {file} has values of {list(values)} and bits of "
            f"{list(bits)}, which are of no rows in groups of {GROUP}; fetch or pack the model "
            "again"
        )
    groups = 8 * bits[1] // GROUP
    return PackedTensor(
        name, dtype, (values[0], 8 * bits[1]), values[1] // max(groups, 1), tuple(sorted(ends))
    )
