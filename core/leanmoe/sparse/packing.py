"""One matrix packed and unpacked, as raw words: no number is ever rounded.

R rows, C columns, G groups of 32 columns, V values of a row, B bytes of a row's mask, N entries of
the overflow list. Words are unsigned integers of the size of a value, so that bfloat16 and float8,
which numpy does not know, are packed as any other. The highest bit is the sign; a zero's is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanmoe.errors import CheckpointError
from leanmoe.sparse.sparse_format import (
    GROUP,
    INDICES,
    MASK,
    NARROW_COLUMNS,
    OVERFLOW_COLUMNS,
    OVERFLOW_ROWS,
    OVERFLOW_VALUES,
    VALUES,
    SparseFormat,
)

Words = NDArray[np.unsignedinteger[Any]]
Bits = NDArray[np.bool_]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Overflow:
    """What groups have beyond their share: entries of row r from ``rows[r]`` to ``rows[r + 1]``."""

    rows: NDArray[np.int32]
    columns_N: NDArray[np.signedinteger[Any]]
    values_N: Words


@dataclass(frozen=True)
class Packed:
    """A packed matrix: ``keep`` values of every group, one bit for each weight."""

    values_RV: Words
    mask_RB: Bytes
    overflow: Overflow | None = None


def pack_by(how: SparseFormat, words_RC: Words, what: str) -> Packed:
    """Pack a matrix ``[R, C]`` as a format has it, 2:4 with two of every four marked."""
    if how.layout == "indices":
        return pack(words_RC, 2, what, group=4)
    return pack(words_RC, how.keep, what, overflow=how.layout == "overflow")


def pack(
    words_RC: Words, keep: int, what: str, *, overflow: bool = False, group: int = GROUP
) -> Packed:
    """Pack a matrix ``[R, C]``; groups with fewer values store zeros too.

    Raises ``CheckpointError`` naming ``what`` where a group holds more than ``keep`` and there is
    to be no overflow list, or where rows are no whole groups of 32.
    """
    rows, columns = _whole(words_RC, what)
    used_RGM = nonzero(words_RC).reshape(rows, columns // group, group)
    spilled = _spill_(used_RGM, keep)
    if spilled.any() and not overflow:
        row, place, _ = (int(found) for found in np.argwhere(spilled)[0])
        found = keep + int(spilled[row, place].sum())
        raise CheckpointError(
            f"{what} breaks its pattern: weights {group * place} to {group * place + group - 1} "
            f"of row {row} hold {found} that are not zero, expected at most {keep}; prune the "
            f"model with --pattern {keep}:{group}, or pack it with another pattern"
        )
    _fill_(used_RGM, keep)
    used_RC = used_RGM.reshape(rows, columns)
    values_RV = words_RC[used_RC].reshape(rows, columns // group * keep)
    mask_RB = np.packbits(used_RC, axis=1, bitorder="little")
    rest = _listed(words_RC, spilled.reshape(rows, columns)) if overflow else None
    return Packed(values_RV, mask_RB, rest)


def nonzero(words: Words) -> Bits:
    """Where a word is of no zero, whatever its sign."""
    found: Bits = (words << words.dtype.type(1)) != 0
    return found


def _whole(words_RC: Words, what: str) -> tuple[int, int]:
    rows, columns = words_RC.shape
    if columns % GROUP:
        raise CheckpointError(
            f"{what} cannot be packed: its rows have {columns} weights, no multiple of {GROUP}; "
            "leave the model as it is"
        )
    return rows, columns


def _spill_(used_RGM: Bits, keep: int) -> Bits:
    """Take out of ``used_RGM``, and return, what a group has beyond its first ``keep``."""
    spilled = np.zeros_like(used_RGM)
    full = np.nonzero(used_RGM.sum(-1, dtype=np.int16) > keep)
    if len(full[0]):
        held = used_RGM[full]
        spilled[full] = held & (held.cumsum(-1, dtype=np.int16) > keep)
        used_RGM ^= spilled
    return spilled


def _fill_(used_RGM: Bits, keep: int) -> None:
    """Let every group have ``keep`` values, zeros where it has fewer."""
    counts_RG = used_RGM.sum(-1, dtype=np.int16)
    short = np.nonzero(counts_RG < keep)
    if len(short[0]):
        free = ~used_RGM[short]
        missing = (keep - counts_RG[short])[:, None]
        used_RGM[short] |= free & (free.cumsum(-1, dtype=np.int16) <= missing)


def _listed(words_RC: Words, spilled_RC: Bits) -> Overflow:
    columns = words_RC.shape[1]
    number = np.int16 if columns <= NARROW_COLUMNS else np.int32
    counts_R = spilled_RC.sum(1, dtype=np.int32)
    rows = np.concatenate([np.zeros(1, np.int32), counts_R.cumsum(dtype=np.int32)])
    columns_N: NDArray[np.signedinteger[Any]] = np.nonzero(spilled_RC)[1].astype(number)
    return Overflow(rows, columns_N, words_RC[spilled_RC])


def assemble(parts: Mapping[str, NDArray[Any]], what: str) -> Packed:
    """A packed matrix from the tensors of a file, by the ends of their names; values are words.

    Raises ``CheckpointError`` naming ``what`` where 2:4 indices are none.
    """
    mask_RB = from_indices(parts[INDICES], what) if INDICES in parts else parts[MASK]
    listed = None
    if OVERFLOW_ROWS in parts:
        rows, columns_N = parts[OVERFLOW_ROWS], parts[OVERFLOW_COLUMNS]
        listed = Overflow(rows, columns_N, parts[OVERFLOW_VALUES])
    return Packed(parts[VALUES], mask_RB, listed)


def unpack(packed: Packed, keep: int, what: str) -> Words:
    """The matrix ``[R, C]`` again; ``CheckpointError`` where its parts disagree."""
    check(packed, keep, what)
    rows, width = packed.mask_RB.shape
    used_RC = np.unpackbits(packed.mask_RB, axis=1, bitorder="little").view(np.bool_)
    words_RC = np.zeros((rows, 8 * width), packed.values_RV.dtype)
    words_RC[used_RC] = packed.values_RV.reshape(-1)
    if packed.overflow is not None:
        listed = packed.overflow
        at_row = np.repeat(np.arange(rows), np.diff(listed.rows))
        words_RC[at_row, listed.columns_N] = listed.values_N
    return words_RC


def take_rows(packed: Packed, start: int, stop: int) -> Packed:
    """Some rows of a packed matrix."""
    listed = packed.overflow
    if listed is not None:
        first, last = int(listed.rows[start]), int(listed.rows[stop])
        rows = listed.rows[start : stop + 1] - listed.rows[start]
        listed = Overflow(rows, listed.columns_N[first:last], listed.values_N[first:last])
    return Packed(packed.values_RV[start:stop], packed.mask_RB[start:stop], listed)


def take_groups(packed: Packed, keep: int, start: int, stop: int) -> Packed:
    """Some groups of columns of a packed matrix."""
    size, listed = GROUP // 8, packed.overflow
    if listed is not None:
        columns_N = listed.columns_N
        inside_N = (columns_N >= start * GROUP) & (columns_N < stop * GROUP)
        before = np.concatenate([np.zeros(1, np.int32), inside_N.cumsum(dtype=np.int32)])
        inner_N: NDArray[np.signedinteger[Any]] = columns_N[inside_N] - columns_N.dtype.type(
            start * GROUP
        )
        listed = Overflow(before[listed.rows], inner_N, listed.values_N[inside_N])
    values_RV = packed.values_RV[:, start * keep : stop * keep]
    return Packed(values_RV, packed.mask_RB[:, start * size : stop * size], listed)


def check(packed: Packed, keep: int, what: str) -> None:
    """Raise ``CheckpointError`` unless nothing lies outside and values and bits agree."""
    values_RV, mask_RB = packed.values_RV, packed.mask_RB
    rows, width = _bytes_of_rows(mask_RB, what)
    if width % (GROUP // 8) or values_RV.shape != (rows, 8 * width // GROUP * keep):
        raise CheckpointError(
            f"{what}: values of {list(values_RV.shape)} and a mask of {list(mask_RB.shape)} bytes "
            f"are not of one matrix that keeps {keep} of every {GROUP}; pack the model again"
        )
    counts_RG = np.bitwise_count(np.ascontiguousarray(mask_RB).view(np.uint32))
    if (counts_RG != keep).any():
        row, group = (int(place) for place in np.argwhere(counts_RG != keep)[0])
        raise CheckpointError(
            f"{what}: values and bitmask disagree: group {group} of row {row} marks "
            f"{int(counts_RG[row, group])} weights, expected {keep}; fetch or pack the model again"
        )
    if packed.overflow is not None:
        _check_overflow(packed.overflow, rows, 8 * width, what)
        _check_places(packed.overflow, mask_RB, what)


def _bytes_of_rows(bytes_RB: NDArray[Any], what: str) -> tuple[int, int]:
    """Rows and bytes of a mask or of indices; ``CheckpointError`` where they are no such thing."""
    if bytes_RB.ndim != 2 or bytes_RB.dtype != np.uint8:
        raise CheckpointError(
            f"{what}: its mask is {bytes_RB.dtype} of {bytes_RB.ndim} dimensions, not bytes of "
            "rows; fetch or pack the model again"
        )
    rows, width = bytes_RB.shape
    return rows, width


def _check_overflow(listed: Overflow, rows: int, columns: int, what: str) -> None:
    starts, count = listed.rows, listed.columns_N.size
    typed = starts.dtype == np.int32 and listed.columns_N.dtype in (np.int16, np.int32)
    shaped = starts.shape == (rows + 1,) and listed.columns_N.ndim == listed.values_N.ndim == 1
    whole = typed and shaped and starts[0] == 0 and starts[-1] == count
    inside = not count or (listed.columns_N.min() >= 0 and listed.columns_N.max() < columns)
    if not (whole and inside and (np.diff(starts) >= 0).all() and len(listed.values_N) == count):
        raise CheckpointError(
            f"{what}: its overflow list of {count} entries does not belong to {rows} rows of "
            f"{columns} weights; fetch or pack the model again"
        )


def _check_places(listed: Overflow, mask_RB: Bytes, what: str) -> None:
    """Whether a weight has two values: engines would take one or the other, or their sum."""
    row_N = np.repeat(np.arange(len(mask_RB)), np.diff(listed.rows))
    column_N = listed.columns_N
    marked_N = (mask_RB[row_N, column_N >> 3] >> (column_N & 7)) & 1
    again_N = (np.diff(column_N) <= 0) & (np.diff(row_N) == 0)
    wrong_N = np.concatenate([np.nonzero(marked_N)[0], np.nonzero(again_N)[0] + 1])
    if wrong_N.size:
        row, column = int(row_N[wrong_N[0]]), int(column_N[wrong_N[0]])
        raise CheckpointError(
            f"{what}: its overflow list names column {column} of row {row}, which the mask marks "
            "or the list has passed already, expected rising columns that the mask leaves free; "
            "fetch or pack the model again"
        )


def check_order(order_C: NDArray[Any], columns: int, what: str) -> None:
    """Raise ``CheckpointError`` unless each of so many columns stands in an order once."""
    whole = order_C.shape == (columns,) and order_C.dtype == np.int32
    if not whole or (np.sort(order_C) != np.arange(columns)).any():
        raise CheckpointError(
            f"{what}: its input order does not name each of {columns} columns once; fetch or pack "
            "the model again"
        )


def check_one_order(gate_C: NDArray[Any], up_C: NDArray[Any], what: str) -> None:
    """Raise ``CheckpointError`` unless an expert's gate and up projection have one input order."""
    if np.array_equal(gate_C, up_C):
        return
    raise CheckpointError(
        f"{what}: the input orders of its gate and up projection differ, expected one, by which "
        "engines bring inputs to both; fetch or pack the model again"
    )


def to_indices(mask_RB: Bytes) -> Bytes:
    """A 2:4 mask as two bits a value: per 4 weights a nibble, the first place in its low bits."""
    table = np.zeros(16, np.uint8)
    for first in range(4):
        for second in range(first + 1, 4):
            table[1 << first | 1 << second] = first | second << 2
    found: Bytes = table[mask_RB & 15] | table[mask_RB >> 4] << 4
    return found


def from_indices(indices_RB: Bytes, what: str) -> Bytes:
    """The mask that such nibbles stand for; ``CheckpointError`` where one is of no two places."""
    _bytes_of_rows(indices_RB, what)
    nibbles = np.stack([indices_RB & 15, indices_RB >> 4])
    first, second = nibbles & 3, nibbles >> 2
    if (first >= second).any():
        _, row, place = (int(found) for found in np.argwhere(first >= second)[0])
        raise CheckpointError(
            f"{what}: the indices at byte {place} of row {row} do not rise, so they name no two "
            "of four weights; fetch or pack the model again"
        )
    bits = (1 << first) | (1 << second)
    mask: Bytes = (bits[0] | bits[1] << 4).astype(np.uint8)
    return mask
