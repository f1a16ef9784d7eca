"""Long answers: what repeats, what loops, and how two models' answers are paired."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmoe.cli import main
from leanmoe.errors import DataError
from leanmoe_pruning.data.tasks.open_prompts import load_prompts
from leanmoe_pruning.evaluation.long_answers import LongAnswer, long_report
from leanmoe_pruning.evaluation.repetition import ends_in_loop, repeated_share
from tests.tiny import write_tiny_curve, write_tiny_mixtral

tokens = st.lists(st.integers(0, 3), max_size=40)


def test_repeated_share_by_hand():
    # abcd bcda cdab dabc abcd: one of five stood there before.
    assert repeated_share("abcdabcd") == pytest.approx(1 / 5)
    assert repeated_share("aaaaaaaa") == pytest.approx(4 / 5)
    assert repeated_share("abcdefgh") == repeated_share("abc") == repeated_share("") == 0.0


@given(tokens, st.integers(2, 6))
def test_repeated_share_is_one_less_the_different_ones(ids, n):
    grams = {tuple(ids[i : i + n]) for i in range(len(ids)) if i + n <= len(ids)}
    count = max(0, len(ids) - n + 1)
    assert repeated_share(ids, n) == pytest.approx(1 - len(grams) / count if count else 0.0)


def test_loops_by_hand():
    assert ends_in_loop("so ababab") and ends_in_loop("abcabcabc") and ends_in_loop("abababa")
    assert not ends_in_loop("abab") and not ends_in_loop("abababc") and not ends_in_loop("")
    # One token again and again is a phrase of two tokens as well, from six on.
    assert ends_in_loop("xaaaaaa") and not ends_in_loop("xaaaaa")


@given(tokens, st.lists(st.integers(0, 3), min_size=2, max_size=6), st.integers(3, 5))
def test_a_phrase_repeated_at_the_end_is_a_loop(before, phrase, times):
    assert ends_in_loop([*before, *phrase * times])


@given(tokens)
def test_loops_are_what_their_definition_says(ids):
    by_hand = any(
        ids[-3 * size :] == ids[-size:] * 3 for size in range(2, len(ids) // 3 + 1) if size
    )
    assert ends_in_loop(ids) == by_hand


def answer(group: str, text: str, ended: bool = True) -> LongAnswer:
    return LongAnswer.of("?", group, text, list(text), ended)


def test_figures_and_differences_of_groups():
    mine = [answer("en", "abcdefgh"), answer("en", "abababab", False), answer("fr", "abc")]
    theirs = [answer("en", "abcdefgh"), answer("en", "abcdef"), answer("fr", "abcde")]
    found = long_report(mine, theirs)
    assert list(found["groups"]) == ["all", "en", "fr"]
    whole, french = found["groups"]["all"], found["groups"]["fr"]
    assert whole["answers"] == 3 and whole["tokens"]["mean"] == pytest.approx(19 / 3)
    assert whole["loops"]["mean"] == whole["against"]["loops"]["mean"] == pytest.approx(1 / 3)
    assert whole["ended"]["mean"] == pytest.approx(2 / 3)
    gap = whole["against"]["tokens"]
    assert gap["mean"] == pytest.approx(0.0) and gap["low"] < 0 < gap["high"]
    assert whole["against"]["same_answer"] == pytest.approx(1 / 3)
    assert french["tokens"] == {"mean": 3.0, "low": None, "high": None}
    assert [one["repeated"] for one in found["answers"]] == [0.0, pytest.approx(3 / 5), 0.0]
    assert list(long_report(mine[:2], None)["groups"]) == ["all"]


def test_prompts_that_ship_and_those_of_a_file(tmp_path):
    shipped = load_prompts("builtin")
    assert {one.group for one in shipped} == {"en", "fr", "de", "es"}
    assert len({one.prompt for one in shipped}) == len(shipped) == 40
    assert load_prompts("builtin:5") == shipped[:5]
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "one"}\n\n{"prompt": "two", "group": "b"}\n')
    assert [(one.prompt, one.group) for one in load_prompts(f"{path}:2")] == [
        ("one", "all"),
        ("two", "b"),
    ]
    said = "--prompts is http://hub/p, an address"
    for spec, words in (
        (f"{path}:3", "from 1 to 2"),
        ("no.jsonl", "cannot be read"),
        ("http://hub/p", said),
    ):
        with pytest.raises(DataError, match=words):
            load_prompts(spec)
    for line in ("{", "[]", '{"prompt": " "}', '{"prompt": "x", "group": 3}'):
        path.write_text(line)
        with pytest.raises(DataError, match=r"line 1 (is|cannot be read)"):
            load_prompts(str(path))
    path.write_text("")
    with pytest.raises(DataError, match="holds no prompts"):
        load_prompts(str(path))


def test_a_checkpoint_answers_at_length(tmp_path, capsys):
    model = write_tiny_mixtral(tmp_path / "model", layers=2, dtype="float32")
    write_tiny_curve(model)
    long = ["eval", str(model), "--long", "12", "--prompts", "builtin:5", "--json"]
    found = {}
    for name, added in {
        "exact": ["--against", str(model)],
        "least": ["--against", str(model), "--max-kld", "0.5"],
        "drawn": ["--temperature", "0.7"],
        "again": ["--temperature", "0.7"],
        "other": ["--temperature", "0.7", "--seed", "1"],
    }.items():
        assert main([*long, *added]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    exact = found["exact"]["long"]
    assert exact["groups"]["all"]["against"]["same_answer"] == 1.0
    assert all(one["tokens"] == 12 or one["ended"] for one in exact["answers"])
    assert found["least"]["skip_level"] == 1.0
    assert found["least"]["long"]["groups"]["all"]["against"]["same_answer"] < 1.0
    texts = {name: [one["text"] for one in said["long"]["answers"]] for name, said in found.items()}
    assert texts["drawn"] == texts["again"] != texts["other"] and texts["drawn"] != texts["exact"]
    assert main(long[:-1]) == 0
    assert "end in a loop" in capsys.readouterr().out
    assert main([*long, "--temperature", "-1"]) == 2
    assert "--temperature is -1.0" in capsys.readouterr().err
