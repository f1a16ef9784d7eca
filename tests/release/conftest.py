"""Wheels and source distributions as a release makes them, once per session."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def distributions(tmp_path_factory):
    """The folder that ``make dist`` would leave: wheels are built from the source archives."""
    out = tmp_path_factory.mktemp("dist")
    for source in (ROOT, ROOT / "reference_model"):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def wheel(distributions):
    return next(distributions.glob("leanmoe-*.whl"))


@pytest.fixture(scope="session")
def reference_wheel(distributions):
    return next(distributions.glob("leanmoe_reference-*.whl"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """A stranger's environment: the wheel and what it asks for, nothing of this checkout."""
    folder = tmp_path_factory.mktemp("stranger") / "venv"
    venv.create(folder, with_pip=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield folder / "bin"
    shutil.rmtree(folder)
