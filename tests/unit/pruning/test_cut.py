"""What a lean checkpoint holds, whole or sharded, and how it is described."""

from __future__ import annotations

import json
import operator

import torch

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.files.digest import file_digest
from leanmoe.manifest import check_files, read_manifest
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.checkpoints.shards import INDEX_NAME, ShardReader
from leanmoe_pruning.cutting.cutter import Cutter
from leanmoe_pruning.cutting.layer_plan import LayerPlan
from leanmoe_pruning.cutting.packing import packer_of
from tests.golden.naee_data import CALIBRATION, CHECKPOINT
from tests.tiny_families import write_tiny


def prune(model, out, *more: str) -> None:
    arguments = ["prune", str(model), "--keep", "5", "-o", str(out), *more]
    assert main(arguments) == 0


def test_kept_experts_are_copied_bit_for_bit_and_re_indexed(sharded, tmp_path):
    out = tmp_path / "out"
    prune(sharded, out, "--method", "naee", "--data", CALIBRATION)
    source, lean = ShardReader(sharded), ShardReader(out)
    family = open_checkpoint(out).family
    for layer, kept in read_manifest(out).kept.items():
        gate = family.gate_name(layer)
        assert torch.equal(lean.read(gate), source.read(gate)[kept])
        for new, old in enumerate(kept):
            for projection in ("gate_proj", "up_proj", "down_proj"):
                mine = lean.read(family.expert_name(layer, new, projection))
                assert torch.equal(mine, source.read(family.expert_name(layer, old, projection)))
    assert len(lean.names) == len(source.names) - 3 * 3 * 3
    assert (out / INDEX_NAME).is_file()


def test_what_is_written_is_counted_with_experts_gone_or_matrices_packed(tmp_path):
    """Progress ends at its total: packed, a matrix is several tensors."""
    model, sparse = tmp_path / "model", tmp_path / "sparse"
    write_tiny(model, "qwen3_moe")
    assert main(["prune", str(model), "--method", "magnitude", "-o", str(sparse)]) == 0
    source, zeroed = open_model(model), open_model(sparse)
    plans = {layer: LayerPlan(keep=(0, 3, 5, 6)) for layer in source.shape.moe_layers}
    cutters = (Cutter(source, plans), Cutter(zeroed, {}, packer=packer_of(zeroed, None)))
    for cutter, compare in zip(cutters, (operator.lt, operator.gt), strict=True):
        out, ticks = tmp_path / compare.__name__, []
        out.mkdir()
        cutter.write(out, lambda ticks=ticks: ticks.append(1))
        assert len(ticks) == cutter.n_written and compare(cutter.n_written, cutter.n_read)


def test_single_file_stays_a_single_file(model, tmp_path):
    out = tmp_path / "out"
    prune(model, out, "--method", "frequency", "--data", CALIBRATION)
    assert (out / "model.safetensors").is_file()
    assert not (out / INDEX_NAME).exists()
    assert json.loads((out / "config.json").read_text())["num_local_experts"] == 5
    assert (out / "tokenizer_config.json").read_text() == "{}"


def test_manifest_describes_source_output_and_settings(model, tmp_path):
    out = tmp_path / "out"
    prune(model, out, "--method", "naee", "--data", CALIBRATION, "--batch-size", "2")
    manifest = read_manifest(out)
    check_files(out, manifest)
    assert set(manifest.files) == {path.name for path in out.iterdir()} - {"leanmoe.json"}
    assert manifest.source.files["model.safetensors"] == file_digest(model / "model.safetensors")
    assert manifest.source.experts == 8
    found = manifest.settings.pop("redundancy")
    # Random experts have nothing in common.
    (note,) = manifest.settings.pop("notes")
    assert "may collapse" in note
    assert set(found["loss"]) == set(found["similarity"]) == set(found["used"]) == {"0", "1", "2"}
    importance = manifest.settings.pop("importance")
    assert set(importance["gini"]) == set(importance["carriers"]) == {"0", "1", "2"}
    assert manifest.settings.pop("super_experts") == []
    assert manifest.settings == {
        "keep": 5,
        "variant": "layerwise",
        "batch_size": 2,
        "search": "enumerate",
        "compute": "float32",
    }
    assert manifest.calibration == CALIBRATION
    assert manifest.calibration_digest.startswith("sha256:")
    assert {"torch", "transformers", "safetensors"} <= set(manifest.tools)


def test_frequency_keeps_the_most_routed(model, tmp_path):
    scores = tmp_path / "scores"
    assert main(["score", str(model), "--data", CALIBRATION, "-o", str(scores)]) == 0
    out = tmp_path / "out"
    prune(model, out, "--method", "frequency", "--scores", str(scores))
    counts = ShardReaderOfSummary(scores).counts
    for layer, kept in read_manifest(out).kept.items():
        least_kept = min(counts[layer, kept])
        others = [expert for expert in range(8) if expert not in kept]
        assert least_kept >= max(counts[layer, others])


class ShardReaderOfSummary:
    def __init__(self, scores):
        from safetensors.torch import load_file

        held = load_file(scores / "summary.safetensors")
        self.counts = held["token_counts"]
        assert held["gate_mass"].sum(1).round().tolist() == [192.0] * 3
        assert self.counts.sum(1).tolist() == [384] * 3


def test_random_is_seeded_and_needs_no_data(model, tmp_path):
    kept = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"out{number}"
        prune(model, out, "--method", "random", "--seed", str(seed))
        kept.append(read_manifest(out).kept)
    assert kept[0] == kept[1] != kept[2]
    assert read_manifest(tmp_path / "out2").settings == {"keep": 5, "seed": 2}


def test_pruning_a_lean_checkpoint_again(model, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    prune(model, once, "--method", "naee", "--data", CALIBRATION)
    arguments = ["prune", str(once), "--method", "naee", "--keep", "3", "--data", CALIBRATION]
    assert main([*arguments, "-o", str(twice)]) == 0
    assert open_checkpoint(twice).shape.n_routed_experts == 3


def test_pickled_weights_are_not_copied(model, tmp_path):
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    out = tmp_path / "out"
    prune(model, out, "--method", "random")
    assert not (out / "pytorch_model.bin").exists()


def test_dump_of_a_re_cut_has_only_what_the_bundle_knows(model, tmp_path):
    from safetensors.torch import load_file

    scores, dump = tmp_path / "scores", tmp_path / "dump"
    assert main(["score", str(CHECKPOINT), "--data", CALIBRATION, "-o", str(scores)]) == 0
    arguments = ["--method", "naee", "--scores", str(scores), "--dump", str(dump)]
    prune(CHECKPOINT, tmp_path / "out", *arguments)
    names = set(load_file(dump / "results.safetensors"))
    assert names == {
        "dropped_subsets.r5",
        "layerwise_r5.losses",
        "layerwise_r5.kept",
        "betas.full",
        "ratio_mean.full",
    }
