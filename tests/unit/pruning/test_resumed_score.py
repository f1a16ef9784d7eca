"""``leanmoe score`` killed, interrupted, out of disk: it goes on, to the same bytes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leanmoe.cli import main
from leanmoe_pruning.scores import effects, passing
from tests.golden.naee_data import CALIBRATION, CHECKPOINT
from tests.tiny_families import write_tiny

SCORE = ["score", str(CHECKPOINT), "--data", CALIBRATION]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def partials(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "scores"
    assert main([*SCORE, "-o", str(out)]) == 0
    return contents(out)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Where the runs were written, and what each of them reported."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.killing", str(folder), *SCORE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


def test_killed_at_any_step_and_run_again_it_ends_at_the_same_bytes(killed, whole):
    folder, runs = killed
    *stopped, last = runs
    assert last["status"] == 0
    assert [run["again"] for run in stopped] == [0] * len(stopped)
    for run in runs:
        assert contents(folder / str(run["kill_at"])) == whole
    assert partials(folder) == []


def test_it_goes_on_from_the_last_finished_layer(killed):
    _, runs = killed
    resumed = [run["result"]["layers_resumed"] for run in runs[:-1]]
    assert resumed == sorted(resumed)
    assert set(resumed) == {0, 1, 2, 3}
    # A whole activations file and a whole layer file were on disk before it was put down.
    assert [run["left"] for run in runs[:-1] if run["result"]["layers_resumed"]].count([]) == 0


def test_passing_back_goes_on_too(tmp_path, monkeypatch, capsys):
    """Stopped in the middle layer on the way back, and run again."""
    command, real = [*SCORE, "--effects", "-o"], effects.write_tensors
    assert main([*command, str(tmp_path / "whole")]) == 0

    def write(path, tensors):
        if path.name == effects.effects_file(1):
            full_disk()
        return real(path, tensors)

    with monkeypatch.context():
        monkeypatch.setattr(effects, "write_tensors", write)
        assert main([*command, str(tmp_path / "scores")]) == 1
    monkeypatch.undo()
    [partial] = partials(tmp_path)
    assert (partial / "output" / effects.effects_file(2)).exists()
    capsys.readouterr()
    assert main([*command, str(tmp_path / "scores"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers_resumed"] == 3
    assert contents(tmp_path / "scores") == contents(tmp_path / "whole")
    assert partials(tmp_path) == []


@pytest.fixture
def fail_at_last_layer(monkeypatch):
    real = passing.write_layer

    def install(fail):
        def write(directory, scores):
            if scores.layer == 2:
                fail()
            return real(directory, scores)

        monkeypatch.setattr(passing, "write_layer", write)

    return install


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("failure", "code"), [(full_disk, 1), (ctrl_c, 130)])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_finished_is_kept(
    failure, code, force, fail_at_last_layer, tmp_path, whole, capsys, monkeypatch
):
    out = tmp_path / "scores"
    command = [*SCORE, "-o", str(out), *(["--force"] if force else [])]
    if force:
        assert main([*SCORE, "--window", "99", "-o", str(out)]) == 0
    with monkeypatch.context():
        fail_at_last_layer(failure)
        assert main(command) == code
    [partial] = partials(tmp_path)
    said = capsys.readouterr().err
    assert f"what is finished is kept in {partial}" in said
    assert "run the same command again" in said
    assert out.exists() == force
    monkeypatch.undo()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers_resumed"] == 2
    assert contents(out) == whole
    assert partials(tmp_path) == []


def stop_after_two_layers(out: Path, fail_at_last_layer, monkeypatch) -> Path:
    with monkeypatch.context():
        fail_at_last_layer(full_disk)
        assert main([*SCORE, "-o", str(out)]) == 1
    monkeypatch.undo()
    return partials(out.parent)[0]


def test_other_data_does_not_go_on_from_it(fail_at_last_layer, tmp_path, monkeypatch, caplog):
    partial = stop_after_two_layers(tmp_path / "scores", fail_at_last_layer, monkeypatch)
    other = [*SCORE[:-1], f"{CALIBRATION}:3", "-o", str(tmp_path / "scores")]
    assert main([*other, "-v"]) == 0
    assert str(partial) in caplog.text
    assert partials(tmp_path) == [partial]


def test_a_changed_file_is_not_gone_on_from(
    fail_at_last_layer, tmp_path, monkeypatch, whole, caplog, capsys
):
    partial = stop_after_two_layers(tmp_path / "scores", fail_at_last_layer, monkeypatch)
    layer = partial / "output" / "layer-001.safetensors"
    layer.write_bytes(layer.read_bytes()[:-1] + b"x")
    assert main([*SCORE, "-o", str(tmp_path / "scores"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers_resumed"] == 0
    assert "layer-001.safetensors was changed" in caplog.text
    assert contents(tmp_path / "scores") == whole


def test_two_runs_at_once_are_refused(fail_at_last_layer, tmp_path, monkeypatch, capsys):
    partial = stop_after_two_layers(tmp_path / "scores", fail_at_last_layer, monkeypatch)
    handle = os.open(partial, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert main([*SCORE, "-o", str(tmp_path / "scores")]) == 2
    os.close(handle)
    assert "another run is writing" in capsys.readouterr().err
    assert main([*SCORE, "-o", str(tmp_path / "scores")]) == 0


def test_an_interrupt_before_the_first_layer_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(passing, "measure_chunk", lambda *_, **__: ctrl_c())
    assert main([*SCORE, "-o", str(tmp_path / "scores")]) == 130
    assert "nothing half-written is left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_dense_layers_are_not_counted_among_those_taken_over(
    fail_at_last_layer, tmp_path, monkeypatch, capsys
):
    """Of three layers the first is dense: two are finished, and one of them has scores."""
    model = write_tiny(tmp_path / "model", "deepseek")
    command = ["score", str(model), "--data", "builtin:gen:2", "--window", "16", "--json"]
    command += ["-o", str(tmp_path / "out")]
    fail_at_last_layer(full_disk)
    assert main(command) == 1
    monkeypatch.undo()
    capsys.readouterr()
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layers"], found["layers_resumed"]) == (2, 1)
