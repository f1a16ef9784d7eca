"""Compiled code into a wheel, where a compiler is present: a hook of hatchling's.

The skip rule and packed experts are built for this processor (``leanmoe_runtime/builds.py``) and
the wheel gets a tag of this platform. Without a compiler, off Linux, or with ``LEANMOE_PURE_WHEEL``
set, the wheel is any platform's and holds sources only, which are then built at the first start.
Builds in place are left alone: ``make install`` builds into them.

The tag says how old a C library the wheel runs with, by the symbol versions that its libraries ask
for. Limits are PEP 600's and auditwheel's policies of those names.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PURE = "LEANMOE_PURE_WHEEL"
_FOLDER = "leanmoe_runtime/built"
# The newest symbol versions a tag allows, the oldest tag first.
_POLICIES = {
    "manylinux_2_17": {"GLIBC": (2, 17), "GLIBCXX": (3, 4, 19), "CXXABI": (1, 3, 7), "GCC": (4, 8)},
    "manylinux_2_28": {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7,)},
}
# What a system has to have by those policies.
_SYSTEM = re.compile(r"lib(c|m|stdc\+\+|gcc_s)\.so\.\d+|ld-linux.*")


class LibrariesHook(BuildHookInterface[Any]):
    """Found by hatchling as the one class of this file (``pyproject.toml``)."""

    _made: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and say what goes along under which tag."""
        if version == "editable" or os.environ.get(PURE) or sys.platform != "linux":
            return
        self._made = tempfile.TemporaryDirectory(prefix="leanmoe-libraries-")
        built = self._built(Path(self._made.name))
        if not built:
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(built)}"
        for library in built:
            build_data["force_include"][str(library)] = f"{_FOLDER}/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._made is not None:
            self._made.cleanup()

    def _built(self, folder: Path) -> list[Path]:
        sys.path[:0] = [str(Path(self.root, part)) for part in ("core", "runtime_patches")]
        from leanmoe.errors import RuntimeSeamError
        from leanmoe_runtime.builds import rule_build, sparse_build

        built = []
        try:
            for build in (rule_build(), sparse_build()):
                built.append(folder / build.name)
                build.build(built[-1])
        except RuntimeSeamError as error:
            self.app.display_warning(f"a wheel for any platform, without compiled code: {error}")
            return []
        return built


def platform_tag(libraries: Iterable[Path]) -> str:
    """The oldest platform they run on; plain ``linux`` of this machine where that is unknown."""
    read = [_headers(library) for library in libraries]
    fits = [tag for tag, limits in _POLICIES.items() if all(_fits(one, limits) for one in read)]
    return f"{fits[0] if fits else 'linux'}_{platform.machine()}"


def _headers(library: Path) -> str:
    """What ``objdump`` says of a library; nothing where there is none."""
    try:
        told = subprocess.run(["objdump", "-p", library], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return told.stdout


def _fits(headers: str, limits: dict[str, tuple[int, ...]]) -> bool:
    needed = re.findall(r"NEEDED\s+(\S+)", headers)
    asked = re.findall(r"\b([A-Z]+)_(\d[\d.]*)$", headers, re.MULTILINE)
    return (
        bool(needed)
        and all(_SYSTEM.fullmatch(name) for name in needed)
        and all(name in limits and _number(version) <= limits[name] for name, version in asked)
    )


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
