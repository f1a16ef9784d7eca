"""Columns grouped in another order: what must hold of the order, and of a model pruned by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmoe.cli import main
from leanmoe.errors import CheckpointError
from leanmoe.input_orders import (
    INPUT_ORDERS_NAME,
    order_name,
    read_input_orders,
    write_input_orders,
)
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.cutting.cutter import Cutter
from leanmoe_pruning.cutting.layer_plan import LayerPlan
from leanmoe_pruning.forward.experts import swiglu
from leanmoe_pruning.methods.weights.layer_weights import LayerWeights, read_layer
from leanmoe_pruning.methods.weights.ordering import balanced_order, kept_score
from leanmoe_pruning.methods.weights.pattern import OfEvery, keep_in_order
from tests.golden.moe_pruner_data import CALIBRATION, CHECKPOINT
from tests.tiny_families import FAMILY_NAMES, write_tiny

PATTERN = OfEvery(8, 16)
PERMUTED = ("--pattern", "8:16", "--permute")
DATA = ("--data", CALIBRATION)


def prune(model: Path, out: Path, *options: str) -> int:
    return main(["prune", str(model), *options, "-o", str(out)])


def layers_of(path: Path) -> dict[int, LayerWeights]:
    checkpoint = open_model(path)
    return {i: read_layer(checkpoint.reader, checkpoint, i) for i in checkpoint.layers}


def uneven(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Scores whose columns differ, neighbours alike, as a model's do."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(columns, generator=generator).cumsum(0) / columns + 0.5
    return torch.rand(rows, columns, generator=generator) * strength


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    groups=st.integers(1, 6),
    pattern=st.sampled_from([OfEvery(16, 32), OfEvery(8, 32), OfEvery(24, 32), OfEvery(2, 4)]),
)
def test_an_order_has_every_column_and_keeps_no_less(seed, groups, pattern):
    score = uneven(24, groups * pattern.group, seed)
    order = balanced_order(score, pattern, seed)
    assert torch.equal(order.sort()[0], torch.arange(score.shape[1]))
    assert kept_score(score[:, order], pattern) >= kept_score(score, pattern)
    keep = keep_in_order(pattern, score, score, order)
    pattern.check_followed(keep.float(), order, "a test")
    assert (keep.sum(1) == groups * pattern.kept).all()
    assert torch.equal(order, balanced_order(score, pattern, seed))


def test_the_search_wins_back_most_of_what_groups_cost_uneven_columns():
    """Columns of one group that are all strong or all weak: the worst for a pattern."""
    score = torch.rand(64, 256, generator=torch.Generator().manual_seed(0))
    score *= torch.linspace(0.2, 2.0, 256)
    best = float(score.topk(128, dim=1)[0].double().square().sum())
    pattern = OfEvery(16, 32)
    plain = best - kept_score(score, pattern)
    ordered = best - kept_score(score[:, balanced_order(score, pattern, 0)], pattern)
    assert ordered < 0.1 * plain


def test_rows_count_by_what_they_can_lose():
    """Two columns of one group: each way to pair four has rows that lose by it."""
    large, small = [1.0, 0.9, 0.1, 0.2], 1e-3
    apart = [[large[i] for i in places] for places in ((0, 1, 2, 3), (0, 2, 1, 3), (0, 2, 3, 1))]
    score = torch.tensor([apart[0]] * 4 + [[small * x for x in row] for row in apart[1:]] * 8)
    # Rows that lose a thousand times as much part columns 0 and 1, though most want 0 with 1.
    pairs = balanced_order(score, OfEvery(1, 2), 0).view(2, 2).tolist()
    assert [0, 1] not in pairs and [1, 0] not in pairs


def test_rows_of_zeros_have_no_say():
    score = torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
    score[:, 32:] = 0
    order = balanced_order(torch.cat([score, torch.zeros(8, 64)]), OfEvery(16, 32), 0)
    assert torch.equal(order.sort()[0], torch.arange(64))
    assert (order[:32] < 32).sum() == 16


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_hidden_channels_change_places_and_the_function_stays(name, tmp_path):
    model = open_model(write_tiny(tmp_path / "model", name))
    layer = next(iter(model.layers))
    weights = read_layer(model.reader, model, layer)
    x_TD = torch.randn(5, model.shape.hidden_size, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(model.shape.expert_ffn_size, generator=torch.Generator().manual_seed(1))
    before = expert_output(weights, 1, x_TD)
    weights.reorder_hidden_(1, order)
    torch.testing.assert_close(expert_output(weights, 1, x_TD), before)
    assert not torch.equal(order, torch.arange(len(order)))


def expert_output(weights: LayerWeights, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
    """A SwiGLU of the views; where there are biases, they come in as one more column of ones."""
    gate, up, down = (
        weights.views[name][expert].double() for name in ("gate_proj", "up_proj", "down_proj")
    )
    x_TD = x_TD.double()
    if weights.per_hidden:
        gate, up = (
            torch.cat([matrix, bias[:, None].double()], 1)
            for matrix, bias in zip((gate, up), weights.per_hidden[expert], strict=True)
        )
        x_TD = torch.cat([x_TD, torch.ones(len(x_TD), 1, dtype=torch.float64)], 1)
    return swiglu(x_TD, gate, up) @ down.t()


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sparse") / "out"
    assert prune(CHECKPOINT, out, "--method", "moe-pruner", *PERMUTED, *DATA) == 0
    return out


def check_balanced(path: Path) -> dict[str, np.ndarray]:
    """Every matrix follows the pattern, gate and up projection in the order beside them."""
    model = open_model(path)
    orders = read_input_orders(path, model.shape.hidden_size)
    for layer, weights in layers_of(path).items():
        for projection, views in weights.views.items():
            for expert, view in enumerate(views):
                order = None
                if projection != "down_proj":
                    order = torch.from_numpy(orders[order_name(model.family, layer, expert)])
                    order = order.long()
                PATTERN.check_followed(view, order, f"{projection} {expert} of layer {layer}")
    return orders


@pytest.mark.parametrize("method", ["moe-pruner", "wanda", "magnitude", "sparsegpt"])
def test_every_method_balances_each_matrix_in_its_order(method, tmp_path):
    data = () if method == "magnitude" else DATA
    assert prune(CHECKPOINT, tmp_path / "out", "--method", method, *PERMUTED, *data) == 0
    orders = check_balanced(tmp_path / "out")
    assert len(orders) == 16
    assert any((order != np.arange(len(order))).any() for order in orders.values())
    manifest = read_manifest(tmp_path / "out")
    assert manifest.settings["pattern"] == "8:16" and manifest.settings["permute"] is True
    assert INPUT_ORDERS_NAME in manifest.files


def test_kept_weights_are_the_sources_in_another_place(sparse):
    """The order of the hidden channels is the same in the three matrices of an expert."""
    before, after = layers_of(CHECKPOINT)[1].views, layers_of(sparse)[1].views
    for expert, (old_DF, new_DF) in enumerate(
        zip(before["down_proj"], after["down_proj"], strict=True)
    ):
        kept_DF = new_DF != 0
        fits_FF = torch.stack(
            [
                ((old_DF == new[:, None]) | ~kept[:, None]).all(0)
                for new, kept in zip(new_DF.t(), kept_DF.t(), strict=True)
            ]
        )
        # A channel of which nothing is left could be any.
        known = kept_DF.any(0)
        assert (fits_FF[known].sum(1) == 1).all() and known.sum() > 40
        order = fits_FF[known].float().argmax(1)
        for name in ("gate_proj", "up_proj"):
            old, new = before[name][expert][order], after[name][expert][known]
            assert torch.equal(new, torch.where(new != 0, old, 0.0))


def test_permuted_weights_keep_more_of_the_score(sparse, tmp_path):
    assert (
        prune(
            CHECKPOINT,
            tmp_path / "plain",
            "--method",
            "magnitude",
            "--pattern",
            "8:16",
            "--no-permute",
        )
        == 0
    )
    assert prune(CHECKPOINT, tmp_path / "permuted", "--method", "magnitude", *PERMUTED) == 0
    kept = {name: energy(tmp_path / name) for name in ("plain", "permuted")}
    assert kept["permuted"] > kept["plain"]
    assert not (tmp_path / "plain" / INPUT_ORDERS_NAME).exists()


def energy(path: Path) -> float:
    held = (
        view for one in layers_of(path).values() for views in one.views.values() for view in views
    )
    return sum(float(view.double().square().sum()) for view in held)


def test_training_keeps_zeros_and_orders(sparse, tmp_path):
    out = tmp_path / "trained"
    options = ["--teacher", str(CHECKPOINT), "--local", "--steps", "3", *DATA]
    assert main(["distill", str(sparse), *options, "-o", str(out)]) == 0
    orders = check_balanced(out)
    assert (out / INPUT_ORDERS_NAME).read_bytes() == (sparse / INPUT_ORDERS_NAME).read_bytes()
    assert len(orders) == 16
    before, after = layers_of(sparse), layers_of(out)
    changed = 0
    for layer, weights in before.items():
        for name, views in weights.views.items():
            for old, new in zip(views, after[layer].views[name], strict=True):
                assert not ((new != 0) & (old == 0)).any()
                changed += int((new != old).sum())
    assert changed


def test_a_cut_takes_orders_to_the_experts_new_places(sparse, tmp_path):
    plan = {"layers": {"0": {"keep": [1, 4, 6]}}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert prune(sparse, tmp_path / "cut", "--plan", str(tmp_path / "plan.json")) == 0
    orders = check_balanced(tmp_path / "cut")
    family = open_model(sparse).family
    source = read_input_orders(sparse, 32)
    assert len(orders) == 3 + 8
    for place, expert in enumerate((1, 4, 6)):
        assert np.array_equal(
            orders[order_name(family, 0, place)], source[order_name(family, 0, expert)]
        )


def test_weights_pruned_again_leave_no_old_orders(sparse, tmp_path):
    again = ("--method", "magnitude", "--pattern", "4:8")
    assert prune(sparse, tmp_path / "again", *again) == 0
    assert not (tmp_path / "again" / INPUT_ORDERS_NAME).exists()
    assert INPUT_ORDERS_NAME not in read_manifest(tmp_path / "again").files


def test_experts_whose_channels_have_orders_of_their_own_are_not_added_up(sparse):
    each = [[float(i == j) for j in range(8)] for i in range(8)]
    plan = LayerPlan.model_validate({"merge": {"router": each, "experts": each}})
    with pytest.raises(CheckpointError, match="merge its source and prune weights after"):
        Cutter(open_model(sparse), {0: plan})


def test_orders_of_other_experts_are_refused(sparse, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(sparse, copied)
    (copied / "leanmoe.json").unlink()
    order = np.arange(32, dtype=np.int32)
    name = order_name(open_model(copied).family, 0, 8)
    write_input_orders(copied, {name: order}, 32)
    with pytest.raises(CheckpointError, match=r"experts\.8\.input_order, an expert that"):
        Cutter(open_model(copied), {})


def test_a_stacked_family_says_that_its_input_columns_stay(tmp_path):
    model = write_tiny(tmp_path / "model", "granitemoe")
    options = ("--method", "magnitude", "--pattern", "2:4", "--permute")
    assert prune(model, tmp_path / "out", *options) == 0
    assert not (tmp_path / "out" / INPUT_ORDERS_NAME).exists()
    notes = read_manifest(tmp_path / "out").settings["notes"]
    assert any("stacks its experts" in note for note in notes)
    assert any("2:4 costs far more" in note for note in notes)
