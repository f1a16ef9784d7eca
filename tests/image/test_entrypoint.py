"""The entrypoint in a bare tree: read-only, a user without a name, no environment but the image's.

The tree holds this machine's /usr, the entrypoint and a program of two lines named leanmoe; the
last test runs the real one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.image.conftest import SCRIPTS
from tree import Mount, enter

HOME, FOLDERS = "/home/leanmoe", ("proc", "dev", "sys", "tmp", "usr", "home/leanmoe", "opt/bin")


@pytest.fixture
def tree(tmp_path):
    tmp_path.chmod(0o755)
    for folder in FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (tmp_path / name).symlink_to(f"usr/{name}")
    program = tmp_path / "opt/bin/leanmoe"
    program.write_text('#!/bin/sh\necho "$$ $(id -u):$(id -g) $HOME" "$@"\n')
    program.chmod(0o755)
    return tmp_path


def run(tree, *arguments, home=HOME, writable=True):
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], check=False).returncode:
        pytest.skip("entering a tree needs root and the right to mount")
    line = enter(
        tree,
        ["/opt/bin/entrypoint", *arguments],
        environment={"PATH": "/opt/bin:/usr/bin:/bin", **({"HOME": home} if home else {})},
        mounts=[
            Mount(Path("/usr").resolve(), "/usr"),
            Mount(SCRIPTS / "entrypoint", "/opt/bin/entrypoint"),
        ],
        memory=(HOME, "/tmp") if writable else (),
        user="4242:0",
    )
    # Libraries preloaded here, as vLLM sets when it is imported, are not in the tree.
    clean = {"PATH": os.environ["PATH"]}
    return subprocess.run(line, env=clean, capture_output=True, text=True, timeout=60)


def test_arguments_go_to_leanmoe_as_they_are(tree):
    done = run(tree, "serve", "/models/a b", "--port", "8000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1)[1] == f"4242:0 {HOME} serve /models/a b --port 8000\n"


def test_it_becomes_the_program_so_that_signals_reach_it(tree):
    assert run(tree, "serve").stdout.split()[0] == "1"


def test_the_program_s_own_name_may_be_given_too(tree):
    assert run(tree, "leanmoe", "plan").stdout.split(" ", 3)[3] == "plan\n"


def test_without_a_home_it_takes_the_image_s(tree):
    assert run(tree, "plan", home=None).stdout.split()[2] == HOME


def test_a_folder_that_cannot_be_written_is_named_in_one_sentence(tree):
    done = run(tree, "serve", writable=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"entrypoint: {HOME}/.cache cannot be written by user 4242 of group 0; "
        f"mount a writable folder at {HOME} and at /tmp\n"
    )


def test_it_starts_the_real_command_and_leaves_nothing_behind(tmp_path):
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    done = subprocess.run(
        [SCRIPTS / "entrypoint", "--version"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("leanmoe 0."), done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
