"""``docs/adding-a-method.md``, followed: its blocks put in their places, its method run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import leanmoe_pruning
from tests.docs.pages import ROOT, Fence, fences
from tests.tiny import write_tiny_mixtral

PAGE = ROOT / "docs" / "adding-a-method.md"
TEXT = "the people look at the water and go a long way "
MOST_LINES = 60
# One process for all command lines: most of the time of each would go into importing torch.
RUN = """
import contextlib, io, json, sys
from leanmoe.cli import main
for argv in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(argv)
    print(json.dumps([code, said.getvalue()]))
"""


def blocks(language: str) -> list[Fence]:
    return [fence for fence in fences(PAGE) if fence.language == language]


def patched(text: str, diff: str) -> str:
    """Lines that begin with + put after the line that stands before them."""
    before, *added = diff.splitlines()
    assert all(line.startswith("+") for line in added)
    lines = text.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line == before[1:])
    return "\n".join([*lines[: at + 1], *(line[1:] for line in added), *lines[at + 1 :]]) + "\n"


def package_with_the_method(folder: Path) -> Path:
    """A copy of the package to which the method of the page was added; the folder it is in."""
    package = Path(leanmoe_pruning.__file__).parent
    ignored = shutil.ignore_patterns("reference", "texts", "__pycache__")
    methods = shutil.copytree(package, folder / package.name, ignore=ignored) / "methods"
    (file,) = blocks("python")
    (methods / "gate_power.py").write_text(file.text, encoding="utf-8")
    registry = methods / "registry.py"
    for diff in blocks("diff"):
        registry.write_text(patched(registry.read_text("utf-8"), diff.text), encoding="utf-8")
    return folder


def run_all(folder: Path, commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit code and output of each command line, by the package in ``folder``."""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
        check=True,
    )
    return [tuple(json.loads(line)) for line in found.stdout.splitlines()]


def test_the_file_of_a_method_is_short():
    (file,) = blocks("python")
    assert len(file.text.splitlines()) < MOST_LINES


def test_the_method_of_the_page_prunes(tmp_path):
    model = write_tiny_mixtral(tmp_path / "model", layers=2, hidden=64, ffn=64, dtype="float32")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20)

    def prune(method: str, out: str, *more: str) -> list[str]:
        asked = ["--keep", "3", "--data", str(text), "--window", "32", "-o", str(tmp_path / out)]
        return ["prune", str(model), "--method", method, *asked, *more]

    *done, (code, said) = run_all(
        package_with_the_method(tmp_path / "added"),
        [
            prune("reap", "reap"),
            prune("gate-power", "one", "--power", "1"),
            prune("gate-power", "two"),
            prune("reap", "refused", "--power", "3"),
        ],
    )
    assert [code for code, _ in done] == [0, 0, 0], done
    assert code == 2 and "--power is an option of --method gate-power; leave it out" in said
    reap, one, two = (
        json.loads((tmp_path / out / "leanmoe.json").read_text("utf-8"))
        for out in ("reap", "one", "two")
    )
    # By definition: with the power 1 it is REAP.
    assert one["kept"] == reap["kept"]
    assert all(len(experts) == 3 for experts in two["kept"].values())
    assert (one["settings"]["power"], two["settings"]["power"]) == (1.0, 2.0)
    assert "redundancy" in two["settings"] and two["method"] == "gate-power"
