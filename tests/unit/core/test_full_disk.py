"""A place that takes nothing more ends a command in one sentence, wherever it is met."""

from __future__ import annotations

import errno
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from leanmoe import command
from leanmoe.cli import main
from leanmoe.errors import InputError
from leanmoe_pruning.cutting.plan_file import check_plan_target
from tests.tiny import write_tiny_mixtral


def leanmoe(*arguments: str, out: str = "/dev/null", err: int | str = subprocess.PIPE):
    with Path(out).open("w") as stream:
        if isinstance(err, str):
            with Path(err).open("w") as errors:
                return _run(arguments, stream, errors)
        return _run(arguments, stream, err)


def _run(arguments, out, err):
    run = [sys.executable, "-m", "leanmoe.cli", *arguments]
    return subprocess.run(run, stdout=out, stderr=err, text=True)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["key", "--help"]])
def test_texts_that_cannot_be_printed(arguments) -> None:
    done = leanmoe(*arguments, out="/dev/full")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("leanmoe: it could not be printed: No space left on device")


@pytest.fixture
def model(tmp_path):
    return write_tiny_mixtral(tmp_path / "model", layers=1)


@pytest.mark.parametrize(
    "arguments", [["plan", "--tflops", "1"], ["prune", "--method", "random", "--keep", "6"]]
)
def test_a_result_that_cannot_be_printed(arguments, model, tmp_path) -> None:
    name, *more = arguments
    out = ["-o", str(tmp_path / "out")] if name == "prune" else []
    done = leanmoe(name, str(model), *more, *out, out="/dev/full")
    said = f"leanmoe {name}: the result could not be printed: No space left on device"
    assert (done.returncode, done.stderr.strip()) == (1, said)
    # What was made before is whole.
    assert not out or main(["plan", out[1], "--tflops", "1"]) == 0


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_are_closed_take_nothing(closed, model, tmp_path) -> None:
    """Nor do they become the number of a shard that is being written."""
    out = str(tmp_path / "out")
    words = ["-m", "leanmoe.cli", "prune", str(model), "--method", "random", "--keep", "6"]
    run = shlex.join([sys.executable, *words, "-o", out])
    done = subprocess.run(["bash", "-c", f"{run} {closed}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert main(["prune", out, "--method", "random", "--keep", "3", "-o", f"{out}-2"]) == 0


def test_an_error_that_cannot_be_printed_keeps_its_exit_code() -> None:
    assert leanmoe("plan", "/absent", err="/dev/full").returncode == 2


def test_a_file_that_cannot_be_written_is_no_fault_of_ours(capsys) -> None:
    def run(args):
        raise OSError(errno.ENOSPC, "No space left on device", "/models/lean/leanmoe.json")

    full = command.Command("curve", "h", "e", lambda parser: None, run)
    assert command.run_command(full, []) == 1
    said = capsys.readouterr().err
    assert said.startswith("leanmoe curve: could not use /models/lean/leanmoe.json: No space left")
    assert said.count("\n") == 1 and "fault of LeanMoE" not in said


@pytest.mark.parametrize("force", [False, True])
def test_a_device_is_no_place_for_a_plan(force) -> None:
    with pytest.raises(InputError, match="/dev/full is no plain file"):
        check_plan_target(Path("/dev/full"), force, [])
    assert Path("/dev/full").is_char_device()
