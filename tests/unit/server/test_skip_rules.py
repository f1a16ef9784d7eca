"""The rule that a level follows: from the curve to the workers, shown, forced, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from leanmoe.curve import CurvePoint, QualityCurve
from leanmoe.errors import InputError
from leanmoe.manifest import read_manifest, write_manifest
from leanmoe.messages import PolicyUpdate
from leanmoe.skip_rule import SkipRule
from leanmoe_server.fake_engine import FakeEngine
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import Target
from tests.tiny import write_tiny_curve, write_tiny_mixtral
from tests.unit.server.test_preflight import configure

PATH = "/v1/expert_skipping"
EXPERTS = 8


def with_rules(curve: QualityCurve) -> QualityCurve:
    """Norm at 0.5, static at 1, all three measured."""

    def by(rule: SkipRule) -> list[CurvePoint]:
        return [point.model_copy(update={"rule": rule}) for point in curve.points]

    measured = {rule: by(rule) for rule in SkipRule}
    norm, topk = measured[SkipRule.NORM], measured[SkipRule.TOPK]
    changes = {
        "factors": {layer: [0.5, 1.5] * (EXPERTS // 2) for layer in curve.layers},
        "points": [norm[0], norm[1], topk[2]],
        "measured": measured,
    }
    return curve.model_copy(update=changes)


@pytest.fixture
def of_rules(skip_model: SkipModel) -> SkipModel:
    assert skip_model.curve is not None
    return SkipModel((0, 1, 2, 3), with_rules(skip_model.curve))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "tiny"
    write_tiny_curve(write_tiny_mixtral(path, hidden=32, ffn=32))
    manifest = read_manifest(path)
    assert manifest is not None and manifest.curve is not None
    write_manifest(path, manifest.model_copy(update={"curve": with_rules(manifest.curve)}))
    return path


@pytest.mark.anyio
async def test_a_level_brings_its_rule_to_the_workers_and_is_shown_with_it(
    build_app, of_rules: SkipModel
) -> None:
    app = build_app(model=of_rules, target=Target(level=0.5))
    await app.service.control.start()
    worker = app.engine.workers[0]
    assert worker.policy.rule is SkipRule.NORM
    assert app.engine.factors.factors == of_rules.curve.factors
    assert app.engine.levels.rules[25] is app.engine.levels.rules[50] is SkipRule.NORM
    assert app.engine.levels.rules[100] is SkipRule.TOPK
    async with app.client() as client:
        shown = (await client.get(PATH)).json()
        assert (shown["rule"], shown["promise"]["rule"]) == ("norm", "norm")
        assert [point["rule"] for point in shown["curve"]] == ["norm", "norm", "topk"]
        changed = await client.put(PATH, json={"level": 1})
        assert changed.json()["rule"] == "topk" and worker.policy.rule is SkipRule.TOPK
        await app.service.poller.refresh()
        assert app.registry.get_sample_value("leanmoe_skip_rule", {"rule": "topk"}) == 1
        assert app.registry.get_sample_value("leanmoe_skip_rule", {"rule": "norm"}) == 0


@pytest.mark.anyio
async def test_a_curve_of_the_published_rule_sends_no_factors(build_app) -> None:
    app = build_app(target=Target(level=0.5))
    await app.service.control.start()
    assert app.engine.factors is None
    assert app.engine.workers[0].policy.rule is SkipRule.RATIO
    async with app.client() as client:
        shown = (await client.get(PATH)).json()
    assert shown["rule"] == shown["promise"]["rule"] == "ratio"


@pytest.mark.anyio
async def test_factors_go_first_and_a_server_whose_workers_lack_them_is_unready(
    build_app, of_rules: SkipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = build_app(model=of_rules)

    async def fails(factors):
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(app.engine, "set_factors", fails)
        await app.service.control.start()
        assert "factors of experts" in app.service.readiness.reasons[0]
        assert app.engine.levels is None
    async with app.client() as client:
        assert (await client.put(PATH, json={"level": 0.5})).status_code == 200
    assert app.engine.factors is not None and app.engine.levels is not None


@pytest.mark.anyio
async def test_a_worker_that_follows_another_rule_is_found_out(
    build_app, of_rules: SkipModel
) -> None:
    app = build_app(FakeEngine(workers=2), model=of_rules, target=Target(level=0.5))
    await app.service.control.start()
    held: PolicyUpdate = app.engine.workers[1].policy
    app.engine.workers[1].policy = held.model_copy(update={"rule": SkipRule.RATIO})
    await app.service.control.snapshot()
    (reason,) = app.service.readiness.reasons
    assert "level 0.5 by ratio, expected" in reason and "level 0.5 by norm" in reason


@pytest.mark.parametrize("rule", list(SkipRule))
def test_one_rule_can_be_asked_for_at_every_level(written: Path, rule: SkipRule) -> None:
    model = configure(written, "--skip-rule", rule).model
    for level in (0.25, 0.5, 1.0):
        assert model.curve.setting_at(level).rule is rule
    assert (model.factors is not None) == (rule is SkipRule.NORM)


@pytest.mark.parametrize("rule", [SkipRule.TOPK, SkipRule.NORM])
def test_a_rule_that_was_not_measured_is_refused(written: Path, tmp_path: Path, rule) -> None:
    model = Path(shutil.copytree(written, tmp_path / "model"))
    write_tiny_curve(model)
    assert configure(model, "--skip-rule", "ratio").model.curve is not None
    with pytest.raises(InputError, match=f"measured for ratio and not for {rule}: run `leanmoe"):
        configure(model, "--skip-rule", rule)
    (model / "leanmoe.json").unlink()
    assert configure(model, "--skip-rule", "ratio").model.curve is None
    with pytest.raises(InputError, match=f"{rule} needs a quality curve"):
        configure(model, "--skip-rule", rule)


def test_factors_of_another_number_of_experts_are_refused(written: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(written, tmp_path / "model"))
    manifest = read_manifest(model)
    factors = {layer: [1.0] * 7 for layer in range(4)}
    curve = manifest.curve.model_copy(update={"factors": factors})
    write_manifest(model, manifest.model_copy(update={"curve": curve}))
    with pytest.raises(InputError, match="factors of 7 experts for layer 0, which has 8"):
        configure(model)


@pytest.mark.parametrize("factor", [0.0, -1.0, None])
def test_a_factor_that_is_no_positive_number_is_named(written, tmp_path: Path, factor) -> None:
    model = Path(shutil.copytree(written, tmp_path / "model"))
    content = json.loads((model / "leanmoe.json").read_text())
    content["curve"]["factors"]["2"][3] = factor
    (model / "leanmoe.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"curve\.factors\.2\.3") as refused:
        configure(model)
    assert "\n" not in str(refused.value)
