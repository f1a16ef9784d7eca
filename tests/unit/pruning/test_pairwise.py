"""Terms of pairs by hand, and the set without which they sum to least."""

from __future__ import annotations

import itertools

import pytest
import torch

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.methods import pairwise
from leanmoe_pruning.methods.pairwise import least_together, pair_terms
from leanmoe_pruning.scores.gram import centred_gram
from tests.golden.naee_data import CALIBRATION, CHECKPOINT
from tests.layer_scores import bare_scores


def test_terms_by_hand():
    """Two tokens of three experts, top-2; equal logits share the weight evenly."""
    outputs = torch.tensor([[[1.0, 0.0]] * 2, [[1.0, 2.0]] * 2, [[0.0, 3.0]] * 2])
    logits = torch.tensor([[0.0, 0.0, -90.0], [-90.0, 0.0, 0.0]])
    target = torch.tensor([[1.0, 1.0], [0.5, 2.5]])
    rule = RouterRule(top_k=2, renormalize=True)
    scores = bare_scores(rule, logits, centred_gram(outputs, target))
    expected = torch.tensor([[1.0, 1.0, 0.0], [1.0, 10.0, 6.0], [0.0, 6.0, 9.0]]) / 4
    assert torch.allclose(pair_terms(scores), expected.double(), atol=1e-6)


def test_experts_that_undo_each_other_go_together():
    """Alone 0 loses least; 1 and 2 cancel where both are used, so both can go."""
    terms = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, -2.9], [0.0, -2.9, 3.0]])
    assert least_together(terms.double(), 1) == (0,)
    assert least_together(terms.double(), 2) == (1, 2)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_elimination_and_swaps_reach_the_best_set_or_nearly(n_groups, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    ends = []
    for _ in range(20):
        root = torch.randn(8, 6, generator=generator, dtype=torch.float64)
        terms = root @ root.T
        exact = least_together(terms, 4, n_groups)
        monkeypatch.setattr(pairwise, "_TRIED", 0)
        found = least_together(terms, 4, n_groups)
        monkeypatch.undo()
        assert len(found) == 4
        assert sum(expert < 4 for expert in found) == 2 or n_groups == 1
        ends.append(lost(terms, found) / lost(terms, exact))
        assert all(lost(terms, other) >= lost(terms, found) for other in near(found, n_groups))
    assert min(ends) >= 1.0 - 1e-9 and sum(end < 1.0 + 1e-9 for end in ends) >= 10


def lost(terms: torch.Tensor, kept) -> float:
    gone = [expert for expert in range(len(terms)) if expert not in kept]
    return float(terms[gone][:, gone].sum())


def near(kept, n_groups: int):
    """Sets one swap away."""
    size = 8 // n_groups
    gone = [expert for expert in range(8) if expert not in kept]
    for out, back in itertools.product(kept, gone):
        if out // size == back // size:
            yield sorted({*kept, back} - {out})


def test_through_the_command(tmp_path):
    arguments = ["--method", "pairwise", "--keep", "4", "--data", CALIBRATION]
    assert main(["prune", str(CHECKPOINT), *arguments, "-o", str(tmp_path / "out")]) == 0
    assert {len(kept) for kept in read_manifest(tmp_path / "out").kept.values()} == {4}
