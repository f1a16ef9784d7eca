"""The comparison of skip rules: at equal rates, paired with the published rule."""

from __future__ import annotations

import json

import pytest
import torch

from leanmoe.cli import main
from leanmoe.skip_rule import SkipRule
from leanmoe_bench.skip_rules import RATES, UnscaledStream
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.forward.stream import DecoderStream
from tests.tiny_families import write_tiny


def test_every_rule_is_measured_at_every_rate_beside_the_published_one(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("leanmoe_bench.skip_rules.DOMAINS", ("gen", "c"))
    model = write_tiny(tmp_path / "model", "olmoe")
    options = ["--model", str(model), "--windows", "2", "--calibration", "2", "--json"]
    capsys.readouterr()
    assert main(["bench", "skip-rules", *options]) == 0
    rows = json.loads(capsys.readouterr().out)["rates"]
    assert [row["skip_rate"] for row in rows] == list(RATES)
    for row in rows:
        assert (row["windows"], set(row["rules"])) == (4, set(SkipRule))
        found = row["rules"]
        for one in found.values():
            assert one["skip_rate"] == pytest.approx(row["skip_rate"], abs=0.04)
            low, high = one["interval"]
            assert low <= one["kld_less_ratios"] <= high
        assert found["ratio"]["kld_less_ratios"] == 0.0
        least = min(found.values(), key=lambda one: one["kld"])
        assert found[row["best"]] == least
        share = least["kld"] / found["ratio"]["kld"]
        assert row["kld_of_best_over_ratio"] == pytest.approx(share)


@pytest.mark.parametrize("name", ["windows", "calibration"])
def test_no_windows_are_refused(name, capsys):
    assert main(["bench", "skip-rules", f"--{name}", "0"]) == 2
    assert f"--{name} is 0, expected 1 or more" in capsys.readouterr().err


@torch.inference_mode()
def test_unscaled_weights_are_the_router_s_until_an_expert_is_skipped_and_after(tmp_path):
    model = open_model(write_tiny(tmp_path / "model", "mixtral", dtype="float32"))
    scaled, unscaled = DecoderStream(model).layer(0), UnscaledStream(model).layer(0)
    logits = torch.randn(20, scaled.shape.n_routed_experts, generator=torch.manual_seed(0))
    plain, left = scaled.route(logits), unscaled.route(logits)
    torch.testing.assert_close(left.applied(), plain.applied())
    keep = plain.kept(1.0)
    assert torch.equal(left.applied(keep)[:, 0], left.applied()[:, 0])
    assert bool((plain.applied(keep)[:, 0] > left.applied()[:, 0]).all())
