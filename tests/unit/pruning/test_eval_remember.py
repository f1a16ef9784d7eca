"""``leanmoe eval --remember``: the model compared with is run once for what was asked."""

from __future__ import annotations

import json
import os
import resource

import pytest

from leanmoe.cli import main
from leanmoe.files.scratch import scratch_file
from leanmoe_pruning.commands import evaluate
from tests.tiny import write_tiny_mixtral

DATA = "builtin:gen:1,builtin:c:1"
TASKS = "builtin:facts:10,builtin:sums:2"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [
        write_tiny_mixtral(folder / str(seed), layers=2, dtype="float32", seed=seed)
        for seed in range(3)
    ]


def run(capsys, model, other, *options: str) -> dict:
    capsys.readouterr()
    assert main(["eval", str(model), "--against", str(other), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {name: found[name] for name in ("domains", "tasks") if name in found}


@pytest.fixture
def passed(monkeypatch):
    """Names of the models whose layers were run."""
    names = []
    stream = evaluate.DecoderStream.layers

    def layers(self):
        names.append(self.checkpoint.path.name)
        return stream(self)

    monkeypatch.setattr(evaluate.DecoderStream, "layers", layers)
    return names


def test_figures_are_those_without_it_and_the_other_runs_once(models, tmp_path, capsys, passed):
    first, second, other = models
    asked = ["--data", DATA, "--tasks", TASKS]
    memory = ["--remember", str(tmp_path / "memory")]
    plain = [run(capsys, one, other, *asked) for one in (first, second)]
    passed.clear()
    kept = [run(capsys, one, other, *asked, *memory) for one in (first, second)]
    assert kept == plain
    assert passed.count(other.name) * 2 == sum(name != other.name for name in passed)


def test_other_weights_texts_and_tasks_are_asked_anew(models, tmp_path, capsys):
    first, second, other = models
    memory = ["--remember", str(tmp_path / "memory")]
    for against, asked in (
        (other, ["--data", "builtin:gen:1", "--tasks", "builtin:facts:10"]),
        (second, ["--data", "builtin:gen:1", "--tasks", "builtin:facts:10"]),
        (other, ["--data", "builtin:c:1"]),
        (other, ["--tasks", "builtin:facts:11"]),
        (other, ["--data", "builtin:gen:1", "--compute", "bfloat16"]),
    ):
        assert run(capsys, first, against, *asked, *memory) == run(capsys, first, against, *asked)


def test_it_needs_a_model_to_remember_and_a_folder(models, tmp_path, capsys):
    first, _, other = models
    asked = [str(first), "--data", "builtin:gen:1", "--remember"]
    assert main(["eval", *asked, str(tmp_path)]) == 2
    assert "give --against too" in capsys.readouterr().err
    (tmp_path / "file").write_text("here")
    assert main(["eval", *asked, str(tmp_path / "file"), "--against", str(other)]) == 2
    assert "expected a folder" in capsys.readouterr().err


def test_what_cannot_be_kept_is_said_and_the_figures_come(models, tmp_path, capsys, caplog):
    """The kernel lets no file grow: nothing is left, and nothing that was computed is lost."""
    first, _, other = models
    memory, asked = tmp_path / "memory", ["--data", DATA, "--tasks", "builtin:facts:10"]
    plain = run(capsys, first, other, *asked)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        code = main(
            ["eval", str(first), "--against", str(other), *asked, "--remember", str(memory)]
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 0
    assert caplog.text.count("File too large; it will be made anew") == 2
    assert list(memory.iterdir()) == []
    assert run(capsys, first, other, *asked, "--remember", str(memory)) == plain


def test_what_a_killed_run_left_of_another_question_goes(models, tmp_path, capsys):
    """Of a living one it stays."""
    first, _, other = models
    names = [f"hidden-{digit * 32}.safetensors" for digit in "ab"]
    left = [scratch_file(tmp_path / name, 0o666) for name in names]
    os.close(left[0][1])
    (tmp_path / ".hidden-note.new-0123abcd").touch()
    run(capsys, first, other, "--tasks", "builtin:facts:2", "--remember", str(tmp_path))
    hidden = {path.name for path in tmp_path.glob(".*")}
    assert hidden == {".hidden-note.new-0123abcd", left[1][0].name}
    os.close(left[1][1])


def test_what_was_damaged_is_made_anew(models, tmp_path, capsys, caplog):
    first, _, other = models
    memory, asked = tmp_path / "memory", ["--data", DATA, "--tasks", "builtin:facts:10"]
    asked += ["--remember", str(memory)]
    whole = run(capsys, first, other, *asked)
    kept = {path.name: path.read_bytes() for path in memory.iterdir()}
    for path in memory.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    assert run(capsys, first, other, *asked) == whole
    assert caplog.text.count("cannot be read") == 2
    assert {path.name: path.read_bytes() for path in memory.iterdir()} == kept
