"""A full disk, Ctrl-C and SIGTERM in the middle of a cut leave the old output and no new one."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from leanmoe.cli import main
from leanmoe_pruning.cutting import cutter as cut
from tests.golden.naee_data import CALIBRATION


@pytest.fixture
def prune(sharded, tmp_path):
    def run(*more: str) -> int:
        arguments = ["prune", str(sharded), "--method", "naee", "--keep", "4"]
        out = str(tmp_path / "out")
        return main([*arguments, "--data", CALIBRATION, "-o", out, *more])

    return run


@pytest.fixture
def fail_at_second_shard(monkeypatch):
    real = cut.write_shard

    def install(fail: Callable[[], None]) -> None:
        calls = []

        def write(path, plan, tensors):
            calls.append(path)
            if len(calls) == 2:
                fail()
            return real(path, plan, tensors)

        monkeypatch.setattr(cut, "write_shard", write)

    return install


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def ctrl_c() -> None:
    raise KeyboardInterrupt


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


FAILURES = [(full_disk, 1), (ctrl_c, 130), (sigterm, 130)]


@pytest.mark.parametrize(("failure", "code"), FAILURES)
def test_new_output_is_absent(prune, fail_at_second_shard, tmp_path, failure, code, capsys):
    fail_at_second_shard(failure)
    # Nor a dump without its checkpoint, which would be in the way of the next try.
    assert prune("--dump", str(tmp_path / "dump")) == code
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(("failure", "code"), FAILURES)
def test_old_output_stays(prune, fail_at_second_shard, tmp_path, failure, code):
    assert prune() == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    fail_at_second_shard(failure)
    assert prune("--force") == code
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert after == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}


def test_a_real_refused_write(prune, tmp_path, capsys):
    """The kernel refuses the write: files may not grow beyond 50 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        code = prune()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    assert "could not write" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


COMMANDS = {
    "random": ["prune", "MODEL", "--method", "random", "--keep", "4", "-o", "OUT"],
    "dump": [
        *["prune", "MODEL", "--method", "naee", "--keep", "4", "--data", CALIBRATION],
        *["-o", "OUT", "--dump", "DUMP"],
    ],
    "plan": ["prune", "MODEL", "--method", "random", "--keep", "4", "--plan-only", "-o", "OUT"],
    "spool": [
        *["prune", "MODEL", "--method", "sparsegpt", "--sparsity", "0.5", "--data", CALIBRATION],
        *["-o", "OUT"],
    ],
    "align": [
        *["prune", "MODEL", "--method", "m-smoe", "--keep", "4", "--align"],
        *["--data", CALIBRATION, "-o", "OUT"],
    ],
    "score": ["score", "MODEL", "--data", CALIBRATION, "-o", "OUT"],
    "distill": ["distill", "MODEL", "--data", CALIBRATION, "--steps", "1", "-o", "OUT"],
    "kept": [
        *["distill", "MODEL", "--data", CALIBRATION, "--steps", "2", "--checkpoint-every", "1"],
        *["-o", "OUT"],
    ],
    "curve": ["curve", "MODEL", "--data", CALIBRATION, "--levels", "3"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_that_nothing_more_can_be_written(sharded, tmp_path, capsys, name):
    """The kernel lets no file grow beyond a few bytes; nothing is left but what was there."""
    places = {"MODEL": str(sharded), "OUT": str(tmp_path / "out"), "DUMP": str(tmp_path / "dump")}
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        code = main([places.get(one, one) for one in COMMANDS[name]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert code == 1 and "File too large" in said and "fault of LeanMoE" not in said
    assert len(said.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before


def test_no_kill_leaves_a_checkpoint_without_its_dump(sharded, tmp_path):
    """At each rename; the dump's is before the checkpoint's, and the next run makes both good."""
    work = tmp_path / "work"
    work.mkdir()
    command = ["prune", str(sharded), "--method", "random", "--keep", "4", "--force"]
    command += ["--dump", "@-dump", "--data", CALIBRATION]
    told = subprocess.run(
        [sys.executable, "-m", "tests.killing", "--renames", str(work), *command],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    *killed, last = [json.loads(line) for line in told.splitlines()]
    place = str(killed[-1]["kill_at"])
    assert killed[-1]["there"] == [f"{place}-dump"]
    assert [one["there"] for one in killed[:-1]] == [[]] * (len(killed) - 1)
    assert (last["status"], [one["again"] for one in killed]) == (0, [0] * len(killed))
    whole = {str(one["kill_at"]) for one in (*killed, last)}
    found = {path.name for path in work.iterdir() if path.is_dir()}
    assert found == {f"{one}{end}" for one in whole for end in ("", "-dump")}


@pytest.mark.parametrize("force", [False, True])
def test_a_dump_goes_where_its_checkpoint_cannot_be_put(prune, tmp_path, monkeypatch, force):
    """What stood where the dump was put is there again."""
    dump, out = tmp_path / "dump", tmp_path / "out"
    if force:
        assert prune("--dump", str(dump)) == 0
        before = (dump / "results.json").stat().st_ino
    real = Path.replace

    def replace(self, target):
        if target == out and ".part-" in self.name:
            assert dump.exists()
            full_disk()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert prune("--dump", str(dump), *(["--force"] if force else [])) == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        *("model", *(("dump", "out") if force else ()))
    }
    assert not force or (dump / "results.json").stat().st_ino == before


def test_existing_output_is_refused_before_any_work(prune, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    monkeypatch.setattr("leanmoe_pruning.checkpoints.opening.file_digest", None)
    assert prune() == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "out" / "precious").read_text() == "mine"
