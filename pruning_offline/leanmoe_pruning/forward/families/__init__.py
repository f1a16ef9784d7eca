"""How each family's layers are computed: all in ``known.py``.

transformers takes seconds to import, so that file is read when a model is first run. Whether one
can be is said here, and commands that only read bundles start without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leanmoe_pruning.forward.families.base import ForwardFamily

RUNNABLE = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek",
    "deepseek_v2",
    "deepseek_v3",
    "granitemoe",
    "phimoe",
    "gpt_oss",
)


def forward_family(name: str) -> ForwardFamily:
    """What the file of that family says."""
    from leanmoe_pruning.forward.families.known import TABLE

    return TABLE[name]
