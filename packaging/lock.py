"""Write the files in ``constraints/``: one version for every package, straight and indirect.

    python packaging/lock.py tested   # cpu.txt, build.txt, image-cpu.txt: from this environment
    python packaging/lock.py cuda     # image-cuda.txt: resolved by pip, nothing is installed

``tested`` reads what is installed where it runs, which is what the tests ran with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "constraints"
# What `make install` takes, and what an image needs: no tests, no task harness.
ALL_EXTRAS = ("cpu", "offline", "search", "tasks", "loadtest", "docs", "dev")
IMAGE_EXTRAS = ("offline", "search", "loadtest")
# Broken beside the CPU build of torch, and of no use to text models.
LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec"})
CUDA_PYTHON = "3.12"


def declared(extras: Iterable[str], pyproject: Path = ROOT / "pyproject.toml") -> list[Requirement]:
    """What ``leanmoe[extras]`` asks for."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    return [Requirement(line) for line in lines]


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    environment = {name: str(value) for name, value in default_environment().items()}
    marker = requirement.marker
    return marker is None or any(
        marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras)
    )


def closure(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Every installed package that ``requirements`` lead to, with its version."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(requirements)
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        key = (name, frozenset(wanted.extras))
        if key in seen or name in LEFT_OUT:
            continue
        seen.add(key)
        package = _installed(wanted)
        found[name] = package.version
        needs = [Requirement(line) for line in package.requires or []]
        waiting += [need for need in needs if _applies(need, wanted.extras)]
    return found


def _installed(wanted: Requirement) -> metadata.Distribution:
    try:
        package = metadata.distribution(wanted.name)
    except metadata.PackageNotFoundError:
        raise SystemExit(f"{wanted.name} is not installed here; run `make install` first") from None
    if not wanted.specifier.contains(package.version, prereleases=True):
        raise SystemExit(
            f"{wanted.name} {package.version} is installed, but {wanted} is asked for; "
            "run `make install` first"
        )
    return package


def write(name: str, what: str, versions: dict[str, str]) -> None:
    """One sorted ``name==version`` a line, under a comment that says what for."""
    lines = [f"# {what}", "# Written by `make constraints`; do not edit."]
    lines += [f"{package}=={version}" for package, version in sorted(versions.items())]
    (FOLDER / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"constraints/{name}: {len(versions)} packages")


def lock_tested() -> None:
    """The three files that name what this environment holds."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    write(
        "cpu.txt",
        f"What the tests run with on a CPU, {python}: pip install -c constraints/cpu.txt",
        closure(declared(ALL_EXTRAS)),
    )
    write(
        "image-cpu.txt",
        f"Everything in the CPU image beside LeanMoE, {python}: pip install --no-deps -r",
        closure(declared(("cpu", *IMAGE_EXTRAS))),
    )
    tools = [Requirement(one) for one in ("hatchling", "build", "pip")]
    write("build.txt", "What builds the wheels.", closure(tools))


def lock_cuda() -> None:
    """What pip would install for the CUDA image; its wheels' metadata are read, none installed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["--quiet", "--report", str(report), "--target", folder]
        command += ["--only-binary=:all:", "--python-version", CUDA_PYTHON]
        command += [str(one) for one in declared(("cuda", *IMAGE_EXTRAS))]
        subprocess.run(command, check=True)
        chosen = json.loads(report.read_text(encoding="utf-8"))["install"]
    versions: dict[str, str] = {
        canonicalize_name(one["metadata"]["name"]): one["metadata"]["version"] for one in chosen
    }
    write(
        "image-cuda.txt",
        f"Everything in the CUDA image beside LeanMoE, Python {CUDA_PYTHON}: pip install --no-deps "
        "-r. Resolved, not yet run.",
        versions,
    )


def main() -> None:
    """Write one set of files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("which", choices=("tested", "cuda"))
    FOLDER.mkdir(exist_ok=True)
    {"tested": lock_tested, "cuda": lock_cuda}[parser.parse_args().which]()


if __name__ == "__main__":
    main()
