"""``leanmoe curve`` on the golden models: median betas and skip counts as the published code's."""

from __future__ import annotations

import json
import shutil

import pytest

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from tests.golden.naee_data import CALIBRATION, CHECKPOINT, PROBE, golden, golden_json


@pytest.fixture(params=["full", "layerwise_r6", "layerwise_r4"])
def measured(request, pruned, tmp_path, capsys):
    """A model's name, a copy of it with a curve, and what the command printed."""
    model = tmp_path / "model"
    shutil.copytree(CHECKPOINT if request.param == "full" else pruned[request.param][0], model)
    capsys.readouterr()
    arguments = ["curve", str(model), "--calibration", CALIBRATION, "--data", PROBE, "--json"]
    assert main(arguments) == 0
    return request.param, model, json.loads(capsys.readouterr().out)


def test_median_betas_and_the_half_level(measured):
    name, model, _ = measured
    curve = read_manifest(model).curve
    expected = golden()[f"betas.{name}"].tolist()
    assert list(curve.median_betas.values()) == pytest.approx(expected, rel=2e-5)
    assert curve.setting_at(0.5).betas == curve.median_betas


def test_skip_counts_at_the_median(measured):
    name, _, printed = measured
    point = next(point for point in printed["points"] if point["level"] == 0.5)
    expected = golden_json()["skipping"][f"{name}_skip"]["probe_tokens_with_second_expert_skipped"]
    assert list(point["skipped_by_layer"].values()) == expected
    assert printed["routed_per_layer"] == 80
    assert point["skip_rate"] == pytest.approx(sum(expected) / (80 * len(expected)))


def test_ends_of_the_curve(measured):
    _, model, _ = measured
    curve = read_manifest(model).curve
    assert [point.level for point in curve.points] == pytest.approx([i / 10 for i in range(11)])
    exact, top1 = curve.points[0], curve.points[-1]
    assert (exact.skip_rate, exact.kld, exact.kld_upper, exact.top1_agreement) == (0, 0, 0, 1)
    assert set(exact.betas.values()) == {0.0}
    assert set(top1.betas.values()) == {1.0}
    assert top1.skip_rate == 0.5
    rates = [point.skip_rate for point in curve.points]
    assert rates == sorted(rates)
    assert all(point.kld_upper >= point.kld for point in curve.points)
    assert curve.points[-1].kld > curve.points[1].kld
