"""Saliencies by hand, who stays by them, and what is said of experts nobody used."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from leanmoe.cli import main
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.methods.saliency import SALIENCIES, highest
from leanmoe_pruning.scores.gram import packed_size
from tests.golden.naee_data import CALIBRATION
from tests.layer_scores import bare_scores

# Three tokens, four experts, top-2; expert 3 is chosen by nobody.
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -9.0], [3.0, 0.0, 1.0, -9.0], [0.0, 2.0, 1.0, -9.0]])
NORMS = torch.tensor([[1.0, 4.0], [2.0, 8.0], [1.0, 16.0]])
SHARE = float(torch.tensor([1.0, 0.0]).softmax(-1)[0])  # of the first of two logits one apart
FAR = float(torch.tensor([2.0, 0.0]).softmax(-1)[0])


def scores(renormalize: bool = True):
    rule = RouterRule(top_k=2, renormalize=renormalize)
    return replace(bare_scores(rule, LOGITS, torch.zeros(3, packed_size(4))), output_norm_TK=NORMS)


# Assignments (token, expert, gate, norm): 0: 0 SHARE 1, 1 1-SHARE 4; 1: 0 FAR 2, 2 1-FAR 8;
# 2: 1 SHARE 1, 2 1-SHARE 16.
WEIGHTED = [SHARE + 2 * FAR, (1 - SHARE) * 4 + SHARE, (1 - FAR) * 8 + (1 - SHARE) * 16, 0.0]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("frequency", [2.0, 2.0, 2.0, 0.0]),
        ("ean", [1.5, 2.5, 12.0, 0.0]),
        ("man", [1.5, 2.5, 12.0, 0.0]),
        ("msan", [2.5, 8.5, 160.0, 0.0]),
        ("weighted-ean", WEIGHTED),
        ("reap", [one / 2 for one in WEIGHTED]),
        ("soft-activation", LOGITS.double().softmax(-1).mean(0).tolist()),
    ],
)
def test_by_hand(method, expected):
    found = SALIENCIES[method](scores(), "model")
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_three_readings_of_the_gate():
    raw = LOGITS.softmax(-1)
    expected = [float(raw[0, 0] + 2 * raw[1, 0]) / 2]
    for own, gate in ((True, "raw"), (False, "raw"), (False, "model")):
        found = SALIENCIES["reap"](scores(own), gate)
        assert found[:1].tolist() == pytest.approx(expected, rel=1e-6)
    for own, gate in ((True, "model"), (False, "renorm"), (True, "renorm")):
        found = SALIENCIES["reap"](scores(own), gate)
        assert found[0] == pytest.approx(WEIGHTED[0] / 2, rel=1e-6)


def test_of_equal_experts_the_lower_number_stays():
    assert highest([1.0, 2.0, 1.0, 2.0, 1.0], 3) == (0, 1, 3)
    assert highest([0.0] * 6, 2) == (0, 1)


def test_groups_keep_as_many_each():
    assert highest([9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0], 4, n_groups=2) == (0, 1, 6, 7)


def test_experts_no_token_reached_are_told_of(model, tmp_path, capsys):
    """Two tokens reach four experts at most."""
    save_file({"input_ids": torch.tensor([[5, 9]])}, tmp_path / "ids.safetensors")
    arguments = ["prune", str(model), "--method", "reap", "--keep", "4", "--json"]
    data = ["--data", str(tmp_path / "ids.safetensors"), "-o", str(tmp_path / "out")]
    assert main([*arguments, *data]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "no token reached" in said["notes"][0]
    idle = said["notes"][0].split("layer 0: ")[1].split(")")[0].split(", ")
    assert len(idle) >= 4
    # Of equal ones the lower numbers stay: those that go are the last of the idle.
    assert {int(one) for one in idle[-4:]}.isdisjoint(said["kept"]["0"])


@pytest.mark.parametrize(
    ("command", "consequence"),
    [
        (["score"], "are worth nothing to most methods and go first"),
        (["prune", "--method", "naee", "--keep", "4"], "count for nothing and go first"),
        (
            ["prune", "--method", "naee", "--keep", "4", "--variant", "progressive"],
            "count for nothing and go first",
        ),
        (
            ["prune", "--method", "naee", "--keep", "4", "--budget", "adaptive"],
            "count for nothing and go first",
        ),
        (
            ["prune", "--method", "naee", "--keep", "4", "--spread", "experts"],
            "count for nothing and go first",
        ),
        (["prune", "--method", "pairwise", "--keep", "4"], "count for nothing and go first"),
        (
            ["prune", "--method", "m-smoe", "--keep", "4"],
            "leave nothing in the experts they are merged into",
        ),
    ],
)
def test_so_they_are_by_all_that_decide_from_scores(
    model, tmp_path, capsys, caplog, command, consequence
):
    save_file({"input_ids": torch.tensor([[5, 9]])}, tmp_path / "ids.safetensors")
    name, *more = command
    data = ["--data", str(tmp_path / "ids.safetensors"), "-o", str(tmp_path / "out")]
    assert main([name, str(model), *more, *data, "--json"]) == 0
    notes = [one for one in json.loads(capsys.readouterr().out)["notes"] if "no token" in one]
    assert len(notes) == 1 and f"so they {consequence}; more or other --data" in notes[0]
    assert name == "score" or notes[0] in caplog.text  # score prints them with its result


def test_nothing_is_said_where_every_expert_was_reached(model, tmp_path, capsys):
    out = str(tmp_path / "scores")
    assert main(["score", str(model), "--data", CALIBRATION, "-o", out, "--json"]) == 0
    assert not [one for one in json.loads(capsys.readouterr().out)["notes"] if "no token" in one]


@pytest.mark.parametrize("method", sorted(SALIENCIES))
def test_a_bundle_gives_what_the_data_give(method, model, tmp_path):
    bundle = tmp_path / "scores"
    assert main(["score", str(model), "--data", CALIBRATION, "-o", str(bundle)]) == 0
    found = []
    for name, source in (("a", ["--scores", str(bundle)]), ("b", ["--data", CALIBRATION])):
        out = tmp_path / name
        arguments = ["prune", str(model), "--method", method, "--keep", "4", *source]
        assert main([*arguments, "-o", str(out)]) == 0
        found.append((out / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_without_scores_or_data(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prune", str(model), "--method", "reap", "--keep", "4", "-o", str(out)]) == 2
    assert "give --scores or --data" in capsys.readouterr().err and not out.exists()
