"""Scales of float8 weights: a number for each block of a matrix, as DeepSeek-V3 is released.

R rows and C columns of a matrix, r and c of its blocks: scales are ``[ceil(R / r), ceil(C / c)]``.
Packing leaves them as they are; their columns are counted in the order of the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from leanmoe.errors import CheckpointError

SCALE = ".weight_scale_inv"
# Codes of e4m3 without a sign: this one stands for no number.
_NO_NUMBER = 0x7F
Span = tuple[int, int]


@dataclass(frozen=True)
class Blocks:
    """Rows and columns of what shares a scale."""

    rows: int = 128
    columns: int = 128

    @classmethod
    def of(cls, quantization: Mapping[str, Any] | None, where: str = "config.json") -> Self:
        """As a source's ``quantization_config`` states, or 128 x 128 where it says nothing.

        Raises ``CheckpointError``, naming ``where``, for what are no blocks.
        """
        stated = None if quantization is None else quantization.get("weight_block_size")
        match stated:
            case None:
                return cls()
            case [rows, columns] if all(type(one) is int and one > 0 for one in (rows, columns)):
                return cls(rows, columns)
        raise CheckpointError(
            f"{where} has the weight_block_size {stated!r}, expected two numbers, rows and "
            "columns; take the config of the original model"
        )

    def count(self, rows: int, columns: int) -> Span:
        """Blocks of a matrix, along its rows and along its columns."""
        return -(-rows // self.rows), -(-columns // self.columns)

    def part(self, scale_RC: NDArray[np.float32], rows: Span, columns: Span) -> NDArray[np.float32]:
        """The scales of a part ``[start, stop)`` of a matrix, blocks that it cuts included."""
        (top, bottom), (left, right) = rows, columns
        above, before = top // self.rows, left // self.columns
        return scale_RC[above : -(-bottom // self.rows), before : -(-right // self.columns)]

    def check(self, scale_RC: NDArray[np.float32], rows: int, columns: int, what: str) -> None:
        """Raise ``CheckpointError`` unless these are a matrix's scales, all of them numbers."""
        expected = self.count(rows, columns)
        if scale_RC.shape != expected or not np.isfinite(scale_RC).all():
            raise CheckpointError(
                f"{what}: its scales are {list(scale_RC.shape)}, expected {list(expected)} finite "
                f"numbers, one for each block of {self.rows} x {self.columns}; fetch or pack the "
                "model again"
            )


def check_codes(codes: NDArray[np.unsignedinteger[Any]], what: str) -> None:
    """Raise ``CheckpointError`` where a code of float8 (e4m3) stands for no number."""
    if ((codes & _NO_NUMBER) == _NO_NUMBER).any():
        raise CheckpointError(
            f"{what} holds float8 codes that are no numbers; fetch or pack the model again"
        )
