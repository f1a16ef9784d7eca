"""A model is checked and hashed once per command, whoever needs it afterwards."""

from __future__ import annotations

from collections import Counter

import pytest

from leanmoe.cli import main
from leanmoe.files.digest import file_digest
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints import opening
from tests.tiny import write_tiny_mixtral

DATA = ["--data", "builtin:gen:2", "--window", "64"]
SOURCE = ["config.json", "model.safetensors"]


@pytest.fixture
def lean(tmp_path):
    """A source with a manifest."""
    model, out = tmp_path / "model", tmp_path / "lean"
    write_tiny_mixtral(model, layers=2, hidden=64, ffn=64, dtype="float32")
    assert main(["prune", str(model), "--method", "random", "--keep", "6", "-o", str(out)]) == 0
    return out


@pytest.fixture
def counted(lean, monkeypatch):
    """How often each file of the source was hashed, and the whole of it checked."""
    hashed, checked = Counter(), Counter()

    def count_hash(path):
        hashed[path.name] += path.parent == lean
        return file_digest(path)

    def count_check(checkpoint, reader):
        checked[checkpoint.path] += 1
        check(checkpoint, reader)

    check = opening.check_complete
    monkeypatch.setattr("leanmoe.manifest.file_digest", count_hash)
    monkeypatch.setattr(opening, "file_digest", count_hash)
    monkeypatch.setattr(opening, "check_complete", count_check)
    return hashed, checked


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "--method", "naee", "--keep", "3", *DATA, "--dump", "{tmp}/dump", "-o", "{out}"],
        ["prune", "--method", "magnitude", "--sparsity", "0.5", "-o", "{out}"],
        ["prune", "--method", "m-smoe", "--keep", "3", "--align", *DATA, "-o", "{out}"],
        ["score", *DATA, "-o", "{out}"],
        ["distill", *DATA, "--steps", "1", "-o", "{out}"],
        ["eval", *DATA],
        ["curve", "--data", "builtin:gen:4", "--window", "64", "--levels", "3"],
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_a_source_with_a_manifest_is_hashed_and_checked_once(arguments, lean, counted, tmp_path):
    name, *more = arguments
    places = {"tmp": tmp_path, "out": tmp_path / "out"}
    assert main([name, str(lean), *(one.format(**places) for one in more)]) == 0
    hashed, checked = counted
    assert {file: hashed[file] for file in SOURCE} == dict.fromkeys(SOURCE, 1)
    assert checked == {lean: 1}


def test_what_was_hashed_is_what_the_manifest_records(lean, tmp_path):
    out = tmp_path / "out"
    assert main(["prune", str(lean), "--method", "random", "--keep", "3", "-o", str(out)]) == 0
    expected = {file: file_digest(lean / file) for file in SOURCE}
    assert read_manifest(out).source.files == expected


def test_headers_alone_are_read_by_plan(lean, counted):
    assert main(["plan", str(lean), "--tflops", "1"]) == 0
    hashed, checked = counted
    assert not hashed and checked == {lean: 1}
