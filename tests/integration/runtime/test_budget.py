"""Rules, budgets, phases, broken routers in a real engine; counts against a second telling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanmoe.messages import (
    ExpertFactors,
    LevelTable,
    Phases,
    PolicyUpdate,
    UnionBudget,
    UnionMode,
)
from leanmoe.skip_rule import SkipRule, threshold_of
from leanmoe_bench.engines.pair import dotted_name
from leanmoe_bench.soak.recounter import Recounter
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.evaluation.levels import run_levels
from leanmoe_pruning.forward.skipping import factors_tensor
from leanmoe_pruning.forward.stream import DecoderStream
from tests.integration.runtime.conftest import Engine
from tests.integration.runtime.one_process import running
from tests.tiny_families import write_tiny

LAYERS, TOP_K, TOKENS = 3, 4, 12
PROMPTS = [[7 + (13 * i + 5 * j) % 400 for j in range(4 + i % 5)] for i in range(8)]
PROMPT_TOKENS = sum(map(len, PROMPTS))
RECOUNTER = dotted_name(Recounter)
# Such as turn the order of weights around.
FACTORS = [1.0, 9.0, 0.2, 3.0, 1.0, 0.1, 5.0, 0.7]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """OLMoE: four of eight experts per token, weights not renormalised."""
    return write_tiny(tmp_path_factory.mktemp("budget") / "model", "olmoe", dtype="float32")


@pytest.fixture(scope="module")
def engine(model):
    flags = {"dtype": "float32", "worker_extension_cls": RECOUNTER}
    with running(model, model.parent / "log", **flags) as engine:
        assert engine.rpc("leanmoe_recount_start") == LAYERS
        factors = ExpertFactors(factors=dict.fromkeys(range(LAYERS), FACTORS))
        engine.rpc("leanmoe_set_factors", factors.model_dump_json())
        yield engine


def put(engine: Engine, beta: float = 0.0, **rules) -> None:
    engine.version += 1
    betas = dict.fromkeys(range(LAYERS), beta)
    update = PolicyUpdate(level=beta, betas=betas, version=engine.version, **rules)
    engine.rpc("leanmoe_set_policy", update.model_dump_json())


def counted(engine: Engine) -> list[dict[str, float]]:
    """Each layer's counts, checked against the recount of everything since the start."""
    again = json.loads(engine.rpc("leanmoe_recount"))
    counts = [one.model_dump() for one in engine.snapshot().layers]
    for one in counts:
        mass = again[str(one["layer"])].pop("skipped_weight")
        for field, value in again[str(one["layer"])].items():
            assert one[field] == value, (one["layer"], field)
        if mass == mass:  # what moved is not told apart there
            assert one["skipped_weight"] == pytest.approx(mass, rel=1e-4)
    return counts


def during(engine: Engine) -> tuple[list[list[int]], list[dict[str, float]]]:
    before = counted(engine)
    ids = engine.generate(PROMPTS, TOKENS)
    return ids, [
        {field: new[field] - old[field] for field in new if field != "layer"}
        for old, new in zip(before, counted(engine), strict=True)
    ]


def offline(model: Path, rule: SkipRule, beta: float) -> list[int]:
    """What the prompts have skipped in each layer by the offline forward pass."""
    threshold = threshold_of(rule, beta, TOP_K)
    ids = [torch.tensor([prompt]) for prompt in PROMPTS]
    factors = factors_tensor(FACTORS)
    with torch.inference_mode():
        run = run_levels(
            *(DecoderStream(open_model(model)), ids, lambda layer: [threshold], 1),
            lambda layer: factors,
        )
    return [run.skipped[layer][0] for layer in range(LAYERS)]


def prompts_alone(engine: Engine, beta: float, rule: SkipRule) -> list[dict[str, float]]:
    put(engine, beta, rule=rule)
    before = counted(engine)
    engine.generate(PROMPTS, 1)
    return [
        {field: new[field] - old[field] for field in new}
        for old, new in zip(before, counted(engine), strict=True)
    ]


@pytest.mark.parametrize("rule", list(SkipRule))
@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_every_rule_skips_of_a_prompt_what_it_skips_offline(engine, model, rule, beta):
    counts = prompts_alone(engine, beta, rule)
    skipped = [one["skipped"] for one in counts]
    assert {one["tokens"] for one in counts} == {PROMPT_TOKENS}
    assert skipped == offline(model, rule, beta) and min(skipped) > 0
    if rule is SkipRule.TOPK:
        assert set(skipped) == {PROMPT_TOKENS * (2 if beta == 0.5 else 1)}
    put(engine)


def test_the_norm_rule_skips_other_experts_than_the_published_one(engine):
    published, norm = (prompts_alone(engine, 1.0, rule) for rule in (SkipRule.RATIO, SkipRule.NORM))
    for one, other in zip(published, norm, strict=True):
        assert one["skipped"] == other["skipped"] == PROMPT_TOKENS * (TOP_K - 1)
    # Keeping the largest weight leaves out the least.
    assert norm[0]["skipped_weight"] > published[0]["skipped_weight"] + 1
    put(engine)


def test_requests_of_every_rule_run_in_one_batch(engine):
    rules = {30: SkipRule.TOPK, 60: SkipRule.NORM, 90: SkipRule.RATIO}
    betas = {code: dict.fromkeys(range(LAYERS), 0.6) for code in rules}
    table = LevelTable(key="level", betas=betas, rules=rules)
    engine.rpc("leanmoe_set_levels", table.model_dump_json())
    alone = {}
    for code, rule in rules.items():
        put(engine, 0.6, rule=rule)
        alone[code], _ = during(engine)
    put(engine)
    exact, _ = during(engine)
    extras = [[None, *({"level": code} for code in rules)][i % 4] for i in range(len(PROMPTS))]
    mixed = engine.arm.call("generate", prompts=PROMPTS, tokens=TOKENS, extras=extras)["ids"]
    counted(engine)
    expected = [(alone[extra["level"]] if extra else exact)[i] for i, extra in enumerate(extras)]
    assert mixed == expected and mixed != exact


def test_where_only_decoding_skips_the_prompt_and_its_first_token_are_exact(engine):
    put(engine)
    exact, nothing = during(engine)
    assert {one["skipped"] for one in nothing} == {0}
    put(engine, 1.0, phases=Phases.DECODE)
    decoded, counts = during(engine)
    put(engine, 1.0)
    everything, _ = during(engine)
    assert [ids[0] for ids in decoded] == [ids[0] for ids in exact]
    assert [ids[0] for ids in everything] != [ids[0] for ids in exact]
    assert decoded != exact
    for one in counts:
        assert one["tokens"] == PROMPT_TOKENS + len(PROMPTS) * (TOKENS - 1)
        assert one["skipped"] == (TOP_K - 1) * (one["tokens"] - PROMPT_TOKENS)


@pytest.mark.parametrize("mode", [UnionMode.VANISH, UnionMode.REDIRECT])
@pytest.mark.parametrize(
    ("beta", "rule"),
    [(0.0, SkipRule.RATIO), (0.3, SkipRule.RATIO), (0.3, SkipRule.NORM), (0.3, SkipRule.TOPK)],
)
def test_a_budget_bounds_what_a_step_reads_and_is_counted_right(engine, mode, beta, rule):
    put(engine, beta, rule=rule)
    _, free = during(engine)
    put(engine, beta, rule=rule, union=UnionBudget(experts=3, mode=mode))
    _, held = during(engine)
    for one, other in zip(held, free, strict=True):
        assert one["distinct_experts"] < other["distinct_experts"]
        assert (one["substituted"] > 0) == (mode is UnionMode.REDIRECT)
        assert one["skipped"] > 0 or mode is UnionMode.REDIRECT
    put(engine)


def test_a_budget_that_is_taken_back_leaves_nothing_behind(engine):
    put(engine)
    exact, _ = during(engine)
    put(engine, union=UnionBudget(experts=2))
    bounded, _ = during(engine)
    put(engine)
    again, _ = during(engine)
    assert bounded != exact == again


def test_a_router_of_nan_keeps_everything_and_is_counted(tmp_path: Path):
    model = write_tiny(tmp_path / "model", "mixtral")
    tensors = {name: t.clone() for name, t in load_file(model / "model.safetensors").items()}
    tensors["model.layers.1.block_sparse_moe.gate.weight"].fill_(float("nan"))
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with running(model, tmp_path / "log") as engine:
        put(engine, 1.0)
        engine.generate(PROMPTS, 2)
        first, second, third = engine.snapshot().layers
    tokens = PROMPT_TOKENS + len(PROMPTS)
    assert (first.nonfinite, first.skipped) == (0, tokens)
    # From there on nothing is a number, and nothing is skipped.
    assert {(one.nonfinite, one.skipped) for one in (second, third)} == {(tokens, 0)}
    assert torch.tensor([one.skipped_weight for one in (second, third)]).sum() == 0
