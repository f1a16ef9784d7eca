"""The plugin's compiled code, loaded, and built where nobody has built it before (builds.py).

Three places are tried. An installed package may hold libraries: wheels for a platform bring the
skip rule and packed experts, which know nothing of torch, and ``python -m leanmoe_runtime.native
cpu``, which ``make install`` runs, adds ``direct.cpp``, linked to the torch beside it. A folder
of the user's keeps what an earlier start built. Otherwise it is built now: vLLM's CPU build needs
both compilers at run time for ``torch.compile`` anyway.

The GPU's, sparse/cuda/packed.cu, takes nvcc for a minute. ``python -m leanmoe_runtime.native gpu``
builds it into the installed package, as the CUDA image does: serving then needs no compiler.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from leanmoe.errors import RuntimeSeamError
from leanmoe_runtime.builds import Build, gpu_build, operator_build, rule_build, sparse_build

# Where an installed package may hold a library that was built with it.
_SHIPPED = Path(__file__).with_name("built")


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "leanmoe"


def _is_ours(path: Path) -> bool:
    """True when nobody else can have written it: code is going to be loaded from there."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _cached(build: Build) -> Path | None:
    """The library kept for the next process too, or ``None`` where no safe place is to be had."""
    try:
        target = _cache_folder() / build.name
        if not target.exists():
            build.compile(target)
        return target if _is_ours(target.parent) and _is_ours(target) else None
    except (RuntimeError, OSError):
        return None  # no home, or none that can be written


def _loaded(build: Build) -> ctypes.CDLL:
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
        raise build.refusal(error) from error


@cache
def library() -> ctypes.CDLL:
    """The skip rule; ``RuntimeSeamError`` where it cannot be built."""
    return _loaded(rule_build())


@cache
def operator_library() -> ctypes.CDLL:
    """The library that defines ``leanmoe::direct_experts``, built against the installed torch."""
    return _loaded(operator_build())


@cache
def sparse_library() -> ctypes.CDLL:
    """Packed experts on a CPU (sparse/kernel.py), which computes on torch's own OpenMP threads."""
    _open_openmp()
    return _loaded(sparse_build())


@cache
def gpu_library() -> ctypes.CDLL:
    """The library of packed experts on a GPU (sparse/gpu.py), which is linked to nothing."""
    return _loaded(gpu_build())


def _open_openmp() -> None:
    """Torch opens its OpenMP for the whole process; where it has none, the system's is opened."""
    if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)


# What ``main`` builds, by the device it is for.
_BUILDS: dict[str, tuple[Callable[[], Build], ...]] = {
    "cpu": (rule_build, operator_build, sparse_build),
    "gpu": (gpu_build,),
}


def main(device: str = "gpu") -> None:
    """Build a device's libraries into the installed package."""
    for make in _BUILDS[device]:
        build = make()
        target = _SHIPPED / build.name
        if not target.exists():
            build.build(target)
        target.chmod(0o755)
        print(f"{target} is built")
    _SHIPPED.chmod(0o755)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (RuntimeSeamError, KeyError, TypeError) as error:
        sys.exit(f"{error}: expected cpu or gpu" if isinstance(error, KeyError) else str(error))
