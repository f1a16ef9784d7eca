"""The curve interpolates betas, never promises better than it measured, and refuses nonsense."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from leanmoe.curve import CurvePoint, QualityCurve
from leanmoe.errors import LevelError
from leanmoe.policy import check_level, resolve_betas

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
    betas = CURVE.betas_at(level)
    below = max((p for p in CURVE.points if p.level <= level), key=lambda p: p.level)
    above = min((p for p in CURVE.points if p.level >= level), key=lambda p: p.level)
    for layer in LAYERS:
        assert below.betas[layer] - 1e-12 <= betas[layer] <= above.betas[layer] + 1e-12


def test_measured_levels_give_their_own_betas():
    for p in CURVE.points:
        assert CURVE.betas_at(p.level) == p.betas


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
    assert resolve_betas(level, LAYERS, None) == dict.fromkeys(LAYERS, level)


def test_a_level_between_needs_a_curve():
    with pytest.raises(LevelError, match="leanmoe curve"):
        resolve_betas(0.5, LAYERS, None)


def test_a_curve_for_other_layers_is_refused():
    with pytest.raises(LevelError, match="betas for 3 layers and the model has 2 MoE layers"):
        resolve_betas(0.5, (0, 1), CURVE)
