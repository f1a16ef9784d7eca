"""The texts that ship with the project: ten domains, a calibration and a held-out split each.

They are stored twice: as SmolLM2 token ids (exact, used where the model has that
vocabulary) and as decoded text, one JSON object per window, for any other model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from safetensors import safe_open

from leanmoe_pruning.later import torch

Split = Literal["calibration", "heldout"]
SPLITS: tuple[Split, ...] = ("calibration", "heldout")

_TEXTS = Path(__file__).parent / "texts"
_TOKENS = _TEXTS / "tokens.safetensors"


def builtin_ids(domain: str, split: Split) -> torch.Tensor:
    """SmolLM2 token ids, int64 ``[N, 256]``."""
    with safe_open(_TOKENS, framework="pt") as file:
        ids: torch.Tensor = file.get_tensor(f"{domain}.{split}")
    return ids.long()


def text_path(domain: str) -> Path:
    """Where a domain's decoded text is."""
    return _TEXTS / f"{domain}.jsonl"


def builtin_texts(domain: str, split: Split) -> Iterator[str]:
    """The same windows as text."""
    for line in text_path(domain).read_text(encoding="utf-8").splitlines():
        window = json.loads(line)
        if window["split"] == split:
            yield window["text"]
