"""A directory tree used as a root: made by debootstrap or copied, entered by chroot.

Needs root, debootstrap and util-linux; mounts live in a namespace of their own and end with it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_DEBIAN = re.compile(r"(?:docker\.io/library/)?debian:(?P<suite>[a-z]+)")


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine seen inside a tree."""

    source: Path
    target: str
    writable: bool = False

    def commands(self, root: Path) -> list[str]:
        """Shell commands that mount it."""
        place = shlex.quote(f"{root}{self.target}")
        make = f"mkdir -p {place}" if self.source.is_dir() else f"touch {place}"
        lines = [
            f"[ -e {place} ] || {make}",
            f"mount --bind {shlex.quote(str(self.source))} {place}",
        ]
        return lines if self.writable else [*lines, f"mount -o remount,bind,ro {place}"]


def make_debian(image: str, root: Path) -> None:
    """Unpack the smallest Debian of the suite that ``image`` names."""
    found = _DEBIAN.match(image)
    if found is None:
        raise SystemExit(f"{image} is no Debian image, so debootstrap cannot stand in for it")
    command = ["debootstrap", "--variant=minbase", found["suite"], str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def copy_tree(source: Path, target: Path) -> None:
    """A copy with owners, modes and links; cheap where the file system can share blocks."""
    subprocess.run(["cp", "--archive", "--reflink=auto", source, target], check=True)


def remove_tree(root: Path) -> None:
    """Remove a tree of ours, unless something is still mounted inside it."""
    mounted = Path("/proc/self/mounts").read_text(encoding="utf-8")
    if f" {root}/" in mounted or f" {root} " in mounted:
        raise SystemExit(f"something is mounted in {root}; unmount it first")
    if root.exists():
        shutil.rmtree(root)


def copy_into(source: Path, target: Path) -> None:
    """As COPY does: a folder's contents go into ``target``, a file to it or into it."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "--archive", f"{source}/.", target], check=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _system(root: Path) -> list[str]:
    quoted = shlex.quote(str(root))
    return [
        f"mount -t proc proc {quoted}/proc",
        f"mount --rbind /dev {quoted}/dev",
        f"mount --rbind /sys {quoted}/sys",
    ]


def _sealed(root: Path, memory: Sequence[str]) -> list[str]:
    """The root cannot be written any more; the folders of ``memory`` are empty and can."""
    quoted = shlex.quote(str(root))
    lines = [f"mount -o remount,bind,ro {quoted}"]
    return [*lines, *(f"mount -t tmpfs -o mode=1777 tmpfs {quoted}{one}" for one in memory)]


def enter(
    root: Path,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    mounts: Sequence[Mount] = (),
    memory: Sequence[str] | None = None,
    user: str = "0:0",
    folder: str = "/",
) -> list[str]:
    """The command line that runs ``command`` in ``root`` as process 1 of its own namespaces.

    With ``memory`` the root is read-only, all but those folders, which are empty and in memory.
    """
    quoted = shlex.quote(str(root))
    variables = [f"{name}={value}" for name, value in environment.items()]
    inside = ["env", "-i", f"--chdir={folder}", *variables, *command]
    # A folder has to be a mount before it can be made read-only.
    # chroot lies where not every user's PATH leads.
    lines = [
        "set -e",
        "PATH=$PATH:/usr/sbin:/sbin",
        f"mount --bind {quoted} {quoted}",
        *_system(root),
    ]
    lines += [line for mount in mounts for line in mount.commands(root)]
    lines += [] if memory is None else _sealed(root, memory)
    lines.append(f"exec chroot --userspec={user} {quoted} {shlex.join(inside)}")
    # The first process of a PID namespace is the one that --fork starts.
    flags = ["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    return ["unshare", *flags, "sh", "-c", "\n".join(lines)]
