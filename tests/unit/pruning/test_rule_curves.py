"""``leanmoe curve`` of several rules: all measured, the best kept, factors of text or bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from leanmoe.cli import main
from leanmoe.curve import CurvePoint
from leanmoe.manifest import read_manifest
from leanmoe.skip_rule import SkipRule
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.evaluation.expert_factors import factors_of
from leanmoe_pruning.evaluation.quality_curve import best_points
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.stream import DecoderStream
from tests.planned_models import write_planned
from tests.tiny import write_tiny_mixtral
from tests.tiny_families import write_tiny

TOP_K = 4
WORDS = "the water and people of a long day go home see time look write number "


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("text")
    for name, start in (("calibration", 0), ("heldout", 7)):
        (path / name).write_text((WORDS[start:] + WORDS[start // 2 :]) * 12)
    texts = ["--calibration", str(path / "calibration"), "--data", str(path / "heldout")]
    return [*texts, "--window", "32", "--levels", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("olmoe") / "model", "olmoe", dtype="float32")


def curve_of(model: Path, data: list[str], *more: str):
    assert main(["curve", str(model), *data, *more]) == 0
    return read_manifest(model).curve


@torch.inference_mode()
def mean_norms(model: Path, text: str) -> dict[int, torch.Tensor]:
    """Mean norm of every expert's outputs over the tokens routed to it, one by one."""
    from leanmoe_pruning.data import load_data

    opened, found = open_model(model), {}
    ids = load_data(text, opened, "calibration", window=32).ids
    stream = DecoderStream(opened)
    hidden = embed_all(stream, ids)
    for layer in stream.layers():
        before = [part.clone() for part in hidden]
        for part in before:
            layer.attend_(part)
        x = torch.cat([layer.block_input(part) for part in before])
        chosen = layer.route(layer.router_logits(x)).ids_TK
        norms = [layer.experts.output(e, x).norm(dim=-1) for e in range(len(layer.experts))]
        found[layer.index] = torch.stack(
            [norm[(chosen == e).any(-1)].mean() for e, norm in enumerate(norms)]
        )
        step_(layer, hidden)
    return found


def test_all_rules_are_measured_and_each_level_keeps_the_best(model, data, capsys):
    curve = curve_of(model, data)
    assert set(curve.measured) == set(SkipRule) == set(curve.rules)
    for rule, points in curve.measured.items():
        assert {point.rule for point in points} == {rule}
        assert [point.level for point in points] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-5)
    rates = [point.skip_rate for point in curve.points]
    assert rates == sorted(rates) and rates[-1] == (TOP_K - 1) / TOP_K
    for point in curve.points[1:]:
        assert point in curve.measured[point.rule]
    last = [points[-1].kld for points in curve.measured.values()]
    assert curve.points[-1].kld == min(last)
    static = curve.measured[SkipRule.TOPK]
    assert [point.skip_rate for point in static] == pytest.approx([0, 0.25, 0.5, 0.75], abs=1e-4)
    said = capsys.readouterr().out
    assert "rule" in said and curve.points[1].rule in said
    assert main(["eval", str(model), *data[2:6], "--skip-level", "0.666667", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (domain,) = found["domains"].values()
    assert found["skip_rate"] == pytest.approx(curve.points[2].skip_rate)
    assert domain["perplexity"] == pytest.approx(curve.points[2].perplexity, rel=1e-6)


def test_factors_are_mean_output_norms_measured_or_from_a_bundle(model, data, tmp_path, capsys):
    measured = curve_of(model, data, "--skip-rule", "norm").factors
    for layer, norms in mean_norms(model, data[1]).items():
        reached = norms.nan_to_num(nan=float(norms.nanmean()))
        expected = reached / norms.nanmean()
        assert measured[layer] == pytest.approx(expected.tolist(), rel=1e-4)
    scores = tmp_path / "scores"
    scored = ["--data", data[1], "--window", "32", "-o", str(scores)]
    assert main(["score", str(model), *scored]) == 0
    bundled = curve_of(model, data, "--skip-rule", "norm", "--scores", str(scores)).factors
    assert bundled.keys() == measured.keys()
    for layer, factors in bundled.items():
        assert factors == pytest.approx(measured[layer], rel=1e-4)
    assert main(["curve", str(model), *data, "--skip-rule", "ratio", "--scores", str(scores)]) == 2
    assert "--scores says how much experts put out" in capsys.readouterr().err


def test_factors_follow_the_experts_that_a_cut_keeps(model, data, tmp_path):
    scores, lean = tmp_path / "scores", tmp_path / "lean"
    scored = ["--data", data[1], "--window", "32", "-o", str(scores)]
    assert main(["score", str(model), *scored]) == 0
    whole = curve_of(model, data, "--skip-rule", "norm", "--scores", str(scores)).factors
    cut = ["--method", "reap", "--keep", "6", "--scores", str(scores), "-o", str(lean)]
    assert main(["prune", str(model), *cut]) == 0
    kept = read_manifest(lean).kept
    assert any(ids != list(range(6)) for ids in kept.values())
    found = curve_of(lean, data, "--skip-rule", "norm", "--scores", str(scores)).factors
    for layer, ids in kept.items():
        of_whole = torch.tensor([whole[layer][expert] for expert in ids])
        assert found[layer] == pytest.approx((of_whole / of_whole.mean()).tolist(), rel=1e-2)


def test_layers_that_differ_have_as_many_factors_as_experts(data, tmp_path, capsys):
    source, lean = write_tiny(tmp_path / "source", "mixtral", dtype="float32"), tmp_path / "lean"
    write_planned(source, lean)
    assert curve_of(lean, data).rules == [SkipRule.RATIO]
    curve, layers = curve_of(lean, data, "--skip-rule", "best"), open_model(lean).layers
    assert curve.layers == list(open_model(lean).skip_layers)
    counts = {layer: len(factors) for layer, factors in curve.factors.items()}
    assert counts == {layer: layers[layer].n_experts for layer in curve.layers}
    assert len(set(counts.values())) > 1
    scored = ["--data", data[1], "--window", "32", "-o", str(tmp_path / "scores")]
    assert main(["score", str(source), *scored]) == 0
    asked = ["--skip-rule", "norm", "--scores", str(tmp_path / "scores")]
    assert main(["curve", str(lean), *data, *asked]) == 2
    assert "leave --scores out, and the curve measures them" in capsys.readouterr().err
    other = write_tiny_mixtral(tmp_path / "other", layers=3, hidden=32, ffn=32, seed=1)
    asked = ["--skip-rule", "norm", "--scores", str(tmp_path / "scores")]
    assert main(["curve", str(other), *data, *asked]) == 2
    assert "was made from another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("means", "tokens", "factors"),
    [
        ([1.0, 3.0], [5, 5], [0.5, 1.5]),
        ([2.0, 0.0, 6.0], [5, 0, 5], [0.5, 1.0, 1.5]),
        ([0.0, 4.0], [5, 5], [1e-6, 2.0]),
        ([0.0, 0.0], [5, 5], [1.0, 1.0]),
        ([0.0, 0.0], [0, 0], [1.0, 1.0]),
    ],
)
def test_every_factor_is_positive(means, tokens, factors):
    assert factors_of(torch.tensor(means), torch.tensor(tokens)) == pytest.approx(factors)


def points(rule: SkipRule, *figures: tuple[float, float, float]) -> list[CurvePoint]:
    return [
        CurvePoint(
            level=level,
            rule=rule,
            betas={0: level},
            skip_rate=rate,
            kld=kld,
            kld_upper=kld,
            top1_agreement=1.0,
            perplexity=1.0,
        )
        for level, rate, kld in ((0.0, 0.0, 0.0), *figures)
    ]


def test_rules_are_compared_at_an_equal_skip_rate_and_no_level_skips_less():
    measured = {
        # Cheaper at 0.5 only because it skips less there.
        SkipRule.RATIO: points(SkipRule.RATIO, (0.5, 0.2, 0.02), (0.8, 0.45, 0.2), (1.0, 0.5, 0.3)),
        SkipRule.NORM: points(SkipRule.NORM, (0.5, 0.3, 0.03), (0.8, 0.4, 0.06), (1.0, 0.5, 0.2)),
        # Better than both at 0.8, where it skips less than what 0.5 does.
        SkipRule.TOPK: points(SkipRule.TOPK, (0.5, 0.2, 0.1), (0.8, 0.25, 0.001), (1.0, 0.5, 0.1)),
    }
    chosen = best_points(measured)
    rules = [point.rule for point in chosen]
    assert rules == [SkipRule.NORM, SkipRule.NORM, SkipRule.NORM, SkipRule.TOPK]
    assert [point.skip_rate for point in chosen] == [0.0, 0.3, 0.4, 0.5]
