"""The plugin's compiled code, built once per machine: skip/cpu.c, direct.cpp, sparse/experts.cpp.

vLLM's CPU build needs both compilers at run time for ``torch.compile`` anyway. A library is
named by a digest of its source, its flags, the processor and, where it is linked to it, torch;
it is written aside and renamed, so that processes which start together cannot see half of one.

The GPU's, sparse/cuda/packed.cu, takes nvcc for a minute. ``python -m leanmoe_runtime.native gpu``
builds it into the installed package, as the CUDA image does: serving then needs no compiler. With
``cpu`` the others are built there, as ``make install`` does: they are linked to the torch they will
run beside, which a wheel cannot know.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from leanmoe.errors import RuntimeSeamError
from leanmoe.files.digest import bytes_digest

_SOURCE = Path(__file__).parent / "skip" / "cpu.c"
_OPERATOR_SOURCE = Path(__file__).with_name("direct.cpp")
_SPARSE_SOURCE = Path(__file__).parent / "sparse" / "experts.cpp"
_GPU_SOURCE = Path(__file__).parent / "sparse" / "cuda" / "packed.cu"
_GPU_HEADERS = ("numbers", "step", "gather", "tensor", "pairs", "dense", "launch")
# Compute capabilities that get code of their own; newer ones take the PTX of the last.
GPU_TARGETS = ("80", "86", "89", "90")
# Where an installed package may hold a library that was built with it.
_SHIPPED = Path(__file__).with_name("built")
_FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC")
_OPERATOR_FLAGS = ("-O2", "-std=c++20", "-shared", "-fPIC")
_SPARSE_FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp")
_GPU_FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-Xcompiler=-fPIC", "--threads=0"),
    *(f"-gencode=arch=compute_{target},code=sm_{target}" for target in GPU_TARGETS),
    f"-gencode=arch=compute_{GPU_TARGETS[-1]},code=compute_{GPU_TARGETS[-1]}",
)
_COMPILERS = "install a C compiler and a C++ compiler (gcc, g++)"
_NVCC = (
    "packed experts on a GPU need this library: install CUDA's compiler (nvcc 12.6 or newer, with "
    "a C++ compiler), use the CUDA image, which holds it, or `leanmoe unpack` the model"
)


class _Build(NamedTuple):
    """How one library is compiled."""

    source: Path
    variable: str  # of the environment, naming the compiler
    default: str
    flags: tuple[str, ...]
    linked: tuple[str, ...] = ()
    version: str = ""  # of what it is linked to
    headers: tuple[Path, ...] = ()
    advice: str = _COMPILERS

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


def _built(build: _Build, target: Path) -> None:
    try:
        build.compile(target)
    except (OSError, subprocess.CalledProcessError) as error:
        raise _not_built(build, error) from error


def _loaded(build: _Build) -> ctypes.CDLL:
    try:
        # As trustworthy as the module beside it.
        shipped = _SHIPPED / build.name
        kept = shipped if shipped.exists() else _cached(build)
        if kept is not None:
            return ctypes.CDLL(str(kept))
        with tempfile.TemporaryDirectory(prefix="leanmoe-") as folder:
            target = Path(folder, build.name)
            build.compile(target)
            return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        raise _not_built(build, error) from error


def _not_built(build: _Build, error: Exception) -> RuntimeSeamError:
    detail = getattr(error, "stderr", None) or error
    return RuntimeSeamError(
        f"{build.source.name} could not be built by {shlex.join(build.compiler)!r}: "
        f"{str(detail).strip()}; {build.advice}, or name one in {build.variable}, and let "
        "XDG_CACHE_HOME be a folder that can be written"
    )


def _rule_build() -> _Build:
    return _Build(_SOURCE, "CC", "cc", _FLAGS)


def _operator_build() -> _Build:
    return _beside_torch(_OPERATOR_SOURCE, _OPERATOR_FLAGS)


def _sparse_build() -> _Build:
    headers = tuple(_SPARSE_SOURCE.with_name(name) for name in ("layer.h", "products.h"))
    return _beside_torch(_SPARSE_SOURCE, _SPARSE_FLAGS, headers)


@cache
def library() -> ctypes.CDLL:
    """The loaded library; ``RuntimeSeamError`` where it cannot be built."""
    return _loaded(_rule_build())


@cache
def operator_library() -> ctypes.CDLL:
    """The library that defines ``leanmoe::direct_experts``, built against the installed torch."""
    return _loaded(_operator_build())


@cache
def sparse_library() -> ctypes.CDLL:
    """The library that defines ``leanmoe::sparse_experts``, built against the installed torch."""
    return _loaded(_sparse_build())


@cache
def gpu_library() -> ctypes.CDLL:
    """The library of packed experts on a GPU (sparse/gpu.py), which is linked to nothing."""
    return _loaded(_gpu_build())


def _gpu_build() -> _Build:
    headers = tuple(_GPU_SOURCE.with_name(f"{name}.cuh") for name in _GPU_HEADERS)
    return _Build(_GPU_SOURCE, "NVCC", _nvcc(), _GPU_FLAGS, headers=headers, advice=_NVCC)


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or f"{home}/bin/nvcc"


def _beside_torch(source: Path, flags: tuple[str, ...], headers: tuple[Path, ...] = ()) -> _Build:
    root = Path(torch.__file__).parent
    linked = (f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10")
    found = (*flags, f"-I{root / 'include'}")
    return _Build(source, "CXX", "c++", found, linked, torch.__version__, headers)


# What ``main`` builds, by the device it is for.
_BUILDS: dict[str, tuple[Callable[[], _Build], ...]] = {
    "cpu": (_rule_build, _operator_build, _sparse_build),
    "gpu": (_gpu_build,),
}


def main(device: str = "gpu") -> None:
    """Build a device's libraries into the installed package."""
    for make in _BUILDS[device]:
        build = make()
        target = _SHIPPED / build.name
        if not target.exists():
            _built(build, target)
        target.chmod(0o755)
        print(f"{target} is built")
    _SHIPPED.chmod(0o755)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (RuntimeSeamError, KeyError, TypeError) as error:
        sys.exit(f"{error}: expected cpu or gpu" if isinstance(error, KeyError) else str(error))
