"""``leanmoe eval URL``: a running server judged by what it writes, through lm-eval's own client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leanmoe.cli import main
from leanmoe_pruning.data.tasks.loading import examples_of, load_task
from tests.integration.live_server import LiveServer

PROMPTS = ("the people look at the water", "find the number of the day")


def judged(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval", *arguments, "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def written(path: Path, *answers: str) -> Path:
    lines = [
        {"prompt": prompt, "answer": text} for prompt, text in zip(PROMPTS, answers, strict=False)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.slow
def test_answers_must_be_right_to_the_letter_and_are_paired_with_recorded_ones(
    exact_server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, before = written(tmp_path / "one.jsonl", "x"), tmp_path / "before.json"
    wrong = judged(capsys, exact_server.url, "--tasks", str(task))
    text = wrong["tasks"]["one"]["answers"][0]["text"]
    assert text == text.strip() != "x"
    wrong["tasks"]["one"]["digest"] = load_task(str(written(task, text))).digest()
    before.write_text(json.dumps(wrong))
    right = judged(capsys, exact_server.url, "--tasks", str(task), "--against", str(before))
    found = right["tasks"]["one"]
    assert (found["accuracy"], found["answers"]) == (1.0, [{"right": True, "text": text}])
    assert (found["against"]["difference"], found["against"]["same_answer"]) == (1.0, 1.0)
    assert right["server"]["weights_digest"] == wrong["server"]["weights_digest"]
    # Nearly right is wrong.
    written(task, text + ".")
    assert judged(capsys, exact_server.url, "--tasks", str(task))["tasks"]["one"]["accuracy"] == 0


@pytest.mark.slow
def test_a_level_reaches_every_request(
    exact_server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = str(written(tmp_path / "two.jsonl", "x", "y"))
    asked = ["--tasks", task, "--against", exact_server.url]
    least = judged(capsys, exact_server.url, *asked, "--skip-level", "1")
    assert least["server"]["asked"] == {"level": 1.0} and least["against"]["asked"] == "off"
    assert least["tasks"]["two"]["against"]["same_answer"] == 0.0


@pytest.mark.slow
def test_long_answers_of_a_server(
    exact_server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [exact_server.url, "--long", "9", "--prompts", "builtin:2", "--skip-level", "1"]
    first = judged(capsys, *asked)
    answers = first["long"]["answers"]
    assert all(one["tokens"] == 9 or one["ended"] for one in answers)
    before = tmp_path / "before.json"
    before.write_text(json.dumps(first))
    again = judged(capsys, *asked, "--against", str(before))
    assert set(again["long"]["groups"]) == {"all"}
    assert "same_answer" in again["long"]["groups"]["all"]["against"]
    assert main(["eval", *asked, "--against", str(before), "--temperature", "1"]) == 2
    assert "give the same --long" in capsys.readouterr().err


def test_built_in_questions_come_with_answered_ones_before_them() -> None:
    first = examples_of("builtin:asked-facts:3")
    assert len(first) == 6 and first == examples_of("builtin:asked-facts")
    assert not set(first) & set(load_task("builtin:asked-facts").items)
    assert examples_of("mine.jsonl:3") == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to judge a server by"),
        (["--tasks", "builtin:facts"], "builtin:asked-facts"),
        (["--tasks", "hellaswag"], "neither builtin:NAME nor FILE.jsonl"),
        (["--tasks", "builtin:sums:1", "--skip-level", "0.5", "--max-kld", "1"], "give one"),
        (["--tasks", "builtin:sums:1", "--max-kld", "-1"], "answers 400: max_kld is -1.0"),
        (["--tasks", "builtin:sums:1", "--data", "builtin:gen:1"], "--data is for a checkpoint"),
        (["--tasks", "builtin:sums:1", "--against", "{model}"], "is a checkpoint and the model"),
        (["--tasks", "builtin:sums:1", "--against", "{folder}/no.json"], "cannot be read as JSON"),
        (["--tasks", "builtin:sums:1", "--against", "{folder}/other.json"], "is no result of"),
        (["--tasks", "builtin:sums:1", "--against", "{folder}/sums.json"], "holds other items"),
        (["--tasks", "builtin:asked-facts:1", "--against", "{folder}/sums.json"], "has no task"),
        (["--long", "8", "--against", "{folder}/sums.json"], "has no long answers"),
    ],
)
def test_what_is_refused(
    exact_server: LiveServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    (tmp_path / "other.json").write_text("{}")
    recorded = {"server": {}, "tasks": {"sums": {"digest": "sha256:0", "answers": []}}}
    (tmp_path / "sums.json").write_text(json.dumps(recorded))
    places = {"model": exact_server.model, "folder": str(tmp_path)}
    given = [one.format(**places) for one in arguments]
    assert main(["eval", exact_server.url, *given]) == 2
    assert words in capsys.readouterr().err
