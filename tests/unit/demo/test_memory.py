"""An unfinished demo goes on behind its last finished step, and only there."""

import pytest

from leanmoe.errors import LeanMoEError
from leanmoe_demo import memory as memory_module
from leanmoe_demo.memory import Memory
from leanmoe_demo.shell import Shell

SCORE, PRUNE, CURVE = ["score", "model"], ["prune", "model"], ["curve", "lean"]


@pytest.fixture
def work(tmp_path):
    """Where a demo was cut short behind its second step."""
    first = Memory(tmp_path)
    for arguments in (SCORE, PRUNE):
        assert first.recall(arguments, None) is None
        first.keep(arguments, {"seconds": 1.0, "result": {"of": arguments[0]}})
    return tmp_path


def test_finished_steps_are_recalled_in_order(work):
    again = Memory(work)
    assert again.recall(SCORE, work)["result"] == {"of": "score"}
    assert again.recall(PRUNE, work)["result"] == {"of": "prune"}
    assert again.recall(CURVE, None) is None


def test_what_follows_a_step_that_differs_runs_again(work):
    again = Memory(work)
    assert again.recall([*SCORE, "--more"], None) is None
    again.keep([*SCORE, "--more"], {"seconds": 1.0, "result": {}})
    assert again.recall(PRUNE, None) is None
    assert Memory(work).recall([*SCORE, "--more"], None) is not None


def test_a_step_whose_work_is_gone_runs_again(work):
    assert Memory(work).recall(SCORE, work / "gone") is None


@pytest.mark.parametrize("name", ["tool_versions", "_code_digest"])
def test_other_tools_or_other_code_begin_anew(work, monkeypatch, name):
    monkeypatch.setattr(memory_module, name, lambda: "another")
    assert Memory(work).recall(SCORE, None) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"made_by": 1}', '{"steps": [3]}'])
def test_a_file_that_is_not_ours_begins_anew(work, text):
    (work / "steps.json").write_text(text)
    assert Memory(work).recall(SCORE, None) is None


def test_a_demo_at_its_end_is_measured_anew(work):
    Memory(work).forget()
    assert Memory(work).recall(SCORE, None) is None
    Memory(work).forget()


def test_a_step_runs_once_and_a_failed_one_again(tmp_path, capfd):
    missing = str(tmp_path / "no-model")
    with pytest.raises(LeanMoEError, match="`leanmoe plan` ended with code 2"):
        Shell(0, Memory(tmp_path)).step("plan", "plan", missing)
    assert Memory(tmp_path).recall(["plan", missing, "--seed", "0"], None) is None
    # A new key each time it runs.
    made = Shell(0, Memory(tmp_path)).step("key", "key", "new", "alice")
    again = Shell(0, Memory(tmp_path))
    assert again.step("key", "key", "new", "alice") == made
    assert "done before" in capfd.readouterr().err
    assert set(again.seconds) == {"key"}
