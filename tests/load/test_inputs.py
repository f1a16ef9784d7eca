"""What users write: level mixes, lengths, traces, prompt files, profiles."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe.errors import InputError
from leanmoe_loadtest.lengths import parse_lengths
from leanmoe_loadtest.level_mix import WeightedLevel, parse_levels
from leanmoe_loadtest.settings import profile_names, resolve
from leanmoe_loadtest.source import load_prompts
from leanmoe_loadtest.trace import TraceRequest, read_trace


def test_a_mix_of_levels() -> None:
    assert parse_levels(
        'off:1, 0.5:2,server,kld=0.02:0.5,{"level": 1, "deterministic": true}:3'
    ) == [
        WeightedLevel(value="off", weight=1.0),
        WeightedLevel(value={"level": 0.5}, weight=2.0),
        WeightedLevel(value=None, weight=1.0),
        WeightedLevel(value={"max_kld": 0.02}, weight=0.5),
        WeightedLevel(value={"level": 1, "deterministic": True}, weight=3.0),
    ]


def test_records_hold_levels_as_json() -> None:
    assert [level.text for level in parse_levels("off,0.4,server")] == [
        '"off"',
        '{"level": 0.4}',
        None,
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("", "off,", "off:0", "off:-1", "off:x", "2", "-0.1", "nan", "high", "kld=0", "kld=x"),
        *('{"level": 0.4', '{"level": 2}', '{"lvl": 1}', '{"level": 0, "max_kld": 1}', "{}"),
        *('{"max_kld": "a"}', '{"max_kld": true}', '{"level": true}', "off:1:2", "off;0.5", "x=1"),
    ],
)
def test_what_is_no_mix_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="level"):
        parse_levels(text)


@settings(max_examples=40)
@given(st.text(max_size=40))
def test_any_text_is_a_mix_or_refused(text: str) -> None:
    with contextlib.suppress(InputError):
        assert parse_levels(text)


@settings(max_examples=40)
@given(
    st.sampled_from(["64", "uniform:10,90", "normal:50,20", "lognormal:50,0.7"]),
    st.integers(0, 1000),
)
def test_lengths_repeat_for_a_seed_and_centre_where_they_should(text: str, seed: int) -> None:
    lengths = parse_lengths(text, "input")
    draws = [lengths.draw(one) for one in [random.Random(seed)] for _ in range(400)]
    assert draws == [lengths.draw(one) for one in [random.Random(seed)] for _ in range(400)]
    assert all(draw >= 1 for draw in draws)
    assert 40 <= sorted(draws)[200] <= 64


@pytest.mark.parametrize(
    "text", ["0", "-3", "1.5", "x", "uniform:9,3", "uniform:1", "normal:5,-1", "zipf:1,2", "nan"]
)
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="input is"):
        parse_lengths(text, "input")


def test_a_trace_in_milliseconds_begins_at_its_first_request(tmp_path: Path) -> None:
    rows = [{"timestamp": 5000, "input_length": 10, "output_length": 3}, {"timestamp": 6500}]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_trace(path, unit="ms", speed=3.0) == [
        TraceRequest(0.0, 10, 3),
        TraceRequest(0.5, None, None),
    ]


def test_a_trace_as_azure_publishes_them(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.6805900,396,109\n"
    )
    assert read_trace(path) == [TraceRequest(0.0, 374, 44), TraceRequest(4.0, 396, 109)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "without a request"),
        ('{"timestamp": -1}', "at least 0"),
        ('{"timestamp": 2}\n{"timestamp": 1}', r"jsonl:2: the time 1 s is before"),
        ('{"time": 2}', "no timestamp"),
        ('{"timestamp": NaN}', "NaN is no number"),
        ('{"timestamp": "soon"}', "a number or a date"),
        ('{"timestamp": 0, "input_length": -4}', "a length is -4"),
        ('{"timestamp": 0, "input_length": "x"}', "a length is 'x'"),
        ("[1]", "not a JSON object"),
        ("{", "cannot be read as JSON"),
        ('{"timestamp": ' + 5000 * "9" + "}", "integer of 5000 digits"),
        ("\ud800", "cannot be read|not UTF-8"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, lines: str, words: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(lines.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=words):
        read_trace(path)


def test_the_first_question_of_each_conversation_is_a_prompt(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "first?"}]
    rows = [{"conversations": turns}, {"conversations": []}, {"text": "x"}]
    rows.append({"conversations": [{"role": "user", "content": "second?"}]})
    path = tmp_path / "share.json"
    path.write_text(json.dumps(rows))
    prompts = load_prompts(str(path), "chat")
    assert [(prompt.index, prompt.text) for prompt in prompts] == [(0, "first?"), (3, "second?")]


def test_json_lines_hold_texts_or_chats(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi\u2028there"}]
    rows = [{"prompt": "a", "max_tokens": 5}, {"messages": chat, "id": 7}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    first, second = load_prompts(str(path), "chat")
    assert (first.text, first.max_tokens, second.messages) == ("a", 5, chat)
    with pytest.raises(InputError, match="--endpoint chat"):
        load_prompts(str(path), "completions")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", "\n", "holds no prompt"),
        ("a.json", "[]", "holds no prompt"),
        ("a.json", "{}", "not a list"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
        ("a.jsonl", '{"prompt": ""}', "not a text"),
        ("a.jsonl", '{"prompt": "a", "messages": []}', "just one of"),
        ("a.jsonl", '{"messages": ["hi"]}', "role and content"),
        ("a.jsonl", '{"prompt": "a", "max_tokens": 0}', "max_tokens is 0"),
    ],
)
def test_what_holds_no_prompts_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_prompts(str(path), "chat")


@pytest.mark.parametrize("name", profile_names())
def test_profiles_that_ship_are_valid(name: str) -> None:
    assert resolve(name, {}).description


def test_the_command_line_overrides_a_profile(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("arrivals: poisson:2\nmax-tokens: 7\ninput-tokens: 100\nprompts: p.jsonl\n")
    settings = resolve(str(profile), {"users": 3})
    assert (settings.users, settings.arrivals, settings.max_tokens) == (3, None, 7)
    assert settings.prompts == str(tmp_path / "p.jsonl") and settings.input_tokens == "100"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("usres: 3", "did you mean 'users'"),
        ("users: 0", "users is 0"),
        ("users: many", "users is 'many'"),
        ("users: 1\nrate: 2", "give one of them"),
        ("- users", "not a mapping"),
        ("users: [", "not YAML"),
        ("1: 2", "not a mapping"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("api-key: x", "no setting 'api-key'"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str, words: str) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(text)
    with pytest.raises(InputError, match=words):
        resolve(str(profile), {})


def test_an_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(InputError, match="poisson"):
        resolve("nope", {})
