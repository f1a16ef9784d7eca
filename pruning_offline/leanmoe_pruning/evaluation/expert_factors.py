"""What the norm rule multiplies an expert's weights by: the mean norm of what it puts out.

Measured on the calibration text of a curve, or taken from a score bundle of the model or of the one
that it was cut from. E experts.
"""

from __future__ import annotations

from pathlib import Path

import torch

from leanmoe.errors import InputError
from leanmoe_pruning.checkpoints.opening import OpenedModel
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.methods.saliency import ean
from leanmoe_pruning.scores.bundle import ScoreBundle

# No expert counts for less than this share of the layer's mean: one that puts out nothing would
# have no place among ratios.
_LEAST = 1e-6


def factors_of(mean_E: torch.Tensor, tokens_E: torch.Tensor) -> list[float]:
    """Factors of one layer, positive, their mean 1; six digits are more than the text tells.

    An expert that no token reached counts as the mean of the others.
    """
    reached_E = tokens_E > 0
    typical = float(mean_E[reached_E].mean()) if bool(reached_E.any()) else 0.0
    if not typical > 0.0:
        return [1.0] * len(mean_E)
    found_E = torch.where(reached_E, mean_E.double() / typical, 1.0).clamp_min(_LEAST)
    return [float(f"{factor:.6g}") for factor in found_E.tolist()]


def bundled_factors(directory: Path, model: OpenedModel) -> dict[int, list[float]]:
    """Factors of every layer that can skip, by a bundle; of a cut model, those of its experts."""
    bundle = ScoreBundle(directory)
    kept = _kept(bundle, model)
    found = {}
    for scores in bundle.layers(RouterRule.of(model.shape)):
        if scores.layer not in model.skip_layers:
            continue
        ids = kept.get(scores.layer, list(range(scores.n_experts)))
        found[scores.layer] = factors_of(ean(scores)[ids], scores.token_counts()[ids])
    _check_shapes(directory, model, found)
    return found


def _kept(bundle: ScoreBundle, model: OpenedModel) -> dict[int, list[int]]:
    """Which experts of the bundle's model this one has, in its order; empty where all."""
    manifest = model.manifest
    if manifest is None or manifest.source is None or bundle.description.source == model.digests:
        bundle.check_model(model, model.digests)
        return {}
    bundle.check_model(model, manifest.source.files)
    return manifest.kept


def _check_shapes(directory: Path, model: OpenedModel, found: dict[int, list[float]]) -> None:
    for layer in model.skip_layers:
        has, wants = len(found.get(layer, [])), model.layers[layer].n_experts
        if has != wants:
            raise InputError(
                f"score bundle {directory} gives {has} experts of layer {layer} and "
                f"{model.path} has {wants} there; leave --scores out, and the curve measures them"
            )
