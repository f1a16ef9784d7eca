"""The plugin's C code (drop.c), compiled once per machine and loaded by ``ctypes``.

vLLM's CPU build needs a compiler at run time for ``torch.compile`` anyway. The library
is named by a digest of its source and the processor, written aside and renamed, so that
processes which start together cannot see half of one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from leanmoe.errors import RuntimeSeamError
from leanmoe.provenance import bytes_digest

_SOURCE = Path(__file__).with_name("drop.c")
_FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC")


def _compiler() -> str:
    return os.environ.get("CC", "cc")


def _target() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    folder = Path(root) if root else Path.home() / ".cache"
    key = bytes_digest([_SOURCE.read_bytes(), " ".join((*_FLAGS, platform.machine())).encode()])
    return folder / "leanmoe" / f"drop-{key.removeprefix('sha256:')[:16]}.so"


def _compile(target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder, target.name)
        command = [_compiler(), *_FLAGS, str(_SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        built.replace(target)


@cache
def library() -> ctypes.CDLL:
    """The loaded library; ``RuntimeSeamError`` where it cannot be built."""
    target = _target()
    try:
        if not target.exists():
            _compile(target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or error
        raise RuntimeSeamError(
            f"{_SOURCE.name} could not be built by {_compiler()!r} into {target.parent}: "
            f"{str(detail).strip()}; install a C compiler or name one in CC, and let "
            "XDG_CACHE_HOME be a folder that can be written"
        ) from error
