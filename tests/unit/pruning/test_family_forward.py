"""Every family's layers, computed offline, are transformers' own and those of its plans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from leanmoe.cli import main
from leanmoe.errors import CheckpointError
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.opening import check_runnable, open_model
from leanmoe_pruning.forward.families import RUNNABLE
from leanmoe_pruning.forward.families.known import TABLE
from leanmoe_pruning.forward.passes import embed_all, step_
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.progress import no_tick
from leanmoe_pruning.scores.bundle import ScoreBundle
from leanmoe_pruning.scores.passing import score_layers
from tests.family_references import WITH_CLASS, streamed_logits, transformers_logits, write_telling
from tests.planned_models import write_planned
from tests.reference_model import planned_blocks
from tests.tiny_families import FAMILY_NAMES, write_tiny

KEEP = 6
# Families that have no condensed layers.
ONE_KIND = ("phimoe", "gpt_oss")
IDS = torch.randint(0, 400, (3, 24), generator=torch.Generator().manual_seed(1))
by_name = pytest.mark.parametrize("name", FAMILY_NAMES)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """float32 sums in another order; relative to the largest, as logits are differences."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * scale)


def logits_of(path, kept=None) -> torch.Tensor:
    return streamed_logits(path, IDS, kept)


@pytest.fixture
def data(tmp_path) -> str:
    save_file({"input_ids": IDS}, tmp_path / "ids.safetensors")
    return str(tmp_path / "ids.safetensors")


@pytest.mark.parametrize("name", WITH_CLASS)
def test_logits_are_transformers_own(name, tmp_path):
    model = write_telling(tmp_path / "model", name)
    close(logits_of(model), transformers_logits(model, IDS))


@by_name
def test_a_bfloat16_checkpoint_is_computed_in_bfloat16(name, tmp_path):
    exact = logits_of(write_tiny(tmp_path / "exact", name, dtype="float32"))
    rounded = logits_of(write_tiny(tmp_path / "rounded", name))
    gap = float((rounded - exact).norm() / exact.norm())
    # Tokens whose experts swap make the most of it.
    assert 0 < gap < 0.3


@by_name
@pytest.mark.parametrize("method", ["naee", "frequency", "random"])
def test_a_cut_checkpoint_computes_what_the_masked_one_does(name, method, tmp_path, data):
    source, out = write_telling(tmp_path / "source", name), tmp_path / "out"
    how = ["--method", method, "--keep", str(KEEP), "-o", str(out)]
    if method != "random":
        scores = str(tmp_path / "scores")
        assert main(["score", str(source), "--data", data, "-o", scores]) == 0
        how += ["--scores", scores]
    assert main(["prune", str(source), *how]) == 0
    kept = read_manifest(out).kept
    assert all(len(experts) == KEEP for experts in kept.values())
    close(logits_of(out), logits_of(source, kept))


@by_name
def test_progressive_pruning_leaves_out_no_kind_of_layer(name, tmp_path, data):
    source, out = write_tiny(tmp_path / "source", name, dtype="float32"), tmp_path / "out"
    how = ["--method", "naee", "--variant", "progressive", "--keep", str(KEEP), "--data", data]
    assert main(["prune", str(source), *how, "-o", str(out)]) == 0
    close(logits_of(out), logits_of(source, read_manifest(out).kept))


@by_name
def test_curve_and_eval_run(name, tmp_path, data, capsys):
    model = write_tiny(tmp_path / "model", name)
    arguments = ["--data", data, "--calibration", data, "--levels", "3"]
    assert main(["curve", str(model), *arguments]) == 0
    points = read_manifest(model).curve.points
    moe_layers = list(open_model(model).shape.moe_layers)
    assert [sorted(point.betas) for point in points] == [moe_layers] * 3
    assert points[0].skip_rate == 0 < points[-1].skip_rate
    assert main(["eval", str(model), "--data", data, "--skip-level", "0.5"]) == 0


@pytest.mark.parametrize("name", [name for name in FAMILY_NAMES if name not in ONE_KIND])
@torch.inference_mode()
def test_layers_that_differ_compute_their_plan(name, tmp_path):
    source, out = write_tiny(tmp_path / "source", name, dtype="float32"), tmp_path / "lean"
    plan = write_planned(source, out)
    whole, lean = DecoderStream(open_model(source)), DecoderStream(open_model(out))
    blocks = planned_blocks(source, plan)
    found, expected = embed_all(lean, [IDS]), embed_all(whole, [IDS])
    for mine, theirs in zip(lean.layers(), whole.layers(), strict=True):
        step_(mine, found)
        if mine.index in blocks:
            theirs.attend_(expected[0])
            theirs.add_(expected[0], blocks[mine.index](theirs.block_input(expected[0])))
        else:
            step_(theirs, expected)
        close(found[0], expected[0])


def test_every_family_has_a_forward_pass_and_one_without_is_refused(tmp_path):
    assert set(RUNNABLE) == set(TABLE) == set(FAMILY_NAMES)
    for name in FAMILY_NAMES:
        checkpoint = open_model(write_tiny(tmp_path / name, name))
        check_runnable(checkpoint)
    unheard = replace(checkpoint, family=replace(checkpoint.family, name="unheard"))
    with pytest.raises(CheckpointError, match="unheard model, whose layers LeanMoE does not"):
        check_runnable(unheard)


@by_name
@torch.inference_mode()
def test_a_bundle_routes_as_the_model_does(name, tmp_path, data):
    model, out = write_telling(tmp_path / "model", name), tmp_path / "scores"
    assert main(["score", str(model), "--data", data, "-o", str(out)]) == 0
    checkpoint = open_model(model)
    stored = ScoreBundle(out).layers(RouterRule.of(checkpoint.shape))
    direct = score_layers(DecoderStream(checkpoint), [IDS], no_tick)
    for mine, theirs in zip(stored, direct, strict=True):
        assert torch.equal(mine.routing().ids_TK, theirs.routing().ids_TK)
        assert torch.equal(mine.routing().applied(), theirs.routing().applied())
        shares = theirs.routing().applied().sum(-1)
        if checkpoint.shape.renormalize:
            torch.testing.assert_close(
                shares, torch.full_like(shares, checkpoint.shape.routed_scale)
            )
