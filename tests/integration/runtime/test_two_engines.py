"""Two models with experts in one process: each has its level, its counters and its handshake."""

from __future__ import annotations

import pytest

from leanmoe.messages import SkipSnapshot
from leanmoe_bench.engines.pair import RemoteArm
from tests.integration.runtime import two_engines
from tests.integration.runtime.conftest import Engine
from tests.integration.runtime.one_process import VOCABULARY, WITH_PLUGIN
from tests.tiny import write_tiny_mixtral

LAYERS = {"first": 4, "second": 3}
PROMPTS = [[7 + (13 * i + 5 * j) % 400 for j in range(4 + i % 5)] for i in range(6)]


class Named:
    """One engine of a process that holds several, as ``Engine`` calls it."""

    def __init__(self, arm: RemoteArm, name: str) -> None:
        self._arm, self._name = arm, name

    def call(self, operation: str, **given):
        return self._arm.call("ask", name=self._name, what=operation, **given)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        name: write_tiny_mixtral(folder / name, layers=layers, seed=seed)
        for seed, (name, layers) in enumerate(LAYERS.items())
    }


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        log = tmp_path_factory.mktemp("process") / "engines.log"
        arm = RemoteArm("ours", plugin=True, log=log, module=two_engines)
    arm.call("start")
    yield arm
    arm.close()


def betas(name: str, beta: float) -> dict[int, float]:
    return dict.fromkeys(range(LAYERS[name]), beta)


def begin(process, models, name: str) -> Engine:
    process.call(
        "begin",
        name=name,
        model=str(models[name]),
        engine=WITH_PLUGIN,
        vocabulary=VOCABULARY,
        seed=0,
    )
    return Engine(Named(process, name))


@pytest.fixture(scope="module")
def alone(process, models):
    """Name -> beta -> tokens of the model while no other is there."""
    found = {}
    for name in LAYERS:
        engine = begin(process, models, name)
        found[name] = {}
        for beta in (0.0, 1.0):
            engine.set_betas(betas(name, beta))
            found[name][beta] = engine.generate(PROMPTS, 8)
        process.call("end", name=name)
    return found


@pytest.fixture(scope="module")
def both(process, models, alone):
    return {name: begin(process, models, name) for name in LAYERS}


def new_tokens(before: SkipSnapshot, after: SkipSnapshot) -> list[int]:
    return [new.tokens - old.tokens for old, new in zip(before.layers, after.layers, strict=True)]


def skipped(snapshot: SkipSnapshot) -> list[int]:
    return [layer.skipped for layer in snapshot.layers]


def test_each_level_gives_the_tokens_of_the_model_alone(both, alone):
    assert all(found[0.0] != found[1.0] for found in alone.values())
    for levels in ({"first": 1.0, "second": 0.0}, {"first": 0.0, "second": 1.0}):
        for name, beta in levels.items():
            both[name].set_betas(betas(name, beta))
        for name in (*LAYERS, *reversed(LAYERS)):
            assert both[name].generate(PROMPTS, 8) == alone[name][levels[name]]


def test_a_change_of_one_s_level_leaves_the_other_s(both):
    before = both["second"].set_betas(betas("second", 0.25))
    both["first"].set_betas(betas("first", 0.75))
    after = both["second"].snapshot()
    assert (after.level, after.policy_version) == (0.25, before.policy_version)
    assert both["first"].snapshot().level == 0.75


def test_tokens_and_skips_are_counted_where_they_ran(both):
    first, second = both["first"], both["second"]
    before = first.set_betas(betas("first", 1.0)), second.set_betas(betas("second", 0.0))
    ran = sum(map(len, PROMPTS)) + 3 * len(PROMPTS)
    first.generate(PROMPTS, 4)
    assert new_tokens(before[0], first.snapshot()) == [ran] * LAYERS["first"]
    assert second.snapshot().layers == before[1].layers
    second.generate(PROMPTS, 4)
    assert new_tokens(before[1], second.snapshot()) == [ran] * LAYERS["second"]
    assert skipped(second.snapshot()) == skipped(before[1])
    pairs = zip(skipped(before[0]), skipped(first.snapshot()), strict=True)
    assert all(old < new for old, new in pairs)


def test_each_handshake_names_the_layers_of_its_own_model(both):
    for name, engine in both.items():
        report = engine.handshake()
        assert [layer.layer for layer in report.layers] == list(range(LAYERS[name]))
        assert all(layer.wrapped and layer.ran for layer in report.layers)
