"""Layers of DeepSeek-MoE and Qwen2-MoE against what other code computed of them.

transformers has no class for the first; its golden set is what we are held to.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.forward.passes import embed_all, run_block, step_
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream

DATA = Path(__file__).parent / "data"
DEEPSEEK, QWEN = DATA / "cdmoe", DATA / "reap" / "qwen2_moe"


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        found, expected.reshape(found.shape), rtol=0, atol=2e-5 * scale, check_dtype=False
    )


def opened(folder: Path) -> tuple[DecoderStream, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    stream = DecoderStream(open_model(folder / "checkpoint"))
    return (
        stream,
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "results.safetensors"),
    )


def blocks(stream: DecoderStream, ids_NT: torch.Tensor):
    """Every layer with the input and the output of its block."""
    hidden = embed_all(stream, [ids_NT])[0]
    for layer in stream.layers():
        layer.attend_(hidden)
        x_TD = layer.block_input(hidden)
        output_TD, _ = run_block(layer, hidden)
        yield layer, x_TD, output_TD
        layer.add_(hidden, output_TD)


@pytest.mark.parametrize(
    ("folder", "name"), [(DEEPSEEK, "probe_logits.original"), (QWEN, "probe_logits.full")]
)
@torch.inference_mode()
def test_logits_of_the_whole_model(folder, name):
    stream, inputs, results = opened(folder)
    hidden = embed_all(stream, [inputs["probe_input_ids"]])
    for layer in stream.layers():
        step_(layer, hidden)
    close(stream.logits(hidden[0]), results[name])


@torch.inference_mode()
def test_deepseek_blocks():
    stream, inputs, results = opened(DEEPSEEK)
    found = list(blocks(stream, inputs["doc.0.input_ids"][None]))
    assert [layer.experts is None for layer, _, _ in found] == [True, False, False, False]
    for number, (_, x_TD, output_TD) in enumerate(found[1:]):
        close(x_TD, results[f"doc0.moe_input.{number}"])
        close(output_TD, results[f"doc0.moe_output.{number}"])


@torch.inference_mode()
def test_a_condensed_deepseek_block():
    """Shared expert and three experts by their mean gate weights, put together from our parts."""
    stream, _, results = opened(DEEPSEEK)
    for number, layer in enumerate(layer for layer in stream.layers() if layer.experts):
        x_TD = results[f"doc0.moe_input.{number}"]
        weights = results["mean_gate_weight"][number]
        output_TD = condensed(layer, x_TD, results["expert_order"][number], weights)
        close(output_TD, results[f"doc0.condensed_output.SR.{number}"])


def condensed(layer: DecoderLayer, x_TD: torch.Tensor, experts, weights) -> torch.Tensor:
    chosen = (float(weights[e]) * layer.experts.output(int(e), x_TD) for e in experts)
    return layer.shared(x_TD) + sum(chosen)


@torch.inference_mode()
def test_qwen_blocks_and_routers():
    stream, inputs, results = opened(QWEN)
    for layer, x_TD, output_TD in blocks(stream, inputs["calib_input_ids"]):
        close(x_TD, results[f"calib.block_input.{layer.index}"])
        close(output_TD, results[f"calib.block_output.{layer.index}"])
        close(layer.router_logits(x_TD), results[f"calib.router_logits.{layer.index}"])
        frequency = torch.bincount(
            layer.route(layer.router_logits(x_TD)).ids_TK.flatten(), minlength=12
        )
        assert torch.equal(frequency, results["raw.expert_frequency"][layer.index])
