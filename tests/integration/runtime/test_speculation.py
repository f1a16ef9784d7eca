"""Drafts are verified at the level they were asked for: the tokens are those without drafts."""

from __future__ import annotations

from tests.integration.runtime.one_process import running
from tests.tiny_families import LAYERS, write_tiny

# Texts that repeat themselves, so that looking back finds drafts.
PROMPTS = [[11 + i, 12, 13, 14 + i, 15] * 4 for i in range(6)]
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 1,
}


def test_tokens_with_drafts_are_those_without(tmp_path):
    model = write_tiny(tmp_path / "model", "mixtral", dtype="float32")
    levels = [dict.fromkeys(range(LAYERS), beta) for beta in (0.0, 0.6, 1.0)]
    found = {}
    for name, config in (("plain", None), ("drafts", NGRAM)):
        flags = {"dtype": "float32", "speculative_config": config, "max_num_batched_tokens": 256}
        with running(model, tmp_path / f"{name}.log", **flags) as engine:
            found[name] = []
            for betas in levels:
                engine.set_betas(betas)
                found[name].append(engine.generate(PROMPTS, 24))
            tokens = engine.snapshot().layers[0].tokens
            found[f"{name} tokens"] = tokens
    assert found["drafts"] == found["plain"]
    assert found["plain"][0] != found["plain"][2]
    # Rejected drafts were computed too, and are counted.
    assert found["drafts tokens"] > found["plain tokens"]
