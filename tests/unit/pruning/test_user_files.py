"""Files that users write: byte order marks before the text, commas and colons in the names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from leanmoe_pruning.data import load_data
from leanmoe_pruning.data.spec import parse_spec, written_spec
from leanmoe_pruning.data.tasks.loading import load_task, load_tasks
from leanmoe_pruning.data.tasks.open_prompts import load_prompts
from leanmoe_pruning.report.evaluations import Evaluation, read_evaluation
from leanmoe_pruning.report.model_card import inherited
from leanmoe_pruning.scores.bundle import ScoreBundle
from tests.golden.naee_data import CALIBRATION, CHECKPOINT

CHOICE = json.dumps({"prompt": "one two", "choices": [" go", " see"], "answer": 1})
PROMPT = json.dumps({"prompt": "Say why", "group": "en"})
JUDGED = json.dumps({"model": "m", "weights_digest": "sha256:x", "skip_level": 0})


def marked(path: Path, text: str) -> Path:
    """As Windows' editors write it."""
    path.write_text(text, encoding="utf-8-sig")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "abcdefgh" * 4), ("a.jsonl", json.dumps({"text": "abcdefgh" * 4}) + "\n")],
)
def test_a_byte_order_mark_is_no_text(name, text, with_tokenizer, tmp_path):
    plain = tmp_path / f"plain-{name}"
    plain.write_text(text)
    found, expected = (
        load_data(str(path), with_tokenizer, "calibration", window=8).ids[0]
        for path in (marked(tmp_path / name, text), plain)
    )
    assert torch.equal(found, expected)


def test_other_files_of_users_may_begin_with_one(model, tmp_path):
    assert load_task(str(marked(tmp_path / "task.jsonl", CHOICE))).items[0].answer == 1
    assert load_prompts(str(marked(tmp_path / "prompts.jsonl", PROMPT)))[0].group == "en"
    found = read_evaluation(marked(tmp_path / "eval.json", JUDGED), "sha256:x")
    assert isinstance(found, Evaluation)
    assert inherited("\ufeff---\nlicense: mit\n---\n") == {"license": "mit"}
    assert inherited("---\ndate: 2026-13-45\n---\n") == {}
    plan = marked(tmp_path / "plan.json", json.dumps({"layers": {"0": {"keep": [0, 1, 2]}}}))
    out = tmp_path / "out"
    assert main(["prune", str(model), "--plan", str(plan), "-o", str(out)]) == 0
    assert read_manifest(out).kept[0] == [0, 1, 2]


@pytest.fixture
def odd(tmp_path, monkeypatch) -> Path:
    """A folder, and the present one, of files whose names hold what parts a list."""
    folder = tmp_path / "run:3, the last"
    folder.mkdir()
    for name in ("a,b.txt", "c:d.jsonl", "x,y:z.safetensors", "plain.txt", "p,q.jsonl", "e:4"):
        (folder / name).touch()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("a,b.txt", [("a,b.txt", None)]),
        ("a,b.txt:4,plain.txt:2", [("a,b.txt", 4), ("plain.txt", 2)]),
        ("plain.txt:2,a,b.txt:4", [("plain.txt", 2), ("a,b.txt", 4)]),
        ("builtin:gen, c:d.jsonl:3 ", [("gen", None), ("c:d.jsonl", 3)]),
        ("x,y:z.safetensors:ids:3", [("x,y:z.safetensors:ids", 3)]),
        ("self:p,q.jsonl:4", [("self:p,q.jsonl", 4)]),
        # As it stands, before as a name and a count.
        ("e:4", [("e:4", None)]),
        ("e:4:2", [("e:4", 2)]),
        # No such files.
        ("n,o.txt:2", [("n", None), ("o.txt", 2)]),
        # Written as it is recorded, whether there is a file or not.
        (r"n\,o\:p.txt:2", [("n,o:p.txt", 2)]),
    ],
)
def test_a_file_that_exists_by_its_whole_name_is_that_file(spec, found, odd):
    assert [(item.name, item.count) for item in parse_spec(written_spec(spec))] == found


def test_a_recorded_list_is_read_alike_where_the_files_are_gone(odd):
    recorded = written_spec(f"{odd}/a,b.txt:4,{odd}/c:d.jsonl,e:4")
    before = parse_spec(recorded)
    for path in odd.iterdir():
        path.unlink()
    assert written_spec(recorded) == recorded and parse_spec(recorded) == before
    assert [item.path for item in before] == [odd / "a,b.txt", odd / "c:d.jsonl", Path("e:4")]


def test_tasks_and_prompts_take_such_names_too(odd):
    (odd / "a,b.jsonl").write_text(f"{CHOICE}\n{CHOICE}\n")
    (odd / "c:d.jsonl").write_text(f"{PROMPT}\n{PROMPT}\n")
    (two, some) = load_tasks("a,b.jsonl:1,builtin:facts:3")
    assert (two.name, len(two), some.name, len(some)) == ("a,b", 1, "facts", 3)
    assert len(load_prompts("c:d.jsonl")) == 2 and len(load_prompts("c:d.jsonl:1")) == 1


def test_a_bundle_of_such_files_is_cut_by_their_domains(odd):
    """Its domains are named by the list that it records; the texts may be gone by then."""
    ids = load_file(CALIBRATION.split(":")[0])["calib_input_ids"]
    names = [str(odd / name) for name in ("x,y.safetensors", "z:1.safetensors")]
    for name, rows in zip(names, (ids[:3], ids[3:]), strict=True):
        save_file({"input_ids": rows.contiguous()}, name)
    score = ["score", str(CHECKPOINT), "--data", ",".join(names), "-o", str(odd / "scores")]
    assert main(score) == 0
    assert ScoreBundle(odd / "scores").description.layout == [(3, 32), (3, 32)]
    for name in names:
        Path(name).unlink()
    spread = ["--method", "reap", "--keep", "4", "--spread", "domains"]
    out = ["--scores", str(odd / "scores"), "-o", str(odd / "out")]
    assert main(["prune", str(CHECKPOINT), *spread, *out]) == 0
    facts = read_manifest(odd / "out").settings["spread"]
    assert list(facts["domain_loss"]) == names


def test_token_ids_of_such_a_file(odd):
    save_file({"ids": torch.ones(2, 4, dtype=torch.int64)}, odd / "x,y:z.safetensors")
    data = load_data("x,y:z.safetensors:ids:1", open_checkpoint(CHECKPOINT), "calibration")
    assert data.layout == [(1, 4)] and data.spec == r"x\,y\:z.safetensors:ids:1"
