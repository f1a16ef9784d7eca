"""What the install must have arranged for text models on the CPU wheel."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from leanmoe.process.environment import engine_environment


def test_nothing_that_breaks_transformers_is_installed():
    for name in ("torchvision", "torchaudio", "torchcodec"):
        assert importlib.util.find_spec(name) is None, f"{name} does not import beside this torch"


@pytest.mark.slow
def test_the_vllm_command_of_the_cpu_wheel_starts():
    command = Path(sys.executable).with_name("vllm")
    done = subprocess.run(
        [command, "--version"],
        capture_output=True,
        text=True,
        env=engine_environment(plugin=False),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "0.32.0" in done.stdout


def test_intel_openmp_is_there_to_be_preloaded():
    assert "libiomp5.so" in engine_environment(base={})["LD_PRELOAD"]
