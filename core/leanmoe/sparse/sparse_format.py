"""What a checkpoint with packed experts says of them: ``quantization_config`` of its config.json.

A row of a matrix is divided into groups of 32 weights of which ``keep`` are stored, so that the
values of group g of row r begin at ``(r * groups + g) * keep``: no offsets are stored. Which of a
group they are says one bit a weight, or two bits a value for 2:4. Where a mask is not balanced,
what a group has beyond ``keep`` goes to an overflow list. ``docs/format.md`` has every detail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leanmoe.errors import CheckpointError, InputError
from leanmoe.files.records import One, first_fault

QUANT_METHOD = "leanmoe_sparse"
CONFIG_KEY = "quantization_config"
GROUP = 32

Layout = Literal["bitmask", "indices", "overflow"]
# How values are named where safetensors and torch name them.
Values = Literal["bfloat16", "float16", "float32", "float8_e4m3fn"]

WEIGHT = ".weight"
VALUES, MASK, INDICES = ".weight_values", ".weight_mask", ".weight_indices"
OVERFLOW_ROWS = ".weight_overflow_rows"
OVERFLOW_COLUMNS = ".weight_overflow_columns"
OVERFLOW_VALUES = ".weight_overflow_values"
INPUT_ORDER = ".weight_input_order"
# What stands in the place of a matrix's one tensor, by layout.
PARTS: Mapping[Layout, tuple[str, ...]] = {
    "bitmask": (VALUES, MASK),
    "indices": (VALUES, INDICES),
    "overflow": (VALUES, MASK, OVERFLOW_ROWS, OVERFLOW_COLUMNS, OVERFLOW_VALUES),
}
# Of these the words are numbers of the matrix.
NUMBERS = (VALUES, OVERFLOW_VALUES)
# Columns that two bytes can number.
NARROW_COLUMNS = 1 << 15


class SparseFormat(BaseModel):
    """How every routed expert of a checkpoint is packed.

    ``keep`` of every 32 weights are stored, ``dtype`` is that of the values. With ``input_orders``
    the gate and up projections of each expert are packed with their columns in an order of their
    own, which lies beside them. ``inner`` is the source's own ``quantization_config`` (float8).
    """

    # Strict, since engines of others read the same numbers: "16" is none.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    quant_method: Literal["leanmoe_sparse"] = "leanmoe_sparse"
    schema_version: One = 1
    keep: int = Field(ge=1, le=GROUP - 1)
    group: Literal[32] = 32
    layout: Layout = "bitmask"
    dtype: Values = "bfloat16"
    input_orders: bool = False
    inner: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.layout == "indices" and self.keep != GROUP // 2:
            raise ValueError(f"indices are for 2:4, which keeps 16 of 32, not {self.keep}")
        return self

    @property
    def text(self) -> str:
        """Its name on the command line and in reports."""
        if self.layout == "indices":
            return "2:4"
        return f"{self.keep}:{self.group}" + ("+overflow" if self.layout == "overflow" else "")

    @property
    def is_float8(self) -> bool:
        """Whether values are codes that a scale for each block goes with (scale_blocks.py)."""
        return self.dtype == "float8_e4m3fn"

    def values_per_row(self, columns: int) -> int:
        """Values of a row of that many weights, overflow aside."""
        return columns // self.group * self.keep

    def bytes_per_weight(self, itemsize: int) -> float:
        """Bytes that one weight of a matrix takes, overflow aside, values of so many bytes."""
        return self.keep / self.group * itemsize + 1 / 8

    @classmethod
    def of_pattern(cls, text: str, dtype: Values) -> Self:
        """The format for masks of a pattern: ``16:32``, or the share of zeros of any mask, ``0.5``.

        Raises ``InputError`` for another text.
        """
        kept, group = _read_pattern(text)
        if group and GROUP % group == 0:
            layout: Layout = "indices" if (kept, group) == (2, 4) else "bitmask"
            return cls(keep=int(kept) * GROUP // group, layout=layout, dtype=dtype)
        share = kept / group if group else 1 - kept
        keep = min(max(round(share * GROUP), 1), GROUP - 1)
        return cls(keep=keep, layout="overflow", dtype=dtype)

    def to_config(self) -> dict[str, Any]:
        """The value of ``quantization_config``."""
        return self.model_dump(mode="json", exclude_none=True)


def _read_pattern(text: str) -> tuple[float, int]:
    """N and M of ``N:M``, or the share of zeros and 0."""
    match = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", text)
    if match and 0 < int(match[1]) < int(match[2]):
        return int(match[1]), int(match[2])
    if not match and re.fullmatch(r"0?\.[0-9]{1,24}", text) and 0 < float(text) < 1:
        return float(text), 0
    raise InputError(
        f"{text!r} is no pattern to pack by; give N:M, of every M weights the N that are kept "
        "(16:32), or the share of zeros of a mask without a pattern (0.5)"
    )


def read_sparse_format(config: Mapping[str, Any], where: str) -> SparseFormat | None:
    """The format a ``config.json`` states, or ``None`` for experts that are not packed."""
    stated = config.get(CONFIG_KEY)
    if not isinstance(stated, Mapping) or stated.get("quant_method") != QUANT_METHOD:
        return None
    try:
        how = SparseFormat.model_validate(stated)
    except ValidationError as error:
        fault = first_fault(error)
        place = f"{CONFIG_KEY}.{fault.place}".removesuffix(".")
        found = "missing" if fault.type == "missing" else f"{fault.value!r:.60}: {fault.said}"
        raise CheckpointError(f"{where}: {place} is {found}; pack the model again") from None
    _check_inner(how, where)
    return how


def _check_inner(how: SparseFormat, where: str) -> None:
    """Raise unless values are float8 just where the source's own settings say so of experts."""
    inner = how.inner or {}
    said = says_float8(inner)
    if said if how.is_float8 else not said or _leaves_experts(inner):
        return
    expected = "'fp8'" if how.is_float8 else "another, or experts among its modules left plain"
    raise CheckpointError(
        f"{where}: {CONFIG_KEY}.dtype is {how.dtype!r} and the quant_method of its inner "
        f"{inner.get('quant_method')!r}, expected {expected}; take the config.json that was "
        "written with these experts, or pack the model again"
    )


def says_float8(quantization: Mapping[str, Any] | None) -> bool:
    """Whether settings of a source's own are of float8 with scales per block."""
    return quantization is not None and quantization.get("quant_method") == "fp8"


def _leaves_experts(inner: Mapping[str, Any]) -> bool:
    """Whether a list of modules that are not quantised names some of routed experts."""
    lists = [one for one in inner.values() if isinstance(one, list)]
    return any(isinstance(name, str) and ".experts" in name for one in lists for name in one)


def lost_settings(name: str, path: Path) -> CheckpointError:
    """What to raise where a tensor is packed and config.json does not say that experts are."""
    return CheckpointError(
        f"{name} in {path} is packed and its config.json has lost the {CONFIG_KEY} of "
        f"{QUANT_METHOD} that says how; take back the config.json that was written with these "
        "shards, or pack the model again"
    )


def own_quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a ``config.json`` says of quantised weights, packing aside."""
    stated = config.get(CONFIG_KEY)
    if isinstance(stated, Mapping) and stated.get("quant_method") == QUANT_METHOD:
        stated = stated.get("inner")
    return stated if isinstance(stated, Mapping) else None


def pattern_of(settings: Mapping[str, Any]) -> str | None:
    """The pattern of the last step that zeroed weights, from a manifest's settings."""
    link: Mapping[str, Any] | None = settings
    while link is not None:
        found = link.get("pattern") or link.get("sparsity")
        if found is not None:
            return str(found)
        before = link.get("before")
        link = before["settings"] if before else None
    return None
