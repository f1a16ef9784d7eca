"""Whether the folders that an engine compiles into can take anything: a full one fails it late.

vLLM, Inductor, Triton and our own kernels write while the engine starts; what they say of a full
disk is lost between processes.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

# A compiled model is larger, an empty folder that takes less than this takes none.
_LEAST_BYTES = 8 << 20
_FULL = {
    errno.ENOSPC: "its disk is full",
    errno.EDQUOT: "its quota is used up",
    errno.EFBIG: "files there may not be that large (ulimit -f)",
}


def cache_folders(environment: Mapping[str, str]) -> dict[str, Path]:
    """Where an engine compiles, by the variable that says so."""
    caches = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = {
        "XDG_CACHE_HOME": caches / "leanmoe",
        "VLLM_CACHE_ROOT": caches / "vllm",
        "TRITON_CACHE_DIR": Path.home() / ".triton",
        "HF_HOME": caches / "huggingface",
        "TMPDIR": Path(tempfile.gettempdir()),
    }
    if "TORCHINDUCTOR_CACHE_DIR" in environment:
        own["TORCHINDUCTOR_CACHE_DIR"] = Path(environment["TORCHINDUCTOR_CACHE_DIR"])
    named = {name: Path(environment[name]) for name in own if environment.get(name)}
    return own | {name: path for name, path in named.items() if name != "XDG_CACHE_HOME"}


def full_cache(environment: Mapping[str, str]) -> str | None:
    """One sentence on the first folder that takes nothing any more, or ``None``.

    A folder that cannot be written at all is its user's own choice, and is left to them.
    """
    for variable, folder in cache_folders(environment).items():
        if (why := _why_full(folder)) is not None:
            return (
                f"{folder} cannot take the {_LEAST_BYTES >> 20} MiB that an engine writes while it "
                f"starts: {why}; make room, or name another folder in {variable}"
            )
    return None


def _why_full(folder: Path) -> str | None:
    existing = next(one for one in (folder, *folder.parents) if one.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            os.posix_fallocate(file.fileno(), 0, _LEAST_BYTES)
    except OSError as error:
        return _FULL.get(error.errno or 0)
    return None
