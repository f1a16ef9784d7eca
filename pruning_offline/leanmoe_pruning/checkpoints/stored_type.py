"""The number types of safetensors files, known without torch."""

from __future__ import annotations

from enum import Enum

from leanmoe_pruning.later import torch


class StoredType(Enum):
    """By its name in a header: what torch calls it, and the bytes of one number."""

    F64 = ("float64", 8)
    F32 = ("float32", 4)
    F16 = ("float16", 2)
    BF16 = ("bfloat16", 2)
    F8_E4M3 = ("float8_e4m3fn", 1)
    I64 = ("int64", 8)
    I32 = ("int32", 4)
    I16 = ("int16", 2)
    I8 = ("int8", 1)
    U8 = ("uint8", 1)
    BOOL = ("bool", 1)

    @classmethod
    def of(cls, dtype: torch.dtype) -> StoredType:
        """The type that a tensor of ``dtype`` is stored as; ``KeyError`` where there is none."""
        return _BY_NAME[str(dtype).removeprefix("torch.")]

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return self.value[1]

    @property
    def is_floating_point(self) -> bool:
        return "float" in self.value[0]

    @property
    def torch(self) -> torch.dtype:
        """The same as torch has it."""
        dtype: torch.dtype = getattr(torch, self.value[0])
        return dtype

    def __str__(self) -> str:
        return self.value[0]


_BY_NAME = {one.value[0]: one for one in StoredType}
