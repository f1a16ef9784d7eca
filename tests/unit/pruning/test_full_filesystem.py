"""A filesystem that is really full, under every command that writes a model or scores."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from leanmoe.cli import main
from tests.tiny import write_tiny_mixtral

TEXT = ["--data", "builtin:gen:2", "--window", "64"]
ZEROED = ["--method", "magnitude", "--pattern", "16:32"]


@pytest.fixture
def mounted(tmp_path) -> Iterator[Path]:
    """A tmpfs that holds 150 kB: less than any output."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a full disk needs root and the right to mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A model of 1.1 MB, and it packed."""
    folder = tmp_path_factory.mktemp("models")
    whole = write_tiny_mixtral(folder / "whole", layers=2, hidden=64, ffn=64, dtype="float32")
    assert main(["prune", str(whole), *ZEROED, "--compress", "-o", str(folder / "packed")]) == 0
    return folder


def refused(arguments: list[str], mounted: Path, capsys) -> str:
    """The one sentence."""
    capsys.readouterr()
    assert main([*arguments, "-o", str(mounted / "out")]) == 1
    *notes, said = capsys.readouterr().err.strip().splitlines()
    assert not any("fault of LeanMoE" in line for line in (*notes, said))
    begins = f"leanmoe {arguments[0]}: could not write {mounted}/"
    assert said.startswith(begins) and ": No space left on device" in said
    return said


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "whole", "--method", "random", "--keep", "6"],
        ["prune", "whole", *ZEROED],
        ["prune", "whole", *ZEROED, "--compress"],
        ["unpack", "packed"],
        ["pack", "unpacked"],
        ["distill", "whole", "--steps", "1", *TEXT],
        ["distill", "whole", "--steps", "2", "--checkpoint-every", "1", *TEXT],
    ],
    ids=" ".join,
)
def test_a_model_is_written_whole_or_not_at_all(arguments, models, mounted, tmp_path, capsys):
    name, model, *more = arguments
    place = models / model
    if model == "unpacked":
        place = tmp_path / model
        assert main(["unpack", str(models / "packed"), "-o", str(place)]) == 0
    refused([name, str(place), *more], mounted, capsys)
    assert list(mounted.iterdir()) == []


def test_a_model_that_stood_there_stays(models, mounted, tmp_path, capsys):
    small = write_tiny_mixtral(tmp_path / "small-model", layers=1, hidden=32, ffn=32)
    cut = ["prune", str(small), "--method", "random", "--keep", "2", "-o", str(mounted / "out")]
    assert main(cut) == 0
    before = {path.name: path.read_bytes() for path in (mounted / "out").iterdir()}
    more = ["--method", "random", "--keep", "6", "--force"]
    refused(["prune", str(models / "whole"), *more], mounted, capsys)
    assert [path.name for path in mounted.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in (mounted / "out").iterdir()} == before


def test_scores_go_on_where_there_is_room_again(models, mounted, capsys):
    score = ["score", str(models / "whole"), *TEXT]
    said = refused(score, mounted, capsys)
    [kept] = mounted.iterdir()
    assert f"what is finished is kept in {kept}: run the same command again" in said
    subprocess.run(["mount", "-o", "remount,size=4m", str(mounted)], check=True)
    assert main([*score, "-o", str(mounted / "out")]) == 0
    assert [path.name for path in mounted.iterdir()] == ["out"]
