"""The plugin's compiled code, built once per machine: skip/cpu.c, direct.cpp, sparse/experts.cpp.

vLLM's CPU build needs both compilers at run time for ``torch.compile`` anyway. A library is
named by a digest of its source, its flags, the processor and, where it is linked to it, torch;
it is written aside and renamed, so that processes which start together cannot see half of one.
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
from typing import NamedTuple

import torch

from leanmoe.errors import RuntimeSeamError
from leanmoe.files.digest import bytes_digest

_SOURCE = Path(__file__).parent / "skip" / "cpu.c"
_OPERATOR_SOURCE = Path(__file__).with_name("direct.cpp")
_SPARSE_SOURCE = Path(__file__).parent / "sparse" / "experts.cpp"
_FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC")
_OPERATOR_FLAGS = ("-O2", "-std=c++20", "-shared", "-fPIC")
_SPARSE_FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp")


class _Build(NamedTuple):
    """How one library is compiled."""

    source: Path
    variable: str  # of the environment, naming the compiler
    default: str
    flags: tuple[str, ...]
    linked: tuple[str, ...] = ()
    version: str = ""  # of what it is linked to
    headers: tuple[Path, ...] = ()

    @property
    def compiler(self) -> list[str]:
        return shlex.split(os.environ.get(self.variable, "")) or [self.default]

    @property
    def name(self) -> str:
        how = " ".join((*self.flags, platform.machine(), self.version))
        read = [path.read_bytes() for path in (self.source, *self.headers)]
        key = bytes_digest([*read, how.encode()])
        return f"{self.source.stem}-{key.removeprefix('sha256:')[:16]}.so"

    def compile(self, target: Path) -> None:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder, target.name)
            command = [*self.compiler, *self.flags, str(self.source), "-o", str(built)]
            subprocess.run([*command, *self.linked], check=True, capture_output=True, text=True)
            built.chmod(0o700)
            built.replace(target)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "leanmoe"


def _is_ours(path: Path) -> bool:
    """True when nobody else can have written it: code is going to be loaded from there."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _cached(build: _Build) -> Path | None:
    """The library kept for the next process too, or ``None`` where no safe place is to be had."""
    try:
        target = _cache_folder() / build.name
        if not target.exists():
            build.compile(target)
        return target if _is_ours(target.parent) and _is_ours(target) else None
    except (RuntimeError, OSError):
        return None  # no home, or none that can be written


def _loaded(build: _Build) -> ctypes.CDLL:
    try:
        kept = _cached(build)
        if kept is not None:
            return ctypes.CDLL(str(kept))
        with tempfile.TemporaryDirectory(prefix="leanmoe-") as folder:
            target = Path(folder, build.name)
            build.compile(target)
            return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or error
        raise RuntimeSeamError(
            f"{build.source.name} could not be built by {shlex.join(build.compiler)!r}: "
            f"{str(detail).strip()}; install a C compiler and a C++ compiler (gcc, g++) or name "
            f"one in {build.variable}, and let XDG_CACHE_HOME be a folder that can be written"
        ) from error


@cache
def library() -> ctypes.CDLL:
    """The loaded library; ``RuntimeSeamError`` where it cannot be built."""
    return _loaded(_Build(_SOURCE, "CC", "cc", _FLAGS))


@cache
def operator_library() -> ctypes.CDLL:
    """The library that defines ``leanmoe::direct_experts``, built against the installed torch."""
    return _loaded(_beside_torch(_OPERATOR_SOURCE, _OPERATOR_FLAGS))


@cache
def sparse_library() -> ctypes.CDLL:
    """The library that defines ``leanmoe::sparse_experts``, built against the installed torch."""
    headers = tuple(_SPARSE_SOURCE.with_name(name) for name in ("layer.h", "products.h"))
    return _loaded(_beside_torch(_SPARSE_SOURCE, _SPARSE_FLAGS, headers))


def _beside_torch(source: Path, flags: tuple[str, ...], headers: tuple[Path, ...] = ()) -> _Build:
    root = Path(torch.__file__).parent
    linked = (f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10")
    found = (*flags, f"-I{root / 'include'}")
    return _Build(source, "CXX", "c++", found, linked, torch.__version__, headers)
