"""Adaptive budgets and plans that are written first and cut later, through the command line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from leanmoe.cli import main
from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.checkpoints.shards import ShardReader
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.registry import METHODS
from tests.golden.naee_data import CALIBRATION, CHECKPOINT
from tests.tiny_families import write_tiny

SHARING = [method.name for method in METHODS.values() if method.shares_budget]
MEASURING = [name for name in SHARING if name != "m-smoe"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "scores"
    assert main(["score", str(CHECKPOINT), "--data", CALIBRATION, "-o", str(out)]) == 0
    return str(out)


def prune(out, *more: str) -> int:
    return main(["prune", str(CHECKPOINT), "-o", str(out), *more])


def counts(out) -> list[int]:
    return [own.n_experts for own in open_model(out).layers.values()]


def weight_bytes(path) -> int:
    reader = ShardReader(path)
    return sum(reader.info(name).nbytes for name in reader.names)


@pytest.mark.parametrize("method", SHARING)
def test_keep_is_the_mean_of_an_adaptive_budget(method, bundle, tmp_path):
    out = tmp_path / "out"
    arguments = ["--method", method, "--keep", "5", "--budget", "adaptive", "--scores", bundle]
    assert prune(out, *arguments) == 0
    assert sum(counts(out)) == 15 and min(counts(out)) >= 2
    assert read_manifest(out).settings["experts_in_all"] == 15


@pytest.mark.parametrize("method", MEASURING)
def test_the_dump_holds_the_losses_and_what_was_made_of_them(method, bundle, tmp_path):
    out, dump = tmp_path / "out", tmp_path / "dump"
    arguments = ["--method", method, "--keep", "4", "--budget", "adaptive", "--scores", bundle]
    assert prune(out, *arguments, "--dump", str(dump)) == 0
    found = load_file(dump / "results.safetensors")
    facts = json.loads((dump / "results.json").read_text())["budget"]
    assert found["budget.counts"].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert found["budget.chosen"].tolist() == facts["chosen"] == counts(out)
    losses = found["budget.losses"]
    assert losses.dtype == torch.float64 and losses.shape == (3, 7)
    # Keeping all loses nothing, and dropping something something.
    assert float(losses[:, -1].max()) < 1e-6 < float(losses[:, :-1].min())
    assert facts["loss"] <= facts["uniform_loss"] == pytest.approx(float(losses[:, 2].sum()))
    best = min(
        float(losses[0, a] + losses[1, b] + losses[2, c])
        for a in range(7)
        for b in range(7)
        for c in range(7)
        if a + b + c <= 6
    )
    assert facts["loss"] == pytest.approx(best, rel=1e-9)


@torch.inference_mode()
def test_a_loss_is_the_share_of_the_output_that_changes(bundle, tmp_path):
    """Measured on the blocks themselves, the slow way."""
    from leanmoe_pruning.forward.passes import embed_all, run_block, step_

    dump = tmp_path / "dump"
    arguments = ["--method", "frequency", "--budget", "adaptive", "--keep", "4"]
    assert prune(tmp_path / "out", *arguments, "--scores", bundle, "--dump", str(dump)) == 0
    losses = load_file(dump / "results.safetensors")["budget.losses"]
    stream = DecoderStream(open_model(CHECKPOINT))
    ids = load_file(CALIBRATION.split(":")[0])["calib_input_ids"]
    hidden = embed_all(stream, [ids])
    for index, layer in enumerate(stream.layers()):
        before = [part.clone() for part in hidden]
        routed = step_(layer, hidden)
        used = torch.bincount(routed.routing.ids_TK.flatten(), minlength=8).tolist()
        kept = sorted(sorted(range(8), key=lambda expert: (-used[expert], expert))[:4])
        layer.attend_(before[0])
        whole, _ = run_block(layer, before[0])
        cut, _ = run_block(layer, before[0], kept)
        assert float(losses[index, 2]) == pytest.approx(
            float((cut - whole).norm() / whole.norm()), rel=1e-4
        )


def test_total_bytes_is_used_up_and_not_passed(bundle, tmp_path):
    out = tmp_path / "out"
    limit = 330_000
    arguments = ["--method", "ean", "--budget", "adaptive", "--total-bytes", f"{limit}B"]
    assert prune(out, *arguments, "--scores", bundle) == 0
    one_more = weight_bytes(CHECKPOINT) - weight_bytes(out)
    expert = one_more // (24 - sum(counts(out)))
    assert weight_bytes(out) <= limit < weight_bytes(out) + 2 * expert


@pytest.mark.parametrize(
    ("method", "replace"),
    [("reap", "none"), ("reap", "constant"), ("reap", "lowrank:24"), ("m-smoe", "none")],
)
def test_total_bytes_hold_what_stands_beside_experts(method, replace, bundle, tmp_path):
    """Router rows that stay, stand-ins and maps: whatever the limit, it is not passed."""
    whole = weight_bytes(CHECKPOINT)
    for step in range(5):
        out, limit = tmp_path / f"{step}", whole - (3 * step + 1) * whole // 40
        arguments = ["--method", method, "--budget", "adaptive", "--total-bytes", f"{limit}B"]
        fitted = [] if replace == "none" else ["--replace", replace, "--data", CALIBRATION]
        assert prune(out, *arguments, "--scores", bundle, *fitted) == 0
        assert weight_bytes(out) <= limit


def test_groups_stay_equally_large_in_every_layer(tmp_path):
    from leanmoe_pruning.budgets.budget import allowed_counts

    shape = open_model(write_tiny(tmp_path / "model", "deepseek_v3")).shape
    assert allowed_counts(shape) == [6, 8]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "random", "--keep", "4"], "--method random does not share a budget out"),
        (["--method", "reap", "--keep", "1"], "below the top-2"),
        (["--method", "reap", "--keep", "4", "--total-bytes", "1GiB"], "drop one"),
        (["--method", "reap", "--total-bytes", "100KB"], "is too small for"),
        (["--method", "reap", "--total-bytes", "a lot"], "--total-bytes is 'a lot'"),
        (["--method", "reap"], "neither was given"),
    ],
)
def test_budgets_that_cannot_be(bundle, tmp_path, capsys, more, words):
    scores = [] if "random" in more else ["--scores", bundle]
    assert prune(tmp_path / "out", *more, *scores, "--budget", "adaptive") == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_naee_weighs_the_best_subset_of_every_size(bundle, tmp_path, capsys):
    """Its subsets change less than any ranking's, whatever the size."""
    found = {}
    for method in ("naee", "reap", "frequency"):
        out, dump = tmp_path / method, tmp_path / f"{method}.dump"
        arguments = ["--method", method, "--keep", "4", "--budget", "adaptive"]
        if method == "naee":
            arguments += ["--batch-size", "6"]  # all tokens in one batch: the same loss
        assert prune(out, *arguments, "--scores", bundle, "--dump", str(dump)) == 0
        found[method] = load_file(dump / "results.safetensors")["budget.losses"]
    assert bool((found["naee"] <= found["reap"] * (1 + 1e-9)).all())
    assert bool((found["naee"] <= found["frequency"] * (1 + 1e-9)).all())
    progressive = ["--method", "naee", "--keep", "4", "--budget", "adaptive", "--data", CALIBRATION]
    assert prune(tmp_path / "p", *progressive, "--variant", "progressive") == 2
    assert "cannot be weighed against each other" in capsys.readouterr().err


def test_total_bytes_alone(bundle, tmp_path, capsys):
    arguments = ["--method", "reap", "--total-bytes", "1GiB", "--scores", bundle]
    assert prune(tmp_path / "out", *arguments) == 2
    assert "give --budget adaptive with it" in capsys.readouterr().err


@pytest.mark.parametrize("method", [*SHARING, "random"])
def test_a_plan_written_first_and_cut_later_is_the_same_cut(method, bundle, tmp_path):
    direct, later, plan = tmp_path / "direct", tmp_path / "later", tmp_path / "plan.json"
    arguments = ["--method", method, "--keep", "4"]
    if method != "random":
        arguments += ["--scores", bundle]
    assert prune(direct, *arguments) == 0
    assert prune(plan, *arguments, "--plan-only") == 0
    assert prune(later, "--plan", str(plan)) == 0
    assert (direct / "model.safetensors").read_bytes() == (later / "model.safetensors").read_bytes()
    note = json.loads(plan.read_text())["note"]
    assert f"by {method} (" in note and ("sha256:" in note) == (method != "random")
    assert read_manifest(later).settings["plan"]["note"] == note


def test_an_edited_plan_is_checked_again(bundle, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    arguments = ["--method", "reap", "--keep", "3", "--scores", bundle, "--plan-only"]
    assert prune(plan, *arguments) == 0
    assert len(plan.read_text().splitlines()) == 9  # a line per layer
    content = json.loads(plan.read_text())
    content["layers"]["1"]["keep"] = content["layers"]["1"]["keep"][:1]
    plan.write_text(json.dumps(content))
    assert prune(tmp_path / "out", "--plan", str(plan)) == 2
    assert "layer 1 keeps 1 experts, fewer than the 2" in capsys.readouterr().err


def test_where_a_plan_goes(bundle, tmp_path, capsys):
    plan, arguments = tmp_path / "plan.json", ["--method", "random", "--keep", "4", "--plan-only"]
    assert prune(plan, *arguments) == 0
    for target, words in (
        (plan, "exists already"),
        (tmp_path, "is no plain file"),
        (tmp_path / "none" / "plan.json", "is no folder"),
        (CHECKPOINT / "plan.json", "which is read"),
    ):
        assert prune(target, *arguments) == 2
        assert words in capsys.readouterr().err
    assert prune(plan, *arguments, "--force") == 0
    assert prune(tmp_path / "p2.json", "--plan", str(plan), "--plan-only") == 2
    assert "--plan is a plan already" in capsys.readouterr().err
    wanda = ["--method", "wanda", "--sparsity", "0.5", "--scores", bundle, "--plan-only"]
    assert prune(tmp_path / "p3.json", *wanda) == 2
    assert "changes single weights" in capsys.readouterr().err


def test_experts_then_weights_of_a_model_of_unequal_layers(bundle, tmp_path, capsys):
    lean, both = tmp_path / "lean", tmp_path / "both"
    arguments = ["--method", "reap", "--keep", "4", "--budget", "adaptive", "--scores", bundle]
    assert prune(lean, *arguments) == 0
    wanda = ["--method", "wanda", "--sparsity", "0.5", "--data", CALIBRATION]
    assert main(["prune", str(lean), *wanda, "-o", str(both)]) == 0
    assert counts(both) == counts(lean)
    before = read_manifest(both).settings["before"]
    assert before["method"] == "reap" and before["settings"]["experts_in_all"] == 12
    assert before["kept"] == {str(i): kept for i, kept in read_manifest(lean).kept.items()}
    capsys.readouterr()
    again = ["--method", "reap", "--keep", "2", "--data", CALIBRATION]
    assert main(["prune", str(lean), *again, "-o", str(tmp_path / "again")]) == 2
    said = capsys.readouterr().err
    assert "has layers that differ" in said and "use one of" in said and "wanda" in said
