"""The texts that ship with the project: ten domains, a calibration and a held-out split each.

Six lie here. Four stand under copyleft licences and are a distribution of their own, data without
code: ``leanmoe-texts``, which a checkout's ``make install`` and the extra ``texts`` bring.
They are stored twice: as SmolLM2 token ids (exact, used where the model has that
vocabulary) and as decoded text, one JSON object per window, for any other model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from safetensors import safe_open

from leanmoe.errors import DataError
from leanmoe.extras import install_hint
from leanmoe_pruning.data.spec import BUILTIN, COPYLEFT, PERMISSIVE
from leanmoe_pruning.later import torch

Split = Literal["calibration", "heldout"]
SPLITS: tuple[Split, ...] = ("calibration", "heldout")

_OWN = Path(__file__).parent
_COPYLEFT_PACKAGE = "leanmoe_texts"


def copyleft_home(wanted: str) -> Path:
    """The folder of texts and tasks under copyleft licences; ``DataError`` where there is none.

    ``wanted`` is what the sentence says is missing, such as ``builtin:fr``.
    """
    spec = find_spec(_COPYLEFT_PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(
            f"{wanted} stands under a copyleft licence and is in a package of its own, "
            f"{_COPYLEFT_PACKAGE}, which is not installed; run {install_hint('texts')}, or take "
            f"other texts: {', '.join(PERMISSIVE)}"
        )
    return Path(spec.origin).parent


def has_copyleft() -> bool:
    """Whether texts under copyleft licences are installed."""
    return find_spec(_COPYLEFT_PACKAGE) is not None


def _texts(domain: str) -> Path:
    return (copyleft_home(BUILTIN + domain) if domain in COPYLEFT else _OWN) / "texts"


def builtin_ids(domain: str, split: Split) -> torch.Tensor:
    """SmolLM2 token ids, int64 ``[N, 256]``."""
    with safe_open(_texts(domain) / "tokens.safetensors", framework="pt") as file:
        ids: torch.Tensor = file.get_tensor(f"{domain}.{split}")
    return ids.long()


def text_path(domain: str) -> Path:
    """Where a domain's decoded text is."""
    return _texts(domain) / f"{domain}.jsonl"


def builtin_texts(domain: str, split: Split) -> Iterator[str]:
    """The same windows as text."""
    for line in text_path(domain).read_text(encoding="utf-8").splitlines():
        window = json.loads(line)
        if window["split"] == split:
            yield window["text"]
