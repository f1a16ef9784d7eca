"""Write the files in ``constraints/``: one version for every package, straight and indirect.

    python packaging/lock.py tested   # cpu.txt, build.txt, image-cpu.txt: from this environment
    python packaging/lock.py cuda     # image-cuda.txt: resolved by pip, nothing is installed
    python packaging/lock.py verify   # asks the registry whether the records still hold
    python packaging/lock.py check    # pip resolves the pins under each image's own Python

``tested`` reads what is installed where it runs, which is what the tests ran with. Files of an
image get a record of what each pin requires (pins.py). ``cuda`` and ``check`` need the CUDA image's
Python: pip evaluates markers such as ``python_version > "3.11"`` with the interpreter that runs it,
whatever ``--python-version`` says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pins
from pins import Package

ROOT = Path(__file__).resolve().parents[1]
# Ours too, and behind an extra: released with LeanMoE, so never pinned.
REFERENCE = ROOT / "reference_model" / "pyproject.toml"
# What `make install` takes, and what an image needs: no tests, no task harness, no embedded models.
ALL_EXTRAS = ("cpu", "offline", "reference", "search", "tasks", "loadtest", "docs", "dev")
IMAGE_EXTRAS = ("offline", "search", "loadtest")
# Broken beside the CPU build of torch, and of no use to text models.
LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec"})
BUILD_TOOLS = ("hatchling", "build", "pip")
# The one whose layer checks and figures were made on a GPU; pyproject.toml may accept more.
CUDA_VLLM = "0.32.0"
# CUDA's compilers of the release that torch is built with, which fixes them. Left alone, pip takes
# the newest, and a driver loads no PTX from a compiler newer than itself.
CUDA_COMPILERS = "cuda-toolkit[cccl,nvcc]"


def declared(extras: Iterable[str], pyproject: Path = ROOT / "pyproject.toml") -> list[Requirement]:
    """What ``leanmoe[extras]`` asks for of others."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    lines = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    return [one for line in lines for one in _of_others(Requirement(line))]


def _of_others(wanted: Requirement) -> list[Requirement]:
    """What a requirement comes to where our own distributions are at hand."""
    match wanted.name:
        case "leanmoe" | "leanmoe-texts":
            return []
        case "leanmoe-reference":
            return declared((), REFERENCE)
        case _:
            return [wanted]


def roots(name: str) -> list[Requirement]:
    """What ``constraints/NAME.txt`` is made for."""
    match name:
        case "image-cpu":
            return declared(("cpu", *IMAGE_EXTRAS))
        case "image-cuda":
            more = (f"vllm=={CUDA_VLLM}", CUDA_COMPILERS)
            return [*declared(("cuda", *IMAGE_EXTRAS)), *map(Requirement, more)]
        case "build":
            return [Requirement(one) for one in BUILD_TOOLS]
        case _:
            return declared(ALL_EXTRAS)


def left_out(name: str) -> frozenset[str]:
    """Packages that are required and not taken."""
    return LEFT_OUT if name == "image-cpu" else frozenset()


def closure(
    requirements: Iterable[Requirement], environment: Mapping[str, str] | None = None
) -> dict[str, Package]:
    """Every installed package that ``requirements`` lead to where ``environment`` holds."""
    where = {name: str(value) for name, value in (environment or default_environment()).items()}
    found: dict[str, Package] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(requirements)
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        key = (name, frozenset(wanted.extras))
        if key in seen or name in LEFT_OUT:
            continue
        seen.add(key)
        found[name] = _installed(wanted)
        for extra in ("", *wanted.extras):
            waiting += found[name].needs(extra, where)
    return found


def _installed(wanted: Requirement) -> Package:
    try:
        package = metadata.distribution(wanted.name)
    except metadata.PackageNotFoundError:
        raise SystemExit(f"{wanted.name} is not installed here; run `make install` first") from None
    if not wanted.specifier.contains(package.version, prereleases=True):
        raise SystemExit(
            f"{wanted.name} {package.version} is installed, but {wanted} is asked for; "
            "run `make install` first"
        )
    python = (package.metadata.get_all("Requires-Python") or [None])[0]
    return Package(package.version, python, list(package.requires or []))


def write(name: str, what: str, packages: Mapping[str, Package]) -> None:
    """The pins and their record, unless they do not fit one another."""
    for python in pins.PYTHONS[name]:
        if wrong := pins.faults(packages, roots(name), python, left_out(name)):
            raise SystemExit(
                f"{name}.txt is not written, its pins do not fit:\n" + "\n".join(wrong)
            )
    pins.write(name, what, {one: package.version for one, package in packages.items()})
    pins.write_record(name, packages)


def lock_tested() -> None:
    """The three files that name what this environment holds."""
    python = _cpu_python()
    tested = {name: one.version for name, one in closure(declared(ALL_EXTRAS)).items()}
    what = f"What the tests run with on a CPU, Python {python}: pip install -c constraints/cpu.txt"
    pins.write("cpu", what, tested)
    what = f"Everything in the CPU image beside LeanMoE, Python {python}: pip install --no-deps -r"
    write("image-cpu", what, closure(roots("image-cpu"), pins.environment(pins.CPU_PYTHON)))
    write("build", "What builds the wheels.", closure(roots("build")))


def _cpu_python() -> str:
    """The Python that runs this, which has to be the CPU image's."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != (image := pins.short(pins.CPU_PYTHON)):
        raise SystemExit(f"the CPU image has Python {image}, this is {python}; use {image}'s .venv")
    return python


def lock_cuda(python: str) -> None:
    """What pip would install for the CUDA image; its wheels' metadata are read, none installed."""
    _refuse_other_python(python)
    asked = [str(one) for one in roots("image-cuda")]
    chosen = resolve(["--python", python], ["--only-binary=:all:", *asked])
    refuse_local_builds(chosen)
    what = f"Everything in the CUDA image beside LeanMoE, Python {pins.short(pins.CUDA_PYTHON)}: "
    write("image-cuda", f"{what}pip install --no-deps -r. Resolved, not yet run.", chosen)


def _refuse_other_python(python: str) -> None:
    wanted = f"{pins.short(pins.CUDA_PYTHON)} linux x86_64"
    code = "import platform as p, sys; print(*sys.version_info[:2], sep='.', end=' ')\n"
    code += "print(sys.platform, p.machine())"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        found = done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = "no Python"
    if found != wanted:
        raise SystemExit(
            f"the CUDA image's pins are resolved by its own Python ({wanted}), and {python} is "
            f"{found}; name one: make constraints-cuda CUDA_PYTHON=/path/to/python3.12"
        )


def refuse_local_builds(chosen: Mapping[str, Package]) -> None:
    """No ``2.13.0+cpu`` from an index or folder that this machine's pip also looks into."""
    if local := [f"{name} {one.version}" for name, one in chosen.items() if "+" in one.version]:
        raise SystemExit(
            f"pip chose {', '.join(local)}, which PyPI does not have; take the index or folder it "
            "comes from out of pip's settings (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL)"
        )


def resolve(pip: Sequence[str], asked: Sequence[str]) -> dict[str, Package]:
    """What pip, run with the options ``pip``, would install of ``asked``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", *pip, "install", "--quiet", "--report", str(report)]
        command += ["--dry-run", "--ignore-installed", "--target", folder, *asked]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit("pip could not resolve it; what it said stands above")
        said = [one["metadata"] for one in json.loads(report.read_text("utf-8"))["install"]]
    return {canonicalize_name(one["name"]): _described(one) for one in said}


def _described(said: Mapping[str, Any]) -> Package:
    return Package(said["version"], said.get("requires_python"), said.get("requires_dist", []))


def verify() -> None:
    """Compare every record with the metadata of the wheels that an image would install."""
    wrong = [f"{name}: {one}" for name in pins.PYTHONS for one in differences(name)]
    if wrong:
        raise SystemExit("the records differ from the registry:\n" + "\n".join(wrong))
    print("every pin's requirements are recorded as the registry has them")


def differences(name: str) -> list[str]:
    """Where the record of ``constraints/NAME.txt`` and the wheels' metadata part."""
    # Nothing is resolved, so no marker is evaluated, and any Python can ask for another's wheels.
    options = ["--no-deps", "--python-version", pins.short(pins.PYTHONS[name][0])]
    there = resolve([], [*options, "--requirement", str(pins.FOLDER / f"{name}.txt")])
    here = pins.read_record(name)
    return [
        f"{one}: recorded {here.get(one)}, found {there.get(one)}"
        for one in sorted(here.keys() | there.keys())
        if one not in here or one not in there or not here[one].says_the_same_as(there[one])
    ]


def check(cuda_python: str) -> None:
    """Let pip, under each image's own Python and markers, resolve the pins of every file."""
    _cpu_python()
    _refuse_other_python(cuda_python)
    run = {pins.CPU_PYTHON: sys.executable, pins.CUDA_PYTHON: cuda_python}
    asked = [(name, python) for name, wanted in pins.PYTHONS.items() for python in wanted]
    wrong = [one for name, python in asked for one in unpinned(name, run[python])]
    if wrong:
        raise SystemExit("pip installs more than is pinned:\n" + "\n".join(wrong))
    print("pip resolves every file to what it pins, under the Python of each image")


def unpinned(name: str, python: str) -> list[str]:
    """What pip adds to the pins of ``constraints/NAME.txt``; it ends where they do not fit."""
    file = str(pins.FOLDER / f"{name}.txt")
    chosen = resolve(["--python", python], ["--only-binary=:all:", "--requirement", file])
    more = sorted(chosen.keys() - pins.read(name).keys() - left_out(name))
    return [f"{name}: {one} {chosen[one].version}" for one in more]


def main() -> None:
    """Write one set of files, or verify their records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("which", choices=("tested", "cuda", "verify", "check"))
    parser.add_argument("--python", default="python3.12", help="the Python that resolves for CUDA")
    arguments = parser.parse_args()
    pins.FOLDER.mkdir(exist_ok=True)
    match arguments.which:
        case "tested":
            lock_tested()
        case "cuda":
            lock_cuda(arguments.python)
        case "check":
            check(arguments.python)
        case _:
            verify()


if __name__ == "__main__":
    main()
