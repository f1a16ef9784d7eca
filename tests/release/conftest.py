"""Wheels and source distributions as a release makes them, once per session."""

from __future__ import annotations

import os
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
    for source in (ROOT, ROOT / "reference_model", ROOT / "copyleft_texts"):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    _build_for_any_platform(out)
    return out


def _build_for_any_platform(out: Path) -> None:
    source = next(out.glob("leanmoe-*.tar.gz"))
    how = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out]
    command = [sys.executable, "-m", "pip", "wheel", *how, source]
    environment = {**os.environ, "LEANMOE_PURE_WHEEL": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheel(distributions):
    """For this platform, with compiled code."""
    return next(distributions.glob("leanmoe-*linux*.whl"))


@pytest.fixture(scope="session")
def pure_wheel(distributions):
    """For any platform."""
    return next(distributions.glob("leanmoe-*-any.whl"))


@pytest.fixture(scope="session")
def reference_wheel(distributions):
    return next(distributions.glob("leanmoe_reference-*.whl"))


@pytest.fixture(scope="session")
def texts_wheel(distributions):
    return next(distributions.glob("leanmoe_texts-*.whl"))


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
