"""Whether a model's files hold packed experts, as the headers of its shards tell."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from leanmoe.sparse.sparse_format import VALUES


def packed_tensor(directory: Path) -> str | None:
    """The name of a tensor of packed values in a folder, ``None`` where there is none.

    Files that cannot be read are passed over: whoever loads them says what is wrong.
    """
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as shard:
                names = shard.keys()
        except (SafetensorError, OSError):
            continue
        if found := next((name for name in names if name.endswith(VALUES)), None):
            return str(found)
    return None
