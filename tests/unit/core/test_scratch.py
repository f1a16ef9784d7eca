"""What a killed process left beside an output goes with the next run; a living one's stays."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from leanmoe.errors import InputError
from leanmoe.files import resuming
from leanmoe.files.output import atomic_directory, atomic_write_text, check_output
from leanmoe.files.scratch import (
    ASIDE,
    PART,
    PARTIAL,
    SPOOL,
    TEXT,
    discard,
    remove_abandoned,
    scratch_folder,
)

_KILLED = """
import os, signal, sys
from pathlib import Path
from leanmoe.files.output import atomic_directory, atomic_write_text
from leanmoe.files import scratch
target, kind = Path(sys.argv[1]), sys.argv[2]
if kind == "new":
    os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
    atomic_write_text(target, "half")
elif kind == "old":
    target.mkdir()
    (target / "config.json").write_text("before")
    real = Path.replace
    def replace(self, to):
        if self.name.startswith(f".{target.name}.part-"):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, to)
    Path.replace = replace
    with atomic_directory(target, force=True) as folder:
        (folder / "config.json").write_text("after")
elif kind == "part":
    with atomic_directory(target) as folder:
        (folder / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
elif kind == "partial" and sys.argv[3] in ("none", "half", "some"):
    from leanmoe.files.resuming import kept_folder
    with kept_folder(target, "0123456789abcdef") as folder:
        if sys.argv[3] != "none":
            (folder / "first.part").write_text("half")
        if sys.argv[3] == "some":
            (folder / "first.part").rename(folder / "first")
        os.kill(os.getpid(), signal.SIGKILL)
elif kind == "partial":
    from leanmoe.files import resuming
    die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    with resuming.resumable_directory(target, "0123456789ab") as unfinished:
        (unfinished.output / "half").write_text("half")
        (unfinished.folder / "scratch").write_text("large")
        if sys.argv[3] == "begun":
            die()
        unfinished.commit(1, {})
        if sys.argv[3] == "done":
            resuming.discard = die
        elif sys.argv[3] == "cleaning":
            scratch.remove_folder = die
        else:
            die()
else:
    folder = scratch.ScratchFolder.beside(target, kind)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(target: Path, kind: str, when: str = "") -> None:
    """A process that dies with something of that kind beside ``target``."""
    done = subprocess.run([sys.executable, "-c", _KILLED, str(target), kind, when])
    assert done.returncode == -signal.SIGKILL
    assert any(one.name.startswith(".out.") for one in target.parent.iterdir())


@pytest.mark.parametrize("kind", [PART, SPOOL, TEXT])
def test_leftovers_of_the_dead_are_removed_at_the_start(tmp_path, kind) -> None:
    killed(tmp_path / "out", kind)
    check_output(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("when", "left"),
    [
        ("begun", []),
        ("done", ["out"]),
        ("cleaning", ["out"]),
        ("on", [".out.partial-0123456789ab"]),
        # Of a search, which has no record: each file counts by itself.
        ("none", []),
        ("half", []),
        ("some", [".out.partial-0123456789abcdef"]),
    ],
)
def test_work_to_go_on_with_stays_only_where_there_is_some(tmp_path, when, left) -> None:
    killed(tmp_path / "out", PARTIAL, when)
    remove_abandoned(tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == left


def test_an_interrupt_of_the_cleaning_waits_for_it(tmp_path, monkeypatch) -> None:
    (tmp_path / ".out.partial-0123456789ab").mkdir()
    (tmp_path / ".out.partial-0123456789ab" / "kept").touch()
    real, asked = Path.rename, []

    def rename(self: Path, to: Path) -> Path:
        asked.append(to)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        discard(tmp_path / ".out.partial-0123456789ab", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_of_the_last_step_says_what_is_kept(tmp_path, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(resuming, "put_in_place", interrupted)
    work = resuming.resumable_directory(tmp_path / "out", "0123456789ab")
    with pytest.raises(KeyboardInterrupt, match="what is finished is kept in"), work as unfinished:
        unfinished.commit(1, {})
    assert [one.name for one in tmp_path.iterdir()] == [".out.partial-0123456789ab"]


def test_an_output_that_was_moved_away_is_put_back(tmp_path) -> None:
    target = tmp_path / "out"
    killed(target, ASIDE)
    assert not target.exists()
    with pytest.raises(InputError, match="exists already"):
        check_output(target)
    assert [one.name for one in tmp_path.iterdir()] == ["out"]
    assert (target / "config.json").read_text() == "before"


@pytest.mark.parametrize("kind", [PART, SPOOL, ASIDE])
def test_what_a_living_process_writes_stays(tmp_path, kind) -> None:
    with scratch_folder(tmp_path / "out", kind) as folder:
        (folder / "half").write_text("half")
        code = "import sys; from pathlib import Path; from leanmoe.files.output import check_output"
        run = [sys.executable, "-c", f"{code}; check_output(Path(sys.argv[1]))"]
        subprocess.run([*run, str(tmp_path / "out")], check=True)
        check_output(tmp_path / "out")
        assert (folder / "half").read_text() == "half"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [".out.partial-0123abcd", ".out.part-mine", ".other.part-0123abcd", "out.part-0123abcd"],
)
def test_nothing_else_is_taken_for_a_leftover(tmp_path, name) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.part-89abcdef").symlink_to(tmp_path / "elsewhere")
    check_output(tmp_path / "out")
    left = {one.name for one in tmp_path.iterdir()}
    assert left == {name, "elsewhere", ".out.part-89abcdef"}


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [(0o077, 0o700, 0o600), (0o022, 0o755, 0o644)]
)
def test_outputs_are_what_the_umask_says(tmp_path, umask, folder, file) -> None:
    before = os.umask(umask)
    try:
        with atomic_directory(tmp_path / "out") as directory:
            atomic_write_text(directory / "text.json", "{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == folder
    assert stat.S_IMODE((tmp_path / "out" / "text.json").stat().st_mode) == file


@pytest.mark.parametrize("place", [".", "..", "x/..", "../here"])
def test_the_folder_that_a_command_runs_in_is_no_output(tmp_path, monkeypatch, place) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (Path("x")).mkdir()
    with pytest.raises(InputError, match="the folder this command runs in, or holds it"):
        check_output(Path(place), force=True)
