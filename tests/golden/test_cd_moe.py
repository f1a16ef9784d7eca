"""``leanmoe prune --method cd-moe`` against the published code's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leanmoe.manifest import read_manifest
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.forward.passes import embed_all, run_block, step_
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.methods.cd_moe.condensed_layer import Condensed, condensed_output
from tests.golden.cd_moe_data import CHECKPOINT, PROBE, condense, golden, golden_json, inputs

ORDERS = ("gate_selected_count", "expert_order", "layer_order.SR", "layer_order.S")
FIGURES = (
    "gate_weight_sum",
    "mean_gate_weight",
    "expert_js",
    "expert_step_js",
    "shared_only_js",
    "layer_js.SR",
    "layer_js.S",
    "layer_step_js.SR",
    "layer_step_js.S",
)
LOGITS = tuple(name for name in golden() if name.startswith("probe_logits."))


@pytest.fixture(scope="module")
def dumped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cdmoe")
    dump = folder / "dump"
    assert condense(folder / "lean", 2, "--dump", str(dump), "--probe", PROBE) == 0
    return dump


@pytest.fixture(scope="module")
def found(dumped) -> dict[str, torch.Tensor]:
    return load_file(dumped / "results.safetensors")


def test_the_dump_holds_the_golden_tensors_and_no_others(found):
    beside = {name for name in golden() if name.startswith("doc0.")}
    assert set(found) == set(golden()) - beside


@pytest.mark.parametrize("name", ORDERS)
def test_orders_and_counts(found, name):
    assert torch.equal(found[name], golden()[name])


@pytest.mark.parametrize("name", FIGURES)
def test_gate_weights_and_divergences(found, name):
    expected = golden()[name]
    torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=0, equal_nan=True)


def close_to_golden(logits: torch.Tensor, name: str) -> None:
    expected = golden()[name]
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", LOGITS)
def test_probe_logits(found, name):
    close_to_golden(found[name], name)


def test_the_json_repeats_orders_and_divergences(dumped):
    content = json.loads((dumped / "results.json").read_text())
    assert content.keys() == golden_json().keys()
    for name, expected in golden_json().items():
        if name.endswith("_js"):
            parts = expected.items() if isinstance(expected, dict) else enumerate(expected)
            for key, values in parts:
                assert content[name][key] == pytest.approx(values, rel=1e-5)
        else:
            assert content[name] == expected


@pytest.mark.parametrize("variant", ["SR", "S"])
@pytest.mark.parametrize("count", [1, 2, 3])
@torch.inference_mode()
def test_the_written_checkpoint_is_the_condensed_model(variant, count, tmp_path):
    """Without a dump, candidates given up early: the same choice, and its logits off the disk."""
    assert condense(tmp_path / "lean", count, "--variant", variant) == 0
    lean = open_model(tmp_path / "lean")
    order = [layer + 1 for layer in golden()[f"layer_order.{variant}"][:count].tolist()]
    settings = read_manifest(lean.path).settings
    assert settings["layer_order"] == order
    expected_js = golden_json()["layer_step_js"][variant][:count]
    assert settings["layer_step_js"] == pytest.approx(expected_js, rel=1e-5)
    condensed = [layer for layer, own in lean.layers.items() if own.condensed]
    assert condensed == sorted(order)
    for layer in order:
        chosen = sorted(golden_json()["expert_order"][layer - 1]) if variant == "SR" else []
        assert lean.manifest.kept[layer] == chosen
    stream = DecoderStream(lean)
    hidden = embed_all(stream, [inputs()["probe_input_ids"]])
    for layer in stream.layers():
        step_(layer, hidden)
    close_to_golden(stream.logits(hidden[0]), f"probe_logits.{variant}.{count}")


@torch.inference_mode()
def test_block_outputs_of_the_first_document():
    stream = DecoderStream(open_model(CHECKPOINT))
    ids = inputs()["doc.0.input_ids"][None]
    hidden = embed_all(stream, [ids])
    for layer in stream.layers():
        if layer.experts is not None:
            row = layer.index - 1
            x_TD = golden()[f"doc0.moe_input.{row}"]
            experts = golden()["expert_order"][row].tolist()
            means = golden()["mean_gate_weight"][row].tolist()
            wanted = Condensed({expert: means[expert] for expert in experts})
            close_to_golden(
                condensed_output(layer, x_TD, wanted), f"doc0.condensed_output.SR.{row}"
            )
            attended = hidden[0].clone()
            layer.attend_(attended)
            close_to_golden(layer.block_input(attended), f"doc0.moe_input.{row}")
            close_to_golden(run_block(layer, attended)[0], f"doc0.moe_output.{row}")
        step_(layer, hidden)
