"""Every family in a real engine: loaded, wrapped, skipping, and at level 0 what stock vLLM says.

Both processes take all models one after the other: imports take most of a start.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from leanmoe.checkpoint import Checkpoint, open_checkpoint
from leanmoe.cli import main
from leanmoe_bench.engines.pair import RemoteArm
from tests.integration.runtime.conftest import Engine
from tests.integration.runtime.one_process import FLAGS, WITH_PLUGIN, one_process, start
from tests.tiny_families import CONFIGS, write_tiny

NEW_TOKENS = 12
KEEP = 6
PROMPTS = [[7 + (13 * i + 5 * j) % 400 for j in range(4 + i % 5)] for i in range(8)]


@pytest.fixture(scope="module")
def lean(tmp_path_factory) -> dict[str, Path]:
    """Cut checkpoints, so that vLLM also judges what the cutter wrote."""
    folder = tmp_path_factory.mktemp("families")
    for name in CONFIGS:
        source, out = write_tiny(folder / f"{name}-whole", name), folder / name
        how = ["--method", "random", "--keep", str(KEEP), "-o", str(out)]
        assert main(["prune", str(source), *how]) == 0
    return {name: folder / name for name in CONFIGS}


@pytest.fixture(scope="module")
def stock(lean, tmp_path_factory) -> dict[str, list[list[int]]]:
    """What stock vLLM generates."""
    with one_process(tmp_path_factory.mktemp("stock") / "engine.log", plugin=False) as arm:
        return {
            name: start(arm, model, FLAGS).generate(PROMPTS, NEW_TOKENS)
            for name, model in lean.items()
        }


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Iterator[RemoteArm]:
    with one_process(tmp_path_factory.mktemp("ours") / "engine.log", plugin=True) as arm:
        yield arm


def generate_at(engine: Engine, layers: tuple[int, ...], beta: float):
    """Tokens generated at ``beta``, and (tokens, skipped assignments) of each layer meanwhile."""
    before = engine.set_betas(dict.fromkeys(layers, beta))
    ids = engine.generate(PROMPTS, NEW_TOKENS)
    after = engine.snapshot()
    return ids, [
        (new.tokens - old.tokens, new.skipped - old.skipped)
        for old, new in zip(before.layers, after.layers, strict=True)
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_is_wrapped_skips_and_is_exact_at_level_zero(name, lean, stock, ours):
    checkpoint = open_checkpoint(lean[name])
    shape = checkpoint.shape
    engine = start(ours, lean[name], WITH_PLUGIN)
    exact, counts = generate_at(engine, shape.moe_layers, 0.0)
    assert exact == stock[name]
    assert {skipped for _, skipped in counts} == {0}
    top_one, counts = generate_at(engine, shape.moe_layers, 1.0)
    report = engine.handshake()
    assert top_one != exact
    for seen, skipped in counts:
        check_skipped(checkpoint, seen, skipped)
    assert report.problems == []
    assert [layer.layer for layer in report.layers] == list(shape.moe_layers)
    described = {(one.n_routed_experts, one.top_k, one.renormalize) for one in report.layers}
    assert described == {(KEEP, shape.top_k, shape.renormalize)}


def check_skipped(checkpoint: Checkpoint, seen: int, skipped: int) -> None:
    """Level 1 leaves one expert per token."""
    assert seen == sum(map(len, PROMPTS)) + (NEW_TOKENS - 1) * len(PROMPTS)
    most = (checkpoint.shape.top_k - 1) * seen
    if checkpoint.family.name == "phimoe":
        # Its router weighs each of the two experts against its own rivals, mostly by 1: a tie.
        assert 0 < skipped < most / 2
    else:
        # bf16 logits tie now and then, and a tie with the largest reaches it.
        assert 0.98 * most <= skipped <= most
