"""Which experts weights alone would keep: AIMER (arXiv 2603.18492), without data and a pass.

An expert's score is the mean absolute value of its weights over their root mean square, all three
matrices together: sqrt(2/pi) for a normal distribution, less where few weights are large. As
its authors read it, the higher go. Computed from the numbers that the weights stand for, in
float64. E experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import CheckpointError
from leanmoe.families.base import PROJECTIONS
from leanmoe_pruning.checkpoints.opening import OpenedModel
from leanmoe_pruning.later import torch
from leanmoe_pruning.progress import progress

if TYPE_CHECKING:
    from leanmoe_pruning.methods.weights.layer_weights import LayerWeights


def aimer(weights: LayerWeights) -> torch.Tensor:
    """The score of each expert of a layer, float64 ``[E]``; 0 for one whose weights are all 0."""
    return torch.tensor([_aimer(weights, one) for one in range(weights.n_experts)]).double()


def _aimer(weights: LayerWeights, expert: int) -> float:
    count, absolute, squared = 0, 0.0, 0.0
    for projection in PROJECTIONS:
        values = weights.meant(projection, expert).double()
        count += values.numel()
        absolute += float(values.abs().sum())
        squared += float(values.square().sum())
    return absolute / (count * squared) ** 0.5 if squared else 0.0


def check_previewable(checkpoint: Checkpoint) -> None:
    """Raise where weights cannot be read as single numbers."""
    if checkpoint.shape.packed:
        raise CheckpointError(
            f"{checkpoint.path} holds its experts in blocks of 4-bit numbers, of which --preview "
            "reads nothing; leave it out, or restore the checkpoint to plain bf16 weights first"
        )


def preview(checkpoint: OpenedModel, keeps: list[int]) -> dict[str, Any]:
    """Scores by layer, and the experts that would stay for each number of them."""
    # They read weights, which a plan without a preview does not: it works without torch.
    from leanmoe_pruning.methods.saliency import highest
    from leanmoe_pruning.methods.weights.layer_weights import read_layer

    check_previewable(checkpoint)
    scores: dict[int, list[float]] = {}
    layers = checkpoint.shape.moe_layers
    with progress("reading weights", len(layers)) as tick:
        for layer in layers:
            scores[layer] = aimer(read_layer(checkpoint.reader, checkpoint, layer)).tolist()
            tick()
    groups = checkpoint.shape.n_groups
    kept = {
        str(keep): {
            str(layer): list(highest([-one for one in own], keep, groups))
            for layer, own in scores.items()
        }
        for keep in keeps
    }
    return {"by": "aimer", "scores": {str(i): own for i, own in scores.items()}, "kept": kept}


def preview_lines(found: dict[str, Any]) -> list[str]:
    """The same for people: the experts that stay, a line per layer."""
    lines = []
    for keep, layers in found["kept"].items():
        lines.append(f"kept by weights alone (AIMER, no data looked at), keep {keep}:")
        lines += [f"  layer {layer}: {' '.join(map(str, own))}" for layer, own in layers.items()]
    return lines
