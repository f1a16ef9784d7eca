"""A ``leanmoe`` command in a process that may hold only so much memory, its peaks watched.

The limit is a cgroup (v2) of its own where one can be made, which counts what the process
holds and the files it has read; else RLIMIT_DATA, which counts its private memory, held or
only reserved. Run as ``python -m leanmoe_bench.offline.limited LIMIT CGROUP ARGUMENT...`` with
``-`` for no cgroup.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from leanmoe.errors import LeanMoEError
from leanmoe.process.group import last_lines

_CGROUPS = Path("/sys/fs/cgroup")
_EVERY_SECONDS = 0.02
_NONE = "-"


@dataclass(frozen=True)
class Peaks:
    """Most bytes held at a time; ``anonymous`` by looking fifty times a second."""

    limited_by: str
    anonymous: int
    total: int


def run_limited(arguments: list[str], limit: int, log: Path) -> Peaks:
    """Run ``leanmoe ARGUMENTS``; raise with what it said where it fails."""
    with _own_cgroup(limit) as group, log.open("w") as out:
        where = _NONE if group is None else str(group)
        command = [sys.executable, "-m", __name__, str(limit), where]
        child = subprocess.Popen([*command, *arguments], stdout=out, stderr=out)
        peaks = _watch(child)
    if child.returncode != 0:
        said = last_lines(log)
        raise LeanMoEError(f"leanmoe {arguments[0]} ended with code {child.returncode}:\n{said}")
    return Peaks("RLIMIT_DATA" if group is None else "cgroup v2", *peaks)


def _watch(child: subprocess.Popen[bytes]) -> tuple[int, int]:
    anonymous = total = 0
    try:
        while child.poll() is None:
            held = _status(child.pid)
            anonymous = max(anonymous, held.get("RssAnon", 0))
            total = max(total, held.get("VmHWM", 0))
            time.sleep(_EVERY_SECONDS)
    finally:
        child.kill()
        child.wait()
    return anonymous, total


def _status(pid: int) -> dict[str, int]:
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                found[name] = int(value.removesuffix(" kB")) * 1024
    return found


@contextmanager
def _own_cgroup(limit: int) -> Iterator[Path | None]:
    group = _CGROUPS / f"leanmoe-bench-{os.getpid()}"
    try:
        if "memory" not in (_CGROUPS / "cgroup.subtree_control").read_text().split():
            raise OSError("no memory control")
        group.mkdir()
        (group / "memory.max").write_text(str(limit))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def _main(limit: str, group: str, *arguments: str) -> int:
    from leanmoe.cli import main

    if group == _NONE:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    else:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    return main(list(arguments))


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
