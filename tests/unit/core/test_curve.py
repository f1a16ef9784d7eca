"""The curve interpolates betas, never promises better than it measured, and refuses nonsense."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from leanmoe.curve import CurvePoint, QualityCurve
from leanmoe.errors import LevelError
from leanmoe.policy import check_level, resolve_setting
from leanmoe.skip_rule import SkipRule

LAYERS = (0, 1, 5)


def point(level: float, kld: float) -> CurvePoint:
    return CurvePoint(
        level=level,
        betas=dict.fromkeys(LAYERS, level * (1.0 if level == 1.0 else 0.8)),
        skip_rate=level / 2,
        kld=kld,
        kld_upper=kld * 1.5,
        top1_agreement=1 - kld,
        perplexity=10 + kld,
    )


def curve(*points: tuple[float, float]) -> QualityCurve:
    return QualityCurve(
        rule="test",
        data="test",
        calibration="test",
        calibration_digest="sha256:0",
        tokens=1,
        median_betas=dict.fromkeys(LAYERS, 0.4),
        points=[point(*p) for p in points],
    )


CURVE = curve((0.0, 0.0), (0.5, 0.02), (0.8, 0.01), (1.0, 0.1))


@given(st.floats(0, 1))
def test_betas_lie_between_their_neighbours(level):
    betas = CURVE.setting_at(level).betas
    below = max((p for p in CURVE.points if p.level <= level), key=lambda p: p.level)
    above = min((p for p in CURVE.points if p.level >= level), key=lambda p: p.level)
    for layer in LAYERS:
        assert below.betas[layer] - 1e-12 <= betas[layer] <= above.betas[layer] + 1e-12


def test_measured_levels_give_their_own_betas():
    for p in CURVE.points:
        assert CURVE.setting_at(p.level).betas == p.betas


@pytest.mark.parametrize(
    ("max_kld", "level"), [(0.0, 0.0), (0.029, 0.0), (0.03, 0.8), (0.149, 0.8), (0.16, 1.0)]
)
def test_max_kld_never_steps_over_a_level_that_is_too_bad(max_kld, level):
    assert CURVE.level_for_max_kld(max_kld) == level


@pytest.mark.parametrize("max_kld", [-0.1, float("nan")])
def test_a_max_kld_that_is_no_distance_is_refused(max_kld):
    with pytest.raises(LevelError, match=str(max_kld)):
        CURVE.level_for_max_kld(max_kld)


def test_quality_between_points_is_the_worse_neighbour():
    assert CURVE.point_at(0.6).level == 0.8
    assert CURVE.point_at(0.5).level == 0.5


@pytest.mark.parametrize(
    "points", [((0.0, 0.0), (0.5, 0.1)), ((0.5, 0.0), (1.0, 0.1)), ((0.0, 0), (1.0, 0), (0.5, 0))]
)
def test_a_curve_that_does_not_rise_from_exact_to_top_one_is_refused(points):
    with pytest.raises(ValidationError, match="levels must rise from 0 to 1"):
        curve(*points)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
@pytest.mark.parametrize("name", ["kld", "kld_upper", "perplexity"])
def test_a_figure_that_is_no_measurement_is_refused(name, value):
    """NaN compares as under any limit: a curve that held one would promise everything."""
    with pytest.raises(ValidationError):
        CurvePoint.model_validate({**point(0.5, 0.02).model_dump(), name: value})


def test_a_beta_above_one_is_refused():
    with pytest.raises(ValidationError, match=r"beta of layer 3 is 1\.5"):
        CurvePoint(
            level=1.0,
            betas={3: 1.5},
            skip_rate=0,
            kld=0,
            kld_upper=0,
            top1_agreement=1,
            perplexity=1,
        )


@pytest.mark.parametrize(
    "level", [-0.1, 1.1, float("nan"), float("inf"), 10**400, True, "0.5", None]
)
def test_levels_outside_the_range_are_refused(level):
    with pytest.raises(LevelError):
        check_level(level)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_the_two_ends_need_no_curve(level):
    setting = resolve_setting(level, LAYERS, None)
    assert (setting.rule, setting.betas) == (SkipRule.RATIO, dict.fromkeys(LAYERS, level))


def test_a_level_between_needs_a_curve():
    with pytest.raises(LevelError, match="leanmoe curve"):
        resolve_setting(0.5, LAYERS, None)


def test_a_curve_for_other_layers_is_refused():
    with pytest.raises(LevelError, match="betas for 3 layers and the model has 2 MoE layers"):
        resolve_setting(0.5, (0, 1), CURVE)


def by(rule: SkipRule, level: float, kld: float = 0.01) -> CurvePoint:
    return point(level, kld).model_copy(update={"rule": rule})


def of_rules(**changes: object) -> QualityCurve:
    """Norm up to the middle, then static; all three measured."""
    measured = {
        rule: [by(rule, 0.0, 0.0), *(by(rule, level) for level in (0.5, 0.8, 1.0))]
        for rule in SkipRule
    }
    norm, topk = measured[SkipRule.NORM], measured[SkipRule.TOPK]
    content = {
        **curve((0.0, 0.0), (1.0, 0.1)).model_dump(),
        "factors": {key: [0.5, 1.5] for key in LAYERS},
        "points": [norm[0], norm[1], topk[2], topk[3]],
        "measured": measured,
        **changes,
    }
    return QualityCurve.model_validate(content)


def test_a_curve_without_rules_is_of_the_published_one_and_keeps_its_bytes():
    content = CURVE.model_dump(mode="json")
    assert "factors" not in content and "measured" not in content
    assert all("rule" not in one for one in content["points"])
    assert CURVE.rules == [SkipRule.RATIO]
    assert QualityCurve.model_validate(content) == CURVE


def test_rules_and_factors_survive_being_written():
    assert QualityCurve.model_validate_json(of_rules().model_dump_json()) == of_rules()
    assert of_rules().rules == list(SkipRule)


@given(st.floats(0, 1))
def test_between_rules_the_lower_point_holds(level):
    mixed, setting = of_rules(), of_rules().setting_at(level)
    assert setting.rule is (SkipRule.NORM if level < 0.8 else SkipRule.TOPK)
    if 0.5 <= level < 0.8:
        assert setting == mixed.points[1].setting
    skipping = [mixed.setting_at(one).betas[0] for one in sorted([level, 0.3, 0.6, 0.9])]
    assert skipping == sorted(skipping)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_the_ends_of_a_curve_follow_its_rule(level):
    setting = resolve_setting(level, LAYERS, of_rules())
    assert setting.rule is (SkipRule.TOPK if level else SkipRule.NORM)
    assert setting.betas == dict.fromkeys(LAYERS, level)


def test_one_rule_is_taken_where_it_was_measured():
    for rule in SkipRule:
        assert {one.rule for one in of_rules().by_rule(rule).points} == {rule}
    assert CURVE.by_rule(SkipRule.RATIO) == CURVE
    with pytest.raises(LevelError, match="measured for ratio and not for topk: run `leanmoe curve"):
        CURVE.by_rule(SkipRule.TOPK)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factors": None}, "no factors"),
        ({"factors": {key: [1.0] for key in LAYERS[:2]}}, "factors must name the layers"),
        ({"factors": {key: [1.0, 0.0] for key in LAYERS}}, "greater than"),
        ({"factors": {key: [1.0, float("nan")] for key in LAYERS}}, "finite"),
        ({"measured": {SkipRule.TOPK: [by(SkipRule.TOPK, 0.0)]}}, "levels must rise"),
    ],
)
def test_rules_without_what_they_need_are_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        of_rules(**changes)
