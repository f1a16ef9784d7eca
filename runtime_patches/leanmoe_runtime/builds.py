"""How the plugin's compiled code is built: skip/cpu.c, sparse/experts.cpp, direct.cpp, packed.cu.

Imports neither torch nor vLLM, so that wheels are built with it (packaging/libraries.py). A library
is named by a digest of its source, its flags, the processor and, where it is linked to it, torch:
what was built into a wheel is found by the name that the installed package works out.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from leanmoe.errors import RuntimeSeamError
from leanmoe.files.digest import bytes_digest

_HERE = Path(__file__).parent
_RULE_SOURCE = _HERE / "skip" / "cpu.c"
_OPERATOR_SOURCE = _HERE / "direct.cpp"
_SPARSE_SOURCE = _HERE / "sparse" / "experts.cpp"
_SPARSE_HEADERS = ("products", "avx2", "avx512", "layer")
_GPU_SOURCE = _HERE / "sparse" / "cuda" / "packed.cu"
_GPU_HEADERS = ("numbers", "step", "values", "gather", "tensor", "pairs", "dense", "launch")
# Compute capabilities that get code of their own; newer ones take the PTX of the last.
GPU_TARGETS = ("80", "86", "89", "90")
# Whichever instructions a processor has beyond its family's first is found out at run time.
_RULE_FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC")
_OPERATOR_FLAGS = ("-O2", "-std=c++20", "-shared", "-fPIC")
# Sized deletes would ask for a newer C++ library than all else here.
_SPARSE_FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-fno-sized-deallocation")
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


class Build(NamedTuple):
    """How one library is compiled."""

    source: Path
    variable: str  # of the environment, naming the compiler
    default: str
    flags: tuple[str, ...]
    linked: tuple[str, ...] = ()
    version: str = ""  # of what it is linked to
    headers: tuple[Path, ...] = ()
    advice: str = _COMPILERS
    # Linked by a command of its own, so that -fopenmp links no library: the process holds torch's,
    # and the threads of a second one would be in the way of the first one's.
    apart: bool = False

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
        """Written aside and renamed: processes that start together cannot see half of one."""
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder, target.name)
            source = str(self.source)
            if self.apart:
                part = str(Path(folder, "part.o"))
                self._run(*self.flags, "-c", source, "-o", part)
                self._run("-shared", part, "-o", str(built), *self.linked)
            else:
                self._run(*self.flags, source, "-o", str(built), *self.linked)
            built.chmod(0o700)
            built.replace(target)

    def build(self, target: Path) -> None:
        """``compile``; ``RuntimeSeamError`` where that cannot be done."""
        try:
            self.compile(target)
        except (OSError, subprocess.CalledProcessError) as error:
            raise self.refusal(error) from error

    def refusal(self, error: Exception) -> RuntimeSeamError:
        """What to say of a library that could not be built or loaded."""
        detail = getattr(error, "stderr", None) or error
        return RuntimeSeamError(
            f"{self.source.name} could not be built by {shlex.join(self.compiler)!r}: "
            f"{str(detail).strip()}; {self.advice}, or name one in {self.variable}, and let "
            "XDG_CACHE_HOME be a folder that can be written"
        )

    def _run(self, *arguments: str) -> None:
        command = [*self.compiler, *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True)


def rule_build() -> Build:
    """The skip rule and its counters."""
    return Build(_RULE_SOURCE, "CC", "cc", _RULE_FLAGS)


def sparse_build() -> Build:
    """Packed experts on a CPU."""
    headers = tuple(_SPARSE_SOURCE.with_name(f"{name}.h") for name in _SPARSE_HEADERS)
    flags, linked = _SPARSE_FLAGS, ("-lm",)
    return Build(_SPARSE_SOURCE, "CXX", "c++", flags, linked, headers=headers, apart=True)


def operator_build() -> Build:
    """The operator that calls vLLM's kernel, linked to the installed torch."""
    import torch

    root = Path(torch.__file__).parent
    linked = (f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10")
    flags = (*_OPERATOR_FLAGS, f"-I{root / 'include'}")
    return Build(_OPERATOR_SOURCE, "CXX", "c++", flags, linked, torch.__version__)


def gpu_build() -> Build:
    """Packed experts on a GPU, linked to nothing."""
    headers = tuple(_GPU_SOURCE.with_name(f"{name}.cuh") for name in _GPU_HEADERS)
    return Build(_GPU_SOURCE, "NVCC", _nvcc(), _GPU_FLAGS, headers=headers, advice=_NVCC)


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or f"{home}/bin/nvcc"
