"""An output never costs anything that was not ours to replace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leanmoe.checkpoint import open_checkpoint
from leanmoe.errors import CheckpointError, InputError, LeanMoEError, OutputError
from leanmoe.files.digest import parse_json
from leanmoe.files.output import atomic_directory, check_output


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("place", [".", "..", "inside", "../../models/model", "inside/deeper"])
def test_an_output_on_around_or_in_an_input_is_refused_even_by_force(model, place) -> None:
    with pytest.raises(InputError, match="one folder or lie in one another"):
        check_output(model / place, force=True, inputs=[model])
    assert (model / "config.json").exists()


def test_an_input_under_another_name_is_seen_through(model, tmp_path) -> None:
    (tmp_path / "link").symlink_to(model.parent)
    with pytest.raises(InputError, match="one folder"):
        check_output(tmp_path / "link" / "model", force=True, inputs=[model])


@pytest.mark.parametrize("holds", ["thesis.txt", "config.json/x", "thesis/config.json"])
def test_force_replaces_no_folder_of_somebody_else(tmp_path, holds: str) -> None:
    target = tmp_path / "out"
    (target / holds).parent.mkdir(parents=True)
    (target / holds).write_text("mine")
    with pytest.raises(InputError, match="is not a folder that LeanMoE wrote"):
        check_output(target, force=True)
    assert (target / holds).read_text() == "mine"


def test_force_replaces_no_file(tmp_path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is not a folder that LeanMoE wrote"):
        check_output(tmp_path / "out", force=True)


def test_what_comes_to_lie_there_meanwhile_stays(tmp_path) -> None:
    target = tmp_path / "out"
    with pytest.raises(InputError, match="exists already"), atomic_directory(target):
        target.mkdir()
        (target / "precious").write_text("mine")
    assert (target / "precious").read_text() == "mine"
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file/out", "is a file"),
        ("link", "is a symbolic link"),
        ("x" * 300, "could not write"),
    ],
)
def test_places_where_nothing_can_be_made(tmp_path, place: str, words: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LeanMoEError, match=words), atomic_directory(tmp_path / place):
        raise AssertionError("never entered")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "link"]


def test_a_mount_point_is_refused_before_the_work() -> None:
    with pytest.raises(InputError, match="is a mount point"):
        check_output(Path("/dev/shm") if os.path.ismount("/dev/shm") else Path("/proc"))


def test_a_place_that_takes_no_folder_is_an_output_error() -> None:
    with pytest.raises(OutputError, match="could not write"), atomic_directory(Path("/proc/out")):
        raise AssertionError("never entered")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", b"\xff", ""])
def test_json_from_outside_fails_in_one_way(text) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_numbers_that_are_too_long_are_told_by_their_length(tmp_path) -> None:
    """Python's own words speak of a limit of its own, and a float of such a size is none."""
    for digits in (400, 5_000):
        with pytest.raises(ValueError, match=f"an integer of {digits} digits is too large"):
            parse_json(f'{{"a": -{"9" * digits}}}')
    with pytest.raises(ValueError, match=r"^.{1,40} is too large a number$"):
        parse_json("9" * 5_000 + ".0")
    (tmp_path / "config.json").write_text(f'{{"hidden_size": {"9" * 5_000}}}')
    with pytest.raises(
        CheckpointError, match=r"cannot be read as JSON \(an integer of 5000 digits"
    ):
        open_checkpoint(tmp_path)
    assert parse_json("9" * 300) == int("9" * 300)


def test_a_result_that_cannot_be_printed_is_one_sentence() -> None:
    code = "from leanmoe.cli import main; raise SystemExit(main(['known']))"
    setup = (
        "import leanmoe.cli as cli, sys, types\n"
        "from leanmoe.command import Command\n"
        "module = types.ModuleType('known'); sys.modules['known'] = module\n"
        "module.COMMAND = Command('known', 'h', 'e', lambda p: None, lambda a: {'x': 1}, str)\n"
        "cli.COMMANDS['known'] = ('known', 'h')\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", setup + code], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.startswith("leanmoe known: the result could not be printed: No space left")


def test_what_nobody_foresaw_is_one_line_that_says_how_to_report_it(monkeypatch, capsys) -> None:
    from leanmoe import command

    def run(args):
        return json.loads("{}")["absent"]

    broken = command.Command("broken", "h", "e", lambda parser: None, run)
    assert command.run_command(broken, []) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "unexpected KeyError" in said and "--verbose" in said
    with pytest.raises(KeyError):
        command.run_command(broken, ["--verbose"])


def test_what_stopped_an_earlier_command_does_not_stop_the_next(capsys) -> None:
    from leanmoe.command import Command, run_command
    from leanmoe.process.interrupts import stop_on_signals

    def stopped(args):
        with stop_on_signals():
            os.kill(os.getpid(), signal.SIGINT)

    def broken(args):
        raise RuntimeError("no such luck")

    codes = [
        run_command(Command("some", "h", "e", lambda parser: None, run), [])
        for run in (stopped, broken)
    ]
    assert codes == [130, 1]
    assert "unexpected RuntimeError: no such luck" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_any_work() -> None:
    """As a user who may not write to the root of the file system, in a process of its own."""
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            check_output(Path("/leanmoe-out/deeper"))
        except OutputError as error:
            os._exit(0 if "/ cannot be written to" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("check", [check_output, open_checkpoint])
def test_names_that_are_no_text_are_refused_in_a_sentence(check, tmp_path) -> None:
    path = tmp_path / os.fsdecode(b"model-\xff")
    with pytest.raises(InputError, match="is not UTF-8"):
        check(path)


def test_a_name_that_is_too_long_is_told_once(tmp_path) -> None:
    with pytest.raises(OutputError) as refused:
        check_output(tmp_path / ("x" * 300))
    assert str(refused.value).count("xxx" * 100) == 1
