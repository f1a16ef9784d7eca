"""The image's scripts pass shellcheck and can be run as they are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.image.conftest import ROOT, SCRIPTS

PROGRAMS = sorted(path for path in SCRIPTS.iterdir() if path.is_file() and not path.suffix)
SHELL = [path for path in PROGRAMS if path.read_text().startswith("#!/bin/sh\n")]


def test_there_is_something_to_check():
    assert {"entrypoint", "healthcheck", "install-os"} <= {path.name for path in PROGRAMS}
    assert len(SHELL) == len(PROGRAMS) - 1


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, *SHELL], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_every_program_is_executable_and_says_what_it_is_for(program):
    assert os.access(program, os.X_OK)
    assert program.read_text().splitlines()[1].startswith(("#", '"""'))


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_every_script_stops_at_the_first_error(script):
    assert "\nset -eu\n" in script.read_text()


def test_the_dockerfile_uses_every_program_of_the_build():
    dockerfile = (ROOT / "Dockerfile").read_text()
    used = {path.name for path in PROGRAMS} - {"pin-bases"}
    assert all(f"packaging/image/{name}" in dockerfile for name in used)


@pytest.fixture
def pin_bases(tmp_path):
    """The script in a copy of the files it changes, and a registry that answers one thing."""
    for name in ("Dockerfile", "docs/image.md", "packaging/image/pin-bases"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def run(answer, *arguments):
        (tmp_path / "crane").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "crane").chmod(0o755)
        return subprocess.run(
            [tmp_path / "packaging/image/pin-bases", *arguments],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )

    return run


def test_a_new_digest_is_written_to_the_dockerfile_and_its_page(pin_bases, tmp_path):
    digest = "sha256:" + "0123456789abcdef" * 4
    assert pin_bases(f"echo {digest}").returncode == 0
    assert digest not in (tmp_path / "Dockerfile").read_text()
    assert pin_bases(f"echo {digest}", "--write").returncode == 0
    assert (tmp_path / "Dockerfile").read_text().count(f"@{digest}") == 2
    assert (tmp_path / "docs/image.md").read_text().count(digest) == 2


@pytest.mark.parametrize("answer", ["exit 1", "true", "echo unauthorized", "echo sha256:abc"])
def test_without_a_whole_digest_nothing_is_changed(pin_bases, tmp_path, answer):
    done = pin_bases(answer, "--write")
    assert done.returncode == 1 and "nothing was changed" in done.stderr
    assert (tmp_path / "Dockerfile").read_text() == (ROOT / "Dockerfile").read_text()
