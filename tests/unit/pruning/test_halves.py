"""Whether two halves of the windows decide alike: what is recorded, said and repeated."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.methods.halves import compare_halves, half_of_tokens, sampled_part
from leanmoe_pruning.methods.saliency import SALIENCIES
from leanmoe_pruning.scores.bundle import ScoreBundle
from leanmoe_pruning.scores.gram import centred_gram
from leanmoe_pruning.scores.halves_record import HalfAgreement, Halves
from tests.golden.naee_data import CALIBRATION, CHECKPOINT
from tests.layer_scores import bare_scores

SHAPE = open_checkpoint(CHECKPOINT).shape
RULE = RouterRule.of(SHAPE)
WINDOW, E = 16, SHAPE.n_routed_experts


def layer_of(favourites: list[range], seed: int = 0):
    """Windows whose tokens prefer the experts of ``favourites`` by turns."""
    generator = torch.Generator().manual_seed(seed)
    tokens = WINDOW * len(favourites)
    logits_TE = torch.randn(tokens, E, generator=generator)
    for window, liked in enumerate(favourites):
        logits_TE[window * WINDOW : (window + 1) * WINDOW, list(liked)] += 8.0
    outputs_ETD = torch.randn(E, tokens, 12, generator=generator)
    weights_TE = logits_TE.softmax(-1)
    target_TD = (weights_TE.T[:, :, None] * outputs_ETD).sum(0)
    scores = bare_scores(RULE, logits_TE, centred_gram(outputs_ETD, target_TD))
    ones_TK = torch.ones(tokens, RULE.top_k)
    return replace(scores, output_norm_TK=ones_TK)


def compared(favourites: list[range]):
    windows = len(favourites)
    found = compare_halves([layer_of(favourites)], [(windows, WINDOW)], windows * WINDOW, SHAPE)
    assert found is not None
    return found


def test_windows_that_are_alike_decide_alike():
    found = compared([range(E // 2)] * 8)
    assert found.keep == E // 2 and found.chance == 0.5
    assert found.methods["frequency"].shared == found.methods["naee"].shared == 1.0
    assert found.methods["naee"].excess_loss == pytest.approx(0.0)
    assert set(found.methods) == {"naee", *SALIENCIES}
    assert not found.too_few() and "hardly change" in found.sentence()


def test_halves_that_want_other_experts_are_told():
    found = compared([range(E // 2), range(E // 2, E)] * 4)
    assert found.methods["frequency"].shared == found.methods["naee"].shared == 0.0
    assert found.methods["naee"].excess_loss > 1.0
    assert found.too_few() and "give more or longer text" in found.sentence()


def test_a_large_share_of_next_to_nothing_asks_for_no_more_windows():
    naee = HalfAgreement(shared=0.99, excess_loss=0.18)
    assert not Halves(keep=4, chance=0.5, methods={"naee": naee}).too_few()


def test_halves_take_turns_across_sources():
    second_T = half_of_tokens([(3, 2), (1, 4)])
    assert second_T.tolist() == [False, False, True, True, False, False, True, True, True, True]


def test_a_part_has_its_own_tokens_with_a_gram_matrix():
    scores = layer_of([range(2)] * 4)
    scores = replace(scores, output_gram_TP=scores.output_gram_TP[::8])
    row_T = half_of_tokens([(4, WINDOW)])
    part, batch_N = sampled_part(scores, row_T, torch.arange(4).repeat_interleave(WINDOW))
    assert batch_N.tolist() == [1, 1, 3, 3]
    rows = torch.tensor([16, 24, 48, 56])
    assert torch.equal(part.router_logits_TE, scores.router_logits_TE[rows])
    assert torch.equal(part.output_gram_TP, scores.output_gram_TP[rows // 8])


@pytest.mark.parametrize(("windows", "sampled"), [(1, WINDOW), (2, 1)])
def test_nothing_is_said_of_an_empty_half(windows, sampled):
    layers = [layer_of([range(2)] * windows)]
    assert compare_halves(layers, [(windows, WINDOW)], sampled, SHAPE) is None


def test_a_share_of_next_to_nothing_is_not_told_to_the_digit():
    dear, plain = (
        Halves(keep=4, chance=0.5, methods={"naee": HalfAgreement(shared=0.4, excess_loss=loss)})
        for loss in (2.7e7, 0.2)
    )
    assert "costs more than 10 times its own" in dear.sentence() and dear.too_few()
    assert "costs 20.0% more than its own" in plain.sentence()


def test_the_bundle_holds_it_and_prune_repeats_it(tmp_path, capsys):
    scores, out = tmp_path / "scores", tmp_path / "out"
    score = ["score", str(CHECKPOINT), "--data", f"{CALIBRATION}:2", "--json", "-o", str(scores)]
    assert main(score) == 0
    said = json.loads(capsys.readouterr().out)
    halves = ScoreBundle(scores).description.halves
    assert halves is not None and said["notes"] == [halves.sentence()]
    assert halves.too_few()
    prune = ["prune", str(CHECKPOINT), "--method", "frequency", "--keep", "4", "--json"]
    assert main([*prune, "--scores", str(scores), "-o", str(out)]) == 0
    assert halves.sentence() in json.loads(capsys.readouterr().out)["notes"]


def test_bundles_from_before_are_read(tmp_path, capsys):
    scores = tmp_path / "scores"
    assert main(["score", str(CHECKPOINT), "--data", f"{CALIBRATION}:1", "-o", str(scores)]) == 0
    path = scores / "scores.json"
    assert "halves" not in json.loads(path.read_text())
    assert ScoreBundle(scores).description.halves is None
