"""The cases of ``leanmoe bench offline``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError
from leanmoe_bench.offline import memory, naee
from leanmoe_bench.shapes import SHAPES

CASES = ("naee", "memory")
_TOKENS = 2048
_TINY_TOKENS = 512
LEAST_TOKENS, MOST_TOKENS = 256, 1 << 20


def measure(
    cases: Sequence[str] | None,
    work: Path,
    *,
    tiny: bool,
    tokens: int | None,
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    """A row per case; ``tiny`` takes small models, to see that it works."""
    unknown = sorted(set(cases or ()) - set(CASES))
    if unknown:
        raise InputError(f"bench offline has no case {unknown[0]!r}; give {' or '.join(CASES)}")
    work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    if tokens is None:
        tokens = _TINY_TOKENS if tiny else _TOKENS
    if not LEAST_TOKENS <= tokens <= MOST_TOKENS:
        raise InputError(f"--tokens is {tokens}, expected {LEAST_TOKENS} to {MOST_TOKENS}")
    small = SHAPES["tiny"]
    if not cases or "naee" in cases:
        layer = small if tiny else replace(SHAPES["M"], name="mixtral", hidden=4096, ffn=14336)
        rows["naee"] = naee.measure(layer, tokens, rounds, seed)
    if not cases or "memory" in cases:
        model = small if tiny else replace(SHAPES["M"], name="M16", layers=16)
        rows["memory"] = memory.measure(model, work, tokens, seed)
    return rows


def show(rows: dict[str, Any]) -> str:
    """For people."""
    shown = {"naee": naee.show, "memory": memory.show}
    return "\n".join(shown[name](row) for name, row in rows.items())
