"""Layers chosen together: the least loss under each rule, and what the command makes of it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from leanmoe_pruning.budgets import spreading
from leanmoe_pruning.budgets.domains import Domains, identity
from leanmoe_pruning.budgets.offers import Offer, offer_of_experts, offer_of_sets
from leanmoe_pruning.budgets.spreading import LAYERS_OFF, spread
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.methods.naee.naee_spread import offer_of_subsets
from leanmoe_pruning.methods.selection import complement, pruned_subsets
from leanmoe_pruning.scores.gram import centred_gram
from tests.golden.naee_data import CALIBRATION, CHECKPOINT
from tests.layer_scores import bare_scores
from tests.tiny import write_tiny_mixtral

KEPT = [complement(gone, 4) for gone in pruned_subsets(4, 2)]


def offers(losses: list[list[float]], domains: int = 1) -> list[Offer]:
    """A layer per row, of four experts that keep two, each subset with its loss."""
    found = []
    for layer, row in enumerate(losses):
        losses_S = torch.tensor(row, dtype=torch.float64)
        losses_SD = losses_S[:, None].repeat(1, domains)
        found.append(offer_of_sets(layer, KEPT, losses_S, losses_SD, 4))
    return found


def counts(kept) -> list[int]:
    return [sum(expert in own for own in kept) for expert in range(4)]


ONE = ("all",)
LOSS = st.floats(0.0, 1.0, width=16)
TABLES = st.lists(st.lists(LOSS, min_size=6, max_size=6), min_size=1, max_size=5)


@settings(max_examples=40)
@given(TABLES)
def test_the_balanced_choice_is_the_best_of_all_balanced_ones(losses):
    chosen = spread(offers(losses), "experts", ONE, layers_off=0.5)
    mean = len(losses) / 2
    low, high = min(mean - 0.5, np.floor(mean)), max(mean + 0.5, np.ceil(mean))
    best = min(
        sum(losses[layer][place] for layer, place in enumerate(places))
        for places in itertools.product(range(6), repeat=len(losses))
        if all(low <= count <= high for count in counts([KEPT[place] for place in places]))
    )
    assert all(low <= count <= high for count in counts(chosen.kept))
    assert chosen.facts()["loss"] == pytest.approx(best, abs=1e-5)


@settings(max_examples=30)
@given(TABLES)
def test_without_a_rule_every_layer_decides_alone_the_first_of_equal_sets(losses):
    firsts = [KEPT[min(range(6), key=row.__getitem__)] for row in losses]
    assert list(spread(offers(losses), None, ONE).kept) == firsts


def test_by_hand():
    """Experts 0 and 1 would stay in all six layers; two layers pay least for a change."""
    plain = [0.1, 0.4, 0.5, 0.5, 0.5, 0.6]
    # The first subset drops 0 and 1, the last 2 and 3.
    losses = [[*reversed(plain)] for _ in range(6)]
    losses[2][0], losses[4][0] = 0.15, 0.2
    chosen = spread(offers(losses), "experts", ONE)
    assert counts(spread(offers(losses), None, ONE).kept) == [6, 6, 0, 0]
    assert counts(chosen.kept) == [4, 4, 2, 2]
    assert chosen.kept[2] == chosen.kept[4] == (2, 3)
    facts = chosen.facts()
    assert facts["layers_kept"] == [4, 4, 2, 2] and facts["slack_layers"] == LAYERS_OFF
    assert facts["layers_kept_alone"] == [6, 6, 0, 0]
    assert facts["loss"] == pytest.approx(4 * 0.1 + 0.15 + 0.2)
    assert facts["loss_of_layers_alone"] == pytest.approx(0.6)


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_no_domain_loses_more_than_its_share(seed):
    """Two domains, of which layers alone look at the first; all choices of four layers are tried.

    The least loss within the limit is found, and no limit is given that no choice keeps to.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = torch.rand(4, 6, 2, generator=generator, dtype=torch.float64)
    found = [
        offer_of_sets(layer, KEPT, 0.9 * own[:, 0] + 0.1 * own[:, 1], own, 4)
        for layer, own in enumerate(tables)
    ]
    facts = spread(found, "domains", ("a", "b")).facts()
    worst, losses = [], []
    for places in itertools.product(range(6), repeat=4):
        worst.append(float(tables[range(4), places].sum(0).max()) / 4)
        losses.append(sum(one.loss((own,)) for one, own in zip(found, places, strict=True)))
    fair = [loss for loss, most in zip(losses, worst, strict=True) if most <= facts["limit"] + 1e-6]
    most, share = max(facts["domain_loss"].values()), sum(facts["domain_loss_alone"].values()) / 2
    assert most <= facts["limit"] + 2e-6 and facts["loss"] <= min(fair) * 1.006
    assert share - 1e-6 <= facts["limit"] <= max(share, 1.03 * min(worst)) + 1e-6
    assert facts.get("loss_at_least", 0.0) <= min(fair) + 1e-6


def test_of_one_layer_the_limit_is_what_its_sets_allow():
    """Columns in parts would be fairer than any set; the two fairest are as bad as each other."""
    own = torch.tensor([[0.1, 0.6], [0.55, 0.2], *[[0.9, 0.9]] * 4], dtype=torch.float64)
    alone = torch.tensor([0.1, 0.3, *[0.9] * 4], dtype=torch.float64)
    facts = spread([offer_of_sets(0, KEPT, alone, own, 4)], "domains", ("a", "b")).facts()
    assert facts["domain_loss"] == {"a": 0.55, "b": 0.2}
    assert facts["limit"] == pytest.approx(0.55 * 1.02)
    assert facts["loss"] == facts["loss_at_least"] == 0.3


def test_a_programme_of_hours_ends_with_the_best_so_far_and_says_how_good_it_is(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    kept = [complement(gone, 8) for gone in pruned_subsets(8, 6)]
    found = []
    for layer in range(30):
        losses_SD = torch.rand(len(kept), 8, generator=generator, dtype=torch.float64)
        found.append(offer_of_sets(layer, kept, losses_SD[:, 0], losses_SD, 8))
    monkeypatch.setattr(spreading, "_MOST_COLUMNS_TRIED", 1)
    facts = spread(found, "domains", tuple("abcdefgh")).facts()
    assert facts["loss_of_layers_alone"] < facts["loss_at_least"] < facts["loss"]
    assert max(facts["domain_loss"].values()) < max(facts["domain_loss_alone"].values())


def test_single_experts_are_spread_by_their_scores():
    """Of equal scores the lower number stays where the rule allows it."""
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    found = [offer_of_experts(i, scores, scores[None] / 10, 2) for i in range(8)]
    chosen = spread(found, "experts", ONE)
    assert counts(chosen.kept) == [5, 5, 3, 3]
    assert all(len(own) == 2 for own in chosen.kept)
    assert chosen.facts()["loss_of_layers_alone"] == pytest.approx(8 * 0.3)
    assert chosen.facts()["loss_at_least"] == pytest.approx(chosen.facts()["loss"], abs=1e-5)


def test_groups_keep_as_many_each():
    scores = torch.tensor([9.0, 8.0, 2.0, 1.0])
    found = [offer_of_experts(i, scores, scores[None], 2, n_groups=2) for i in range(6)]
    for own in spread(found, "experts", ONE, layers_off=0.0).kept:
        assert len({expert // 2 for expert in own}) == 2


def test_many_experts_are_solved():
    generator = torch.Generator().manual_seed(0)
    found = []
    for layer in range(12):
        cover = torch.rand(4, 128, generator=generator, dtype=torch.float64) ** 4
        cover /= cover.sum(1, keepdim=True)
        scores = torch.rand(128, generator=generator) + torch.arange(128) / 64
        found.append(offer_of_experts(layer, scores, cover, 64))
    kept = spread(found, "experts", tuple("abcd")).kept
    counted = [sum(expert in own for own in kept) for expert in range(128)]
    assert min(counted) >= 6 - LAYERS_OFF and max(counted) <= 6 + LAYERS_OFF
    facts = spread(found, "domains", tuple("abcd")).facts()
    assert max(facts["domain_loss"].values()) <= facts["limit"] + 1e-3


def test_identity_is_one_for_specialists_by_number_and_none_for_shuffled_ones():
    generator = torch.Generator().manual_seed(1)
    same = [torch.eye(8, dtype=torch.float64) for _ in range(6)]
    assert identity(same) == pytest.approx(1.0 + 1.0 / 7.0)
    shuffled = [one[:, torch.randperm(8, generator=generator)] for one in same]
    assert abs(identity(shuffled)) < 0.3
    assert identity(same[:1]) == 0.0


def test_usage_and_coverage_by_hand():
    """Three tokens of two domains, top-2 of three experts, gates from equal logits."""
    logits = torch.tensor([[1.0, 1.0, -9.0], [1.0, -9.0, 1.0], [-9.0, 1.0, 1.0]])
    scores = bare_scores(RouterRule(top_k=2, renormalize=True), logits, torch.zeros(3, 10))
    ids = scores.routing().ids_TK
    scores.output_norm_TK.copy_(torch.where(ids == 0, 1.0, torch.where(ids == 1, 2.0, 4.0)))
    domains = Domains(("a", "b"), ((2, 1), (1, 1)))
    assert domains.usage(scores).tolist() == [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]
    assert domains.coverage(scores)[0].tolist() == pytest.approx([2 / 8, 2 / 8, 4 / 8])
    assert domains.coverage(scores)[1].tolist() == pytest.approx([0.0, 2 / 6, 4 / 6])


def test_losses_of_subsets_by_domain():
    """Per domain the same relative loss over its own batches; a sample may miss the last one."""
    generator = torch.Generator().manual_seed(5)
    rule, logits = RouterRule(top_k=1, renormalize=True), torch.randn(8, 4, generator=generator)
    outputs = torch.randn(4, 8, 3, generator=generator)
    target = outputs[logits.argmax(1), torch.arange(8)]
    scores = bare_scores(rule, logits, centred_gram(outputs, target))
    domains = Domains(("a", "b"), ((2, 2), (2, 2)))
    batches = torch.arange(8) // 2
    offer = offer_of_subsets(scores, 2, batches, domains)
    for column, kept in enumerate(KEPT):
        masked = torch.full_like(logits, float("-inf"))
        masked[:, list(kept)] = logits[:, list(kept)]
        gap = outputs[masked.argmax(1), torch.arange(8)] - target
        lost, whole = (one.view(4, -1).norm(dim=1).double() for one in (gap, target))
        assert offer.losses_C[column] == pytest.approx(float(lost.sum() / whole.sum()), abs=1e-6)
        by_domain = lost.view(2, 2).sum(1) / whole.view(2, 2).sum(1)
        assert offer.losses_CD[column].tolist() == pytest.approx(by_domain.tolist(), abs=1e-6)
    sampled = replace(scores, output_gram_TP=scores.output_gram_TP[::4].contiguous())
    assert offer_of_subsets(sampled, 2, torch.arange(8), domains).losses_CD.shape == (6, 2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Scores of two sources."""
    folder = tmp_path_factory.mktemp("spread")
    ids = load_file(CALIBRATION.split(":")[0])["calib_input_ids"]
    parts = []
    for name, rows in (("a", ids[:3]), ("b", ids[3:])):
        save_file({"input_ids": rows.contiguous()}, folder / f"{name}.safetensors")
        parts.append(str(folder / f"{name}.safetensors"))
    out = folder / "scores"
    assert main(["score", str(CHECKPOINT), "--data", ",".join(parts), "-o", str(out)]) == 0
    return str(out)


def prune(out, *more: str) -> int:
    return main(["prune", str(CHECKPOINT), "--keep", "4", "-o", str(out), *more])


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        (["naee"], "experts"),
        (["naee"], "domains"),
        (["naee", "--search", "greedy"], "experts"),
        (["reap"], "experts"),
        (["frequency"], "domains"),
        (["coverage"], "domains"),
    ],
)
def test_the_manifest_says_which_rule_was_in_force(method, rule, bundle, tmp_path):
    out, dump = tmp_path / "out", tmp_path / "dump"
    options = ["--method", *method, "--spread", rule, "--scores", bundle]
    assert prune(out, *options, "--dump", str(dump)) == 0
    facts = read_manifest(out).settings["spread"]
    assert facts["asked"] == facts["rule"] == rule
    assert len(facts["domain_loss"]) == 2 and -1.0 <= facts["identity"] <= 1.2
    assert json.loads((dump / "results.json").read_text())["spread"] == facts
    if rule == "experts":
        kept = read_manifest(out).kept.values()
        assert facts["layers_kept"] == [sum(e in own for own in kept) for e in range(8)]
        assert max(facts["layers_kept"]) <= 3


def test_the_scores_say_which_rule_is_taken(bundle, tmp_path):
    """The experts of this random model are no specialists by number."""
    assert prune(tmp_path / "out", "--method", "naee", "--scores", bundle, "--spread") == 0
    facts = read_manifest(tmp_path / "out").settings["spread"]
    assert facts["asked"] == "auto" and facts["rule"] == "domains"
    assert facts["identity"] < facts["experts_from"]


def test_a_rule_that_layers_alone_obey_changes_nothing(bundle, tmp_path):
    """Any count from 0 to 3 is within 1.5 of the mean of three layers."""
    for name, more in (("plain", []), ("spread", ["--spread", "experts"])):
        assert prune(tmp_path / name, "--method", "naee", "--scores", bundle, *more) == 0
    plain, spread_ = (read_manifest(tmp_path / name).kept for name in ("plain", "spread"))
    assert plain == spread_


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "random", "--spread"], "--method random does not choose layers together"),
        (["--method", "naee", "--spread", "--budget", "adaptive"], "drop one"),
        (["--method", "naee", "--spread", "--variant", "progressive"], "drop it or --spread"),
        (["--method", "naee", "--data", CALIBRATION, "--spread"], "score a mix of several"),
        (["--method", "reap", "--data", CALIBRATION, "--spread", "domains"], "these scores are of"),
    ],
)
def test_what_cannot_be_spread_is_refused(more, words, tmp_path, capsys):
    assert prune(tmp_path / "out", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_plan_is_not_spread(tmp_path, capsys):
    arguments = ["--plan", str(tmp_path / "plan.json"), "--spread", "-o", str(tmp_path / "out")]
    assert main(["prune", str(CHECKPOINT), *arguments]) == 2
    assert "--plan says what is cut and --spread was given too" in capsys.readouterr().err


def test_one_source_is_enough_for_balance_over_experts(tmp_path):
    options = ["--method", "reap", "--data", CALIBRATION, "--spread", "experts"]
    assert prune(tmp_path / "out", *options) == 0
    assert "identity" not in read_manifest(tmp_path / "out").settings["spread"]


def test_one_expert_of_many_is_chosen_as_from_every_subset(tmp_path):
    """Greedily nothing can be said of a layer's only one: without it no token has an expert."""
    model = write_tiny_mixtral(
        tmp_path / "model", layers=3, experts=13, top_k=1, hidden=64, ffn=32, dtype="float32"
    )
    parts = []
    for name in "ab":
        parts.append(str(tmp_path / f"{name}.safetensors"))
        ids = torch.arange(60).view(2, 30) * 7 + 31 * len(parts)
        save_file({"input_ids": ids % 256}, parts[-1])
    scores = str(tmp_path / "scores")
    assert main(["score", str(model), "--data", ",".join(parts), "-o", scores]) == 0
    for rule in ("experts", "domains"):
        found = []
        for search in ("greedy", "enumerate"):
            how = ["--method", "naee", "--keep", "1", "--spread", rule, "--search", search]
            out = tmp_path / f"{rule}-{search}"
            assert main(["prune", str(model), *how, "--scores", scores, "-o", str(out)]) == 0
            found.append(read_manifest(out).settings["spread"])
        assert found[0] == found[1]
