"""The routed experts of a cut checkpoint, packed as they are written, one matrix at a time.

What is written in the place of a dense tensor: ``leanmoe.sparse.sparse_format`` names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import CheckpointError, InputError
from leanmoe.families.base import ExpertTensor, Family, Stacks
from leanmoe.input_orders import order_name
from leanmoe.sparse.packing import Packed, pack_by, to_indices
from leanmoe.sparse.sparse_format import (
    GROUP,
    INDICES,
    INPUT_ORDER,
    MASK,
    NARROW_COLUMNS,
    OVERFLOW_COLUMNS,
    OVERFLOW_ROWS,
    OVERFLOW_VALUES,
    PARTS,
    VALUES,
    WEIGHT,
    SparseFormat,
    Values,
    own_quantization,
    pattern_of,
    says_float8,
)
from leanmoe_pruning.checkpoints.opening import OpenedModel, is_expert
from leanmoe_pruning.checkpoints.packed import to_tensor, to_words
from leanmoe_pruning.checkpoints.shards import ShardReader, TensorInfo
from leanmoe_pruning.checkpoints.stored_type import StoredType
from leanmoe_pruning.cutting.pieces import Copied, Piece
from leanmoe_pruning.later import torch

_DTYPES: dict[StoredType, Values] = {
    StoredType.BF16: "bfloat16",
    StoredType.F16: "float16",
    StoredType.F32: "float32",
    StoredType.F8_E4M3: "float8_e4m3fn",
}
Order = NDArray[np.int32]


def _values_of(info: TensorInfo, what: str) -> Values:
    if info.dtype not in _DTYPES:
        raise CheckpointError(
            f"{what} holds {info.dtype}, expected one of {', '.join(_DTYPES.values())}; "
            "convert the model first"
        )
    return _DTYPES[info.dtype]


class HeldMatrix:
    """The matrix that was packed last: its parts are written one after the other."""

    def __init__(self) -> None:
        self._name = ""
        self._packed: Packed | None = None

    def packed(
        self, piece: Piece, reader: ShardReader, how: SparseFormat, order: Order | None
    ) -> Packed:
        """A piece's content packed."""
        if self._packed is None or self._name != piece.info.name:
            words_RC = to_words(piece.read(reader))
            if order is not None:
                words_RC = words_RC[:, order]
            self._name = piece.info.name
            self._packed = pack_by(how, words_RC, _told(piece, reader))
        return self._packed


class HeldStack:
    """The stack of a layer's experts that was read last: their matrices are packed in turn."""

    def __init__(self) -> None:
        self._name = ""
        self._tensor: torch.Tensor | None = None

    def tensor(self, piece: Piece, reader: ShardReader) -> torch.Tensor:
        """A piece's content."""
        if self._tensor is None or self._name != piece.info.name:
            self._name, self._tensor = piece.info.name, piece.read(reader)
        return self._tensor


@dataclass(frozen=True)
class OfStack:
    """One expert's matrix out of a stack, by the name it has alone."""

    info: TensorInfo
    stack: Piece
    held: HeldStack
    expert: int
    first: int

    def read(self, reader: ShardReader) -> torch.Tensor:
        tensor_ERC = self.held.tensor(self.stack, reader)
        return tensor_ERC[self.expert, self.first : self.first + self.info.shape[0]]


def _told(piece: Piece, reader: ShardReader) -> str:
    """A matrix to be packed and where it is from, for messages."""
    name, whole = piece.info.name, piece.stack if isinstance(piece, OfStack) else piece
    if not isinstance(whole, Copied):
        return f"{name}, made of tensors in {reader.directory},"
    place = reader.place(whole.source)
    return f"{name} in {place}" if name == whole.source else f"{name}, {whole.source} in {place},"


@dataclass(frozen=True)
class PackedPart:
    """One of the tensors that a packed matrix is written as."""

    info: TensorInfo
    end: str
    dense: Piece
    how: SparseFormat
    held: HeldMatrix
    order: Order | None

    def read(self, reader: ShardReader) -> torch.Tensor:
        if self.end == INPUT_ORDER:
            assert self.order is not None
            return torch.from_numpy(self.order)
        return _part(self._packed(reader), self.end, self.dense.info.dtype)

    def _packed(self, reader: ShardReader) -> Packed:
        return self.held.packed(self.dense, reader, self.how, self.order)


def _part(packed: Packed, end: str, dtype: StoredType) -> torch.Tensor:
    if end == VALUES:
        return to_tensor(packed.values_RV, dtype)
    if end == MASK:
        return torch.from_numpy(packed.mask_RB)
    if end == INDICES:
        return torch.from_numpy(to_indices(packed.mask_RB))
    listed = packed.overflow
    assert listed is not None, "only a format with an overflow list has such parts"
    if end == OVERFLOW_VALUES:
        return to_tensor(listed.values_N, dtype)
    return torch.from_numpy(listed.rows if end == OVERFLOW_ROWS else listed.columns_N)


class Packer:
    """Writes a checkpoint's routed experts packed, columns in their ``orders`` where there are."""

    def __init__(
        self, family: Family, how: SparseFormat, orders: Mapping[str, Order] | None = None
    ) -> None:
        self._family, self._orders = family, orders or {}
        self.how = how.model_copy(update={"input_orders": bool(self._orders)})
        self._held, self._stack = HeldMatrix(), HeldStack()

    def ordered_by(self, orders: Mapping[str, Order]) -> Packer:
        """The same for experts with input orders, by their names in the output."""
        return Packer(self._family, self.how, orders)

    def pieces(self, piece: Piece, reader: ShardReader) -> list[Piece]:
        """What is written for a piece: itself, or the parts of an expert's matrix, or of all."""
        stacks = self._family.stacks
        if stacks is not None and stacks.held(piece.info.name):
            found = self._of_stack(stacks, piece)
            return [part for one in found for part in self._parts(one, reader, None)]
        part = self._family.parse_expert(piece.info.name)
        return [piece] if part is None else self._parts(piece, reader, part)

    def _of_stack(self, stacks: Stacks, piece: Piece) -> list[Piece]:
        """A piece for each matrix of a stack, expert by expert."""
        info, projections = piece.info, stacks.held(piece.info.name)
        layer, rows = self._family.expert_rows(info.name), info.shape[1] // len(projections)
        assert layer is not None, "a stack's rows are a layer's experts"
        return [
            OfStack(
                TensorInfo(
                    stacks.name(layer, expert, projection), info.dtype, (rows, info.shape[2])
                ),
                piece,
                self._stack,
                expert,
                place * rows,
            )
            for expert in range(info.shape[0])
            for place, projection in enumerate(projections)
        ]

    def _parts(self, piece: Piece, reader: ShardReader, part: ExpertTensor | None) -> list[Piece]:
        """What is written for a matrix; ``part`` of one that may have an input order."""
        order = None
        if part is not None and part.projection != "down_proj":
            order = self._order(part, piece.info)
        ends = (*PARTS[self.how.layout], *([INPUT_ORDER] if order is not None else []))
        infos = self._infos(piece, reader, order)
        return [PackedPart(infos[end], end, piece, self.how, self._held, order) for end in ends]

    def _order(self, part: ExpertTensor, info: TensorInfo) -> Order | None:
        if not self._orders:
            return None
        name = order_name(self._family, part.layer, part.expert)
        return self._orders.get(name, np.arange(info.shape[1], dtype=np.int32))

    def _infos(
        self, piece: Piece, reader: ShardReader, order: Order | None
    ) -> dict[str, TensorInfo]:
        name, (rows, columns) = piece.info.name, piece.info.shape
        dtype = piece.info.dtype
        self._check(piece.info, _told(piece, reader))
        wide = StoredType.I32 if columns > NARROW_COLUMNS else StoredType.I16
        entries = 0
        if self.how.layout == "overflow":
            listed = self._held.packed(piece, reader, self.how, order).overflow
            assert listed is not None
            entries = len(listed.columns_N)
        parts: dict[str, tuple[StoredType, tuple[int, ...]]] = {
            VALUES: (dtype, (rows, self.how.values_per_row(columns))),
            MASK: (StoredType.U8, (rows, columns // 8)),
            INDICES: (StoredType.U8, (rows, columns // 8)),
            INPUT_ORDER: (StoredType.I32, (columns,)),
            OVERFLOW_ROWS: (StoredType.I32, (rows + 1,)),
            OVERFLOW_COLUMNS: (wide, (entries,)),
            OVERFLOW_VALUES: (dtype, (entries,)),
        }
        stem = name.removesuffix(WEIGHT)
        return {end: TensorInfo(stem + end, *part) for end, part in parts.items()}

    def _check(self, info: TensorInfo, what: str) -> None:
        if _values_of(info, what) != self.how.dtype:
            raise _mixed(info, what, self.how.dtype)
        _check_rows(info, what)


def _check_rows(info: TensorInfo, what: str) -> None:
    """Raise where the rows of a matrix or a stack are no whole groups."""
    if info.shape[-1] % GROUP:
        raise CheckpointError(
            f"{what} cannot be packed: its rows have {info.shape[-1]} weights, no multiple of "
            f"{GROUP}; keep the model dense"
        )


def expert_types(checkpoint: Checkpoint, reader: ShardReader) -> dict[StoredType, TensorInfo]:
    """Types of the experts' weights, where they can be taken apart, with the first of each."""
    found: dict[StoredType, TensorInfo] = {}
    for name in reader.names:
        if is_expert(checkpoint.family, name):
            info = reader.info(name)
            found.setdefault(info.dtype, info)
    return found


def is_packable(types: Mapping[StoredType, TensorInfo]) -> bool:
    """Whether experts of these types can be packed: they are of one."""
    return len(types) == 1 and all(dtype in _DTYPES for dtype in types)


def expert_dtype(checkpoint: Checkpoint, reader: ShardReader) -> Values:
    """The type of its experts' weights as formats name it."""
    infos = list(expert_types(checkpoint, reader).values())
    if not infos:
        raise CheckpointError(f"{checkpoint.path} has no experts of a tensor each to pack")
    told = [f"{info.name} in {reader.place(info.name)}" for info in infos]
    if len(infos) > 1:
        raise _mixed(infos[1], told[1], infos[0].dtype.name)
    return _values_of(infos[0], told[0])


def _mixed(info: TensorInfo, what: str, others: str) -> CheckpointError:
    return CheckpointError(
        f"{what} holds {info.dtype.name}, other experts {others}, and packed experts are of "
        "one type; convert the model first"
    )


def is_separable(checkpoint: Checkpoint) -> bool:
    """Whether its experts can be taken matrix by matrix."""
    stacks_for_good = checkpoint.family.stacked and checkpoint.family.stacks is None
    return not (stacks_for_good or checkpoint.shape.packed)


def _check_separable(checkpoint: Checkpoint) -> None:
    if not is_separable(checkpoint):
        raise InputError(
            f"{checkpoint.path}: a {checkpoint.family.name} model holds all experts of a layer "
            "in one tensor, which is not packed; serve it as it is, without --compress"
        )


def told_pattern(model: OpenedModel) -> str | None:
    """By which pattern the model's manifest says that weights were zeroed."""
    return None if model.manifest is None else pattern_of(model.manifest.settings)


def check_sums(model: OpenedModel, compress: bool) -> None:
    """Raise where sums of experts are to be packed, and each keeps other weights of a pattern."""
    known = told_pattern(model) is not None or model.packing is not None
    if not (compress and known and is_separable(model)):
        return  # whoever packs says what there is to say
    how = packer_of(model, None).how
    if how.layout != "overflow":
        raise InputError(
            f"--compress packs {how.text}, and sums of experts of {model.path}, which each keep "
            "weights of their own, hold more; leave --compress out, or merge its source and zero "
            "weights after"
        )


def packer_of(model: OpenedModel, pattern: str | None) -> Packer:
    """A packer for a pattern, for the one that the manifest tells of, or as the model is packed."""
    _check_separable(model)
    if (found := told_pattern(model) if pattern is None else pattern) is None:
        if model.packing is not None:
            return Packer(model.family, model.packing)
        raise InputError(
            f"{model.path} has no manifest that says by which pattern its weights were zeroed; "
            "give --pattern"
        )
    how = SparseFormat.of_pattern(found, expert_dtype(model, model.reader))
    for name in model.reader.names:
        if is_expert(model.family, name):
            _check_rows(model.reader.info(name), f"{name} in {model.reader.place(name)}")
    inner = own_quantization(model.config)
    if how.is_float8 and not says_float8(inner):
        raise CheckpointError(
            f"{model.path} holds float8 experts and its config.json no quantization_config of fp8, "
            "by which engines read their scales; take the config of the original model"
        )
    return Packer(model.family, how.model_copy(update={"inner": dict(inner) if inner else None}))
