"""The pinned files, what each pin itself requires, and whether the pins fit one another.

Beside every file of an image lies a record, ``NAME.requires.json``: the requirements of each pin as
its wheel's metadata give them. With it the fit is checked without a registry, under the Python
that the file is installed with, whichever Python checks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).resolve().parents[1] / "constraints"
CPU_PYTHON = "3.11.2"  # Debian 12's
CUDA_PYTHON = "3.12.3"  # Ubuntu 24.04's
# The Pythons each file is installed with.
PYTHONS = {
    "image-cpu": (CPU_PYTHON,),
    "image-cuda": (CUDA_PYTHON,),
    "build": (CPU_PYTHON, CUDA_PYTHON),
}


@dataclass(frozen=True)
class Package:
    """What a wheel says of itself, as far as resolving goes."""

    version: str
    requires_python: str | None
    requires: list[str]

    def needs(self, extra: str, environment: Mapping[str, str]) -> list[Requirement]:
        """What it requires with ``extra`` (none: ``""``) where ``environment`` holds."""
        found = [Requirement(line) for line in self.requires]
        values = {**environment, "extra": extra}
        return [one for one in found if one.marker is None or one.marker.evaluate(values)]

    def says_the_same_as(self, other: Package) -> bool:
        """Equal but for the order and the spelling of the requirements."""
        mine, others = ({Requirement(line) for line in one.requires} for one in (self, other))
        return (self.version, self.requires_python, mine) == (
            other.version,
            other.requires_python,
            others,
        )


def short(python: str) -> str:
    """``3.12`` of ``3.12.3``."""
    return ".".join(python.split(".")[:2])


def environment(python: str) -> dict[str, str]:
    """The markers of CPython ``python`` on 64-bit x86 Linux, which both images are."""
    return {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python,
        "python_version": short(python),
        "sys_platform": "linux",
    }


def read(name: str) -> dict[str, str]:
    """The versions that ``constraints/NAME.txt`` pins."""
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in pinned}


def write(name: str, what: str, versions: Mapping[str, str]) -> None:
    """One sorted ``name==version`` a line, under a comment that says what for."""
    lines = [f"# {what}", "# Written by `make constraints`; do not edit."]
    lines += [f"{package}=={version}" for package, version in sorted(versions.items())]
    (FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"constraints/{name}.txt: {len(versions)} packages")


def read_record(name: str) -> dict[str, Package]:
    """What the pins of ``constraints/NAME.txt`` were found to require."""
    found = json.loads((FOLDER / f"{name}.requires.json").read_text(encoding="utf-8"))
    return {package: Package(**said) for package, said in found.items()}


def write_record(name: str, packages: Mapping[str, Package]) -> None:
    """The record beside ``constraints/NAME.txt``."""
    text = json.dumps({one: asdict(packages[one]) for one in sorted(packages)}, indent=1)
    (FOLDER / f"{name}.requires.json").write_text(text + "\n", encoding="utf-8")


def faults(
    packages: Mapping[str, Package],
    roots: Iterable[Requirement],
    python: str,
    left_out: Collection[str] = (),
) -> list[str]:
    """What keeps ``packages`` from being all that ``roots`` lead to, each fitting the others.

    Stricter than ``pip check``: extras that a requirement names count too, and a package that
    nothing leads to is a fault.
    """
    found: list[str] = []
    reached: set[tuple[str, str]] = set()
    waiting = [("pyproject.toml", one) for one in roots]
    while waiting:
        by, wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in left_out:
            continue
        if name not in packages:
            found.append(f"{by} requires {wanted}, which is not pinned")
            continue
        package = packages[name]
        if not wanted.specifier.contains(package.version, prereleases=True):
            found.append(f"{by} requires {wanted}, but {name} is pinned to {package.version}")
        for extra in {"", *wanted.extras} - {one for who, one in reached if who == name}:
            reached.add((name, extra))
            waiting += [(name, one) for one in package.needs(extra, environment(python))]
    names = {name for name, _ in reached}
    found += [f"{name} is pinned, and nothing requires it" for name in packages.keys() - names]
    return sorted({*found, *_wrong_python(packages, python)})


def _wrong_python(packages: Mapping[str, Package], python: str) -> list[str]:
    return [
        f"{name} {package.version} requires Python {package.requires_python}, not {python}"
        for name, package in packages.items()
        if package.requires_python is not None
        and not SpecifierSet(package.requires_python).contains(python)
    ]
