"""``leanmoe plan --preview``: experts ranked by their weights alone."""

from __future__ import annotations

import json

import pytest
import torch

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.errors import CheckpointError
from leanmoe_pruning.methods.weights.layer_weights import LayerWeights
from leanmoe_pruning.planning.preview import aimer, check_previewable
from tests.family_references import change_config
from tests.golden.naee_data import CHECKPOINT
from tests.tiny_families import write_tiny


def weights(*experts: list[float]) -> LayerWeights:
    held = [torch.tensor([one]) for one in experts]
    return LayerWeights({}, {"gate_proj": held, "up_proj": held, "down_proj": held})


def test_by_hand():
    """All weights alike give 1; one of two gives the mean 1/2 over the root of 1/2."""
    found = aimer(weights([2.0, -2.0], [3.0, 0.0], [0.0, 0.0]))
    assert found.tolist() == pytest.approx([1.0, 0.5**0.5, 0.0])


def planned(model, capsys, *more: str) -> dict:
    assert main(["plan", str(model), "--tflops", "1", "--json", "--preview", *more]) == 0
    return json.loads(capsys.readouterr().out)["preview"]


def test_the_lowest_scores_stay(capsys):
    found = planned(CHECKPOINT, capsys, "--keep", "5")
    assert set(found["kept"]) == {"5"}
    for layer, scores in found["scores"].items():
        order = sorted(range(8), key=lambda expert: (scores[expert], expert))
        assert found["kept"]["5"][layer] == sorted(order[:5])


@pytest.mark.parametrize("family", ["deepseek_v3", "granitemoe"])
def test_grouped_and_stacked_experts(family, tmp_path, capsys):
    found = planned(write_tiny(tmp_path / "model", family), capsys)
    ((keep, layers),) = found["kept"].items()
    assert all(len(own) == int(keep) for own in layers.values())
    if family == "deepseek_v3":
        size = len(next(iter(found["scores"].values()))) // 2
        assert all(sum(e < size for e in own) == int(keep) // 2 for own in layers.values())


def test_people_see_the_experts_that_stay(capsys):
    assert main(["plan", str(CHECKPOINT), "--tflops", "1", "--preview"]) == 0
    said = capsys.readouterr().out
    assert "keep 4:" in said and "  layer 2: " in said
    assert main(["plan", str(CHECKPOINT), "--tflops", "1"]) == 0
    assert "AIMER" not in capsys.readouterr().out


def test_four_bit_experts_are_refused(tmp_path, capsys):
    model = write_tiny(tmp_path / "model", "gpt_oss")
    change_config(model, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match="4-bit numbers, of which --preview reads nothing"):
        check_previewable(open_checkpoint(model))
