"""Agreement with the exact answers, asked over HTTP."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmoe_loadtest.reading.asking import Asked, ask_quality
from leanmoe_loadtest.reading.quality import (
    AGAIN,
    EXACT,
    Answer,
    Quality,
    passes,
    quality_figures,
    read_quality,
    write_quality,
)
from leanmoe_loadtest.reading.quality_prompts import PROMPTS
from tests.load.skipping_server import SkippingServer, skipping_server

HALF = '{"level": 0.5}'


def ask(server: SkippingServer, levels=(HALF, '"off"', None), endpoint="chat") -> Quality:
    return ask_quality(
        Asked(server.url, "skipping", endpoint, {}, 30.0), levels, skipping=server.skips
    )


def touched(level: float) -> int:
    """How many of the prompts the server answers otherwise at ``level``."""
    return sum(zlib.crc32(prompt.encode()) / 2**32 < level for prompt in PROMPTS)


def test_the_prompts_are_many_and_differ():
    assert len(set(PROMPTS)) == len(PROMPTS) >= 40


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_each_level_is_compared_with_exact(endpoint):
    with skipping_server() as server:
        figures = quality_figures(ask(server, endpoint=endpoint), seed=0)
    assert figures["skipping"] is True
    assert figures["noise"]["exact_match"] == 1.0 and figures["noise"]["agreement"] == 1.0
    assert list(figures["levels"]) == ["0.5", "server"]
    for name, level in (("0.5", 0.5), ("server", 0.25)):
        row, others = figures["levels"][name], touched(level)
        assert 0 < others < len(PROMPTS)
        assert row["compared"] == len(PROMPTS) and row["unit"] == "tokens"
        assert row["exact_match"] == pytest.approx(1 - others / len(PROMPTS))
        # Four of eight tokens come before the difference.
        assert row["agreement"] == pytest.approx(1 - 0.5 * others / len(PROMPTS))
        assert row["exact_match_low"] < row["exact_match"] < row["exact_match_high"]
        assert row["agreement_low"] < row["agreement"] < row["agreement_high"]
        assert row["applied_levels"] == [level]


def test_exact_passes_are_sent_off_and_greedy():
    with skipping_server() as server:
        ask(server, [HALF])
        sent = server.asked
    levels = [body["expert_skipping"] for body in sent[1:]]
    assert levels == ["off"] * 2 * len(PROMPTS) + [{"level": 0.5}] * len(PROMPTS)
    assert {body["temperature"] for body in sent} == {0}


def test_a_noisy_server_shows_its_noise():
    with skipping_server(noise=0.3) as server:
        figures = quality_figures(ask(server), seed=0)
    assert 0.5 < figures["noise"]["exact_match"] < 0.9
    assert any("differences between levels count beyond" in note for note in figures["notes"])


def test_a_server_without_levels_is_compared_with_itself_and_it_is_said():
    with skipping_server(skips=False) as server:
        figures = quality_figures(ask(server, [None]), seed=0)
        assert all("expert_skipping" not in body for body in server.asked)
    assert figures["levels"] == {} and figures["skipping"] is False
    assert figures["noise"]["exact_match"] == 1.0
    assert any("compares it with itself" in note for note in figures["notes"])


def test_without_logprobs_characters_are_compared():
    with skipping_server(logprobs=False) as server:
        row = quality_figures(ask(server), seed=0)["levels"]["0.5"]
    assert row["unit"] == "characters" and row["compared"] == len(PROMPTS)
    assert 0.5 < row["agreement"] < 1


def test_a_server_that_went_away_leaves_no_figures_but_the_reason():
    with skipping_server() as server:
        gone = server.url
    asked = Asked(gone, "skipping", "chat", {}, 5.0)
    figures = quality_figures(ask_quality(asked, [HALF], skipping=True), seed=0)
    assert figures["levels"]["0.5"]["exact_match"] is None
    assert any("answers failed" in note for note in figures["notes"])


def test_answers_are_stored_and_read(tmp_path):
    with skipping_server() as server:
        quality = ask(server, [HALF])
    write_quality(tmp_path, quality)
    assert read_quality(tmp_path / "quality.jsonl") == quality


def test_a_mix_is_asked_once_per_level():
    levels = [HALF, HALF, '"off"', None, '{"max_kld": 0.02}']
    assert list(passes(levels, skipping=True)) == [EXACT, AGAIN, "0.5", "server", "kld=0.02"]
    assert passes(levels, skipping=False) == {EXACT: None, AGAIN: None}


tokens = st.lists(st.sampled_from("ab"), max_size=6)


@given(tokens, tokens)
def test_agreement_is_one_only_for_the_same_answer(exact, other):
    def answer(name, words):
        return Answer(answers=name, level='"off"', prompt=0, text="".join(words), tokens=words)

    figures = quality_figures(Quality([answer(EXACT, exact), answer("0.5", other)]), seed=0)
    row = figures["levels"]["0.5"]
    assert (row["agreement"] == 1.0) == (exact == other) == (row["exact_match"] == 1.0)
    assert 0 <= row["agreement"] <= 1
