"""Drafts are verified at the level they were asked for: the tokens are those without drafts."""

from __future__ import annotations

import pytest

from tests.integration.runtime.one_process import running
from tests.tiny import write_tiny_mixtral
from tests.tiny_families import LAYERS, write_tiny

# Texts that repeat themselves, so that looking back finds drafts.
PROMPTS = [[11 + i, 12, 13, 14 + i, 15] * 4 for i in range(6)]
LEVELS = [dict.fromkeys(range(LAYERS), beta) for beta in (0.0, 0.6, 1.0)]
FLAGS = {"dtype": "float32", "max_num_batched_tokens": 256}
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 1,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """How tokens are drafted -> (tokens at each level, last snapshot, handshake)."""
    folder = tmp_path_factory.mktemp("drafts")
    model = write_tiny(folder / "model", "mixtral", dtype="float32")
    # Its layers have the numbers of the model's.
    experts = write_tiny_mixtral(folder / "experts", layers=2, seed=5, dtype="float32")
    drafts = {
        "plain": None,
        "ngram": NGRAM,
        "experts": {
            "method": "draft_model",
            "model": str(experts),
            "num_speculative_tokens": 2,
        },
    }
    answers = {}
    for name, config in drafts.items():
        flags = {**FLAGS, "speculative_config": config}
        with running(model, folder / f"{name}.log", **flags) as engine:
            tokens = []
            for betas in LEVELS:
                engine.set_betas(betas)
                tokens.append(engine.generate(PROMPTS, 24))
            answers[name] = tokens, engine.snapshot(), engine.handshake()
    return answers


@pytest.mark.parametrize("drafts", ["ngram", "experts"])
def test_tokens_with_drafts_are_those_without(found, drafts):
    plain, counted, _ = found["plain"]
    tokens, snapshot, _ = found[drafts]
    assert tokens == plain
    assert plain[0] != plain[2]
    # Rejected drafts were computed too, and are counted.
    assert snapshot.layers[0].tokens > counted.layers[0].tokens


def test_the_handshake_names_a_draft_s_experts_apart_from_the_model_s(found):
    for _, snapshot, report in found.values():
        assert [layer.layer for layer in report.layers] == list(range(LAYERS))
        assert all(layer.wrapped and layer.ran for layer in report.layers)
        assert report.problems == []
        assert [layer.layer for layer in snapshot.layers] == list(range(LAYERS))
    drafted = {name: report.draft_layers for name, (_, _, report) in found.items()}
    assert drafted["plain"] == drafted["ngram"] == []
    assert drafted["experts"] == [
        f"draft_model.model.layers.{layer}.block_sparse_moe.experts" for layer in range(2)
    ]
