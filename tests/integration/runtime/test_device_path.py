"""The devices' path inside a real engine: hooks, rows, the interpreted kernel, counters."""

import pytest

from leanmoe.errors import LeanMoEError
from leanmoe.messages import (
    LevelTable,
    PolicyUpdate,
    RequestCounts,
    RequestNames,
    UnionBudget,
    UnionMode,
)
from tests.integration.runtime.test_engine import PROMPTS, betas

LEAST = 3


@pytest.fixture(scope="module")
def device_eager(start_engine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        return start_engine(
            True,
            enforce_eager=True,
            worker_extension_cls="tests.integration.runtime.interpreted.Interpreted",
            additional_config={"leanmoe": {"plugin": True, "union_budget": LEAST}},
        )


def counted(engine, level: float, tokens: int, union: UnionBudget | None = None, prompts=PROMPTS):
    """Differences of every layer's counters over one generation."""
    engine.version += 1
    policy = {"level": level, "betas": betas(level), "version": engine.version, "union": union}
    engine.rpc("leanmoe_set_policy", PolicyUpdate(**policy).model_dump_json())
    before = engine.snapshot().layers
    engine.generate(prompts, tokens)
    return [
        {name: getattr(new, name) - getattr(old, name) for name in type(new).model_fields}
        for old, new in zip(before, engine.snapshot().layers, strict=True)
    ]


def test_level_zero_gives_stock_tokens_and_warm_up_was_no_traffic(device_eager, stock_eager):
    assert all(layer.tokens == 0 for layer in device_eager.snapshot().layers)
    device_eager.set_betas(betas(0.0))
    assert device_eager.generate(PROMPTS, 8) == stock_eager.generate(PROMPTS, 8)


def test_the_handshake_names_the_mode_and_no_problem(device_eager):
    device_eager.generate(PROMPTS[:1], 1)
    report = device_eager.handshake()
    assert report.problems == []
    assert {layer.mode.value for layer in report.layers} == {"zero"}
    assert all(layer.ran for layer in report.layers)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_prompts_are_counted_as_on_the_cpu_path(device_eager, ours_eager, level):
    # One token each: what follows would hang on the last bits of two summations.
    for device, cpu in zip(
        counted(device_eager, level, 1), counted(ours_eager, level, 1), strict=True
    ):
        assert device["tokens"] == cpu["tokens"] == sum(map(len, PROMPTS))
        # Later layers see inputs that differ in the last bits.
        assert device["skipped"] == pytest.approx(cpu["skipped"], abs=2)
        assert device["nonfinite"] == 0
        assert (device["steps"] > 0) == (level > 0)


def test_the_whole_skipped_weight_is_counted(device_eager):
    for layer in counted(device_eager, 1.0, 4):
        assert 0 < layer["skipped_weight"] < layer["skipped"] * 0.5 + 1e-6
        assert layer["distinct_experts"] <= 8 * layer["steps"]


def test_a_request_s_own_level_reaches_its_tokens_and_no_others(device_eager):
    levels = LevelTable(key="key", betas={100: betas(1.0)})
    device_eager.rpc("leanmoe_set_levels", levels.model_dump_json())
    device_eager.set_betas(betas(1.0))
    skipped = device_eager.generate(PROMPTS, 8)
    device_eager.set_betas(betas(0.0))
    exact = device_eager.generate(PROMPTS, 8)
    extras = [{"key": 100} if i % 3 == 1 else None for i in range(len(PROMPTS))]
    mixed = device_eager.arm.call("generate", prompts=PROMPTS, tokens=8, extras=extras)["ids"]
    assert mixed == [s if extra else e for s, e, extra in zip(skipped, exact, extras, strict=True)]
    assert any(s != e for s, e, extra in zip(skipped, exact, extras, strict=True) if extra)
    assert device_eager.generate(PROMPTS, 8) == exact


def accounts(engine):
    """Of all requests since the last question; the library numbers them."""
    names = RequestNames(names=[str(number) for number in range(5000)]).model_dump_json()
    answer = engine.rpc("leanmoe_request_counts", names)
    return RequestCounts.model_validate_json(answer).requests.values()


@pytest.mark.parametrize("engine", ["device_eager", "ours_eager"])
def test_accounts_of_requests_add_up_to_the_counters(engine, request):
    engine = request.getfixturevalue(engine)
    accounts(engine)
    layers = counted(engine, 0.5, 4)
    told = accounts(engine)
    assert len(told) == len(PROMPTS)
    assert sum(one.skipped for one in told) == sum(layer["skipped"] for layer in layers) > 0
    assert sum(one.routed for one in told) == sum(layer["routed"] for layer in layers)
    assert not accounts(engine)


# One prompt, whose tokens share a step in every engine; the interpreter takes a while for each.
FEW = PROMPTS[8:9]


@pytest.mark.parametrize(("level", "mode"), [(0.0, UnionMode.VANISH), (0.3, UnionMode.REDIRECT)])
def test_a_budget_leaves_out_and_moves_what_it_does_on_the_cpu_path(
    device_eager, ours_eager, mode, level
):
    union = UnionBudget(experts=LEAST, mode=mode)
    found, expected = (counted(one, level, 1, union, FEW) for one in (device_eager, ours_eager))
    for device, cpu in zip(found, expected, strict=True):
        assert device["tokens"] == cpu["tokens"]
        # Later layers see inputs that differ in the last bits.
        assert device["skipped"] == pytest.approx(cpu["skipped"], abs=2)
        assert device["substituted"] == pytest.approx(cpu["substituted"], abs=2)
    counted(ours_eager, 0.0, 1)


def test_a_budget_that_is_taken_back_leaves_nothing_behind(device_eager, stock_eager):
    assert all(one["skipped"] == 0 for one in counted(device_eager, 0.0, 1))
    assert device_eager.generate(PROMPTS, 8) == stock_eager.generate(PROMPTS, 8)


def test_a_budget_that_the_engine_was_not_started_for_is_refused(device_eager):
    with pytest.raises(LeanMoEError, match="start the server with --union-budget 2"):
        counted(device_eager, 0.0, 1, UnionBudget(experts=2))
