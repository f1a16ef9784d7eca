"""``leanmoe eval --tasks``: accuracies, intervals, paired differences, and the built-in items."""

from __future__ import annotations

import json
import shutil

import pytest

from leanmoe.cli import main
from leanmoe.errors import DataError
from leanmoe.extras import install_hint
from leanmoe.stats import wilson
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.data.builtin import builtin_ids, builtin_texts
from leanmoe_pruning.data.tasks.builtin_tasks import COPYLEFT_TASKS, builtin_names, task_file
from leanmoe_pruning.data.tasks.items.make import TEXTS, content, tasks
from leanmoe_pruning.data.tasks.loading import load_task
from leanmoe_pruning.evaluation.intervals import Paired
from leanmoe_pruning.evaluation.resident import ResidentModel
from leanmoe_pruning.evaluation.task_scoring import score_task
from leanmoe_pruning.forward.stream import DecoderStream
from tests.tiny import write_tiny_curve, write_tiny_mixtral


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_mixtral(tmp_path_factory.mktemp("tiny") / "model", layers=2, dtype="float32")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "model"
    return write_tiny_mixtral(folder, layers=2, dtype="float32", seed=1)


def run(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert main(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def resident(path) -> ResidentModel:
    return ResidentModel.load(DecoderStream(open_model(path)))


def test_accuracy_with_its_interval(path, capsys):
    task = load_task("builtin:facts:60")
    result = score_task(resident(path), task)
    found = run(capsys, str(path), "--tasks", "builtin:facts:60")
    assert "domains" not in found
    one = found["tasks"]["facts"]
    assert one["items"] == 60
    assert one["digest"] == task.digest()
    assert one["chance"] == 0.25
    assert one["accuracy"] == sum(result.correct) / 60
    assert (one["low"], one["high"]) == wilson(sum(result.correct), 60)
    assert one["per_byte"]["accuracy"] == result.accuracy_per_byte


def test_paired_difference_from_another_model(path, other, capsys):
    arguments = ["--tasks", "builtin:facts:60,builtin:sums:3", "--against", str(other)]
    found = run(capsys, str(path), *arguments)["tasks"]
    task = load_task("builtin:facts:60")
    mine, theirs = (score_task(resident(one), task) for one in (path, other))
    paired = Paired.of(mine.correct, theirs.correct)
    against = found["facts"]["against"]
    assert against["accuracy"] == theirs.accuracy
    assert against["difference"] == pytest.approx(mine.accuracy - theirs.accuracy)
    assert (against["low"], against["high"]) == paired.interval()
    assert against["mcnemar_p"] == paired.mcnemar()
    assert set(found["sums"]) == {"items", "digest", "chance", "accuracy", "low", "high", "against"}
    assert main(["eval", str(path), *arguments]) == 0
    assert "difference" in capsys.readouterr().out


def test_texts_and_tasks_at_a_skip_level(path, tmp_path, capsys):
    lean = tmp_path / "lean"
    shutil.copytree(path, lean)
    write_tiny_curve(lean)
    text = tmp_path / "text.txt"
    text.write_text("the people look at the water and go a long way " * 20)
    arguments = ["--data", str(text), "--window", "32", "--tasks", "builtin:facts:40"]
    skipped = run(capsys, str(lean), *arguments, "--skip-level", "1", "--against", str(path))
    exact = run(capsys, str(path), *arguments)
    assert 0 < skipped["skip_rate"] < 1
    (mine,), (theirs,) = skipped["domains"].values(), exact["domains"].values()
    assert mine["against"]["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-6)
    ratio = mine["against"]["ratio"]
    assert ratio["mean"] == pytest.approx(mine["perplexity"] / theirs["perplexity"], rel=1e-6)
    assert ratio["low"] < ratio["mean"] < ratio["high"]
    # The other model is exact, whatever the level of the first.
    assert skipped["tasks"]["facts"]["against"]["accuracy"] == exact["tasks"]["facts"]["accuracy"]
    assert skipped["manifest_digest"] == open_model(lean).manifest.digest()
    # The curve made another manifest of the same weights.
    assert skipped["weights_digest"] == exact["weights_digest"]
    assert skipped["against_weights_digest"] == exact["weights_digest"]


def test_refusals(path, tmp_path, capsys):
    assert main(["eval", str(path)]) == 2
    assert "give --data SPEC, --tasks TASKS or --long N" in capsys.readouterr().err
    task = tmp_path / "facts.jsonl"
    task.write_text(json.dumps({"prompt": "one", "answer": "two"}))
    assert main(["eval", str(path), "--tasks", f"builtin:facts,{task}"]) == 2
    assert "two tasks named facts" in capsys.readouterr().err
    assert main(["eval", str(path), "--tasks", "builtin:facts,"]) == 2
    assert "names nothing" in capsys.readouterr().err


def test_the_script_still_writes_the_shipped_items():
    written = dict(tasks())
    assert {name.partition(".")[0] for name in written} == set(builtin_names())
    assert len(written) == 2 * len(builtin_names())
    for name, items in written.items():
        assert task_file(name).read_text(encoding="utf-8") == content(items), name


@pytest.mark.parametrize("name", builtin_names())
def test_builtin_items_are_sound(name):
    calibration, heldout = (
        load_task(f"builtin:{name}", split) for split in ("calibration", "heldout")
    )
    assert min(len(calibration), len(heldout)) >= 100
    prompts = [{item.prompt for item in task.items} for task in (calibration, heldout)]
    assert all(
        len(own) == len(task) for own, task in zip(prompts, (calibration, heldout), strict=True)
    )
    assert not set(calibration.items) & set(heldout.items)
    if heldout.has_choices:
        # The right one is as often at each place, or nearly.
        places = [sum(item.answer == place for item in heldout.items) for place in range(4)]
        assert min(places) >= 0.15 * len(heldout)


@pytest.mark.parametrize("domain", TEXTS)
def test_heldout_items_are_of_heldout_text(domain):
    text = "\n".join(builtin_texts(domain, "heldout"))
    for item in load_task(f"builtin:cloze-{domain}").choice_items:
        assert item.prompt + item.choices[item.answer] in text


def test_tasks_and_texts_under_copyleft_are_named_with_what_brings_them(monkeypatch):
    """Without the package that holds them; the others are there all the same."""
    monkeypatch.setattr("leanmoe_pruning.data.builtin.find_spec", lambda name: None)
    assert not set(COPYLEFT_TASKS) & set(builtin_names()) and "facts" in builtin_names()
    for task in ("language", "cloze-fr"):
        with pytest.raises(
            DataError, match=f"builtin:{task} stands under a copyleft licence"
        ) as no:
            load_task(f"builtin:{task}")
        assert install_hint("texts") in str(no.value)
    with pytest.raises(DataError, match="take other texts: gen, c, kjv, math, py, wn"):
        builtin_ids("man", "heldout")
    assert len(builtin_ids("gen", "heldout")) and len(load_task("builtin:cloze-c")) == 200
