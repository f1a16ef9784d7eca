"""The plugin's C code (drop.c), compiled once per machine and loaded by ``ctypes``.

vLLM's CPU build needs a compiler at run time for ``torch.compile`` anyway. The library
is named by a digest of its source and the processor, written aside and renamed, so that
processes which start together cannot see half of one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from leanmoe.errors import RuntimeSeamError
from leanmoe.provenance import bytes_digest

_SOURCE = Path(__file__).with_name("drop.c")
_FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC")


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "leanmoe"


def _library_name() -> str:
    key = bytes_digest([_SOURCE.read_bytes(), " ".join((*_FLAGS, platform.machine())).encode()])
    return f"drop-{key.removeprefix('sha256:')[:16]}.so"


def _is_ours(path: Path) -> bool:
    """True when nobody else can have written it: code is going to be loaded from there."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _compile(target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder, target.name)
        command = [*_compiler(), *_FLAGS, str(_SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        built.chmod(0o700)
        built.replace(target)


def _cached() -> Path | None:
    """The library kept for the next process too, or ``None`` where no safe place is to be had."""
    try:
        target = _cache_folder() / _library_name()
        if not target.exists():
            _compile(target)
        return target if _is_ours(target.parent) and _is_ours(target) else None
    except (RuntimeError, OSError):
        return None  # no home, or none that can be written


@cache
def library() -> ctypes.CDLL:
    """The loaded library; ``RuntimeSeamError`` where it cannot be built."""
    try:
        kept = _cached()
        if kept is not None:
            return ctypes.CDLL(str(kept))
        with tempfile.TemporaryDirectory(prefix="leanmoe-") as folder:
            target = Path(folder, _library_name())
            _compile(target)
            return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or error
        raise RuntimeSeamError(
            f"{_SOURCE.name} could not be built by {shlex.join(_compiler())!r}: "
            f"{str(detail).strip()}; install a C compiler (gcc) or name one in CC, and let "
            "XDG_CACHE_HOME be a folder that can be written"
        ) from error
