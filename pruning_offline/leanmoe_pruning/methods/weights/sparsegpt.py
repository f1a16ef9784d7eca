"""SparseGPT: zero weights and let the others make up for them (arXiv 2301.00774).

Per expert, on the tokens routed to it: with H the second moments of a matrix's inputs, the
weights of lowest w^2 / [H^-1]_jj^2 are zeroed, block of columns by block, and each error is
spread over the columns still to come. n tokens, D model, F expert hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from leanmoe.errors import CheckpointError
from leanmoe_pruning.methods.weights.pattern import OfEvery, Pattern, Unstructured
from leanmoe_pruning.methods.weights.schedule import LayerInputs

BLOCK = 128
DAMPING = 0.01
# Hessians of as many experts as fit in this are gathered in one go over the tokens.
HESSIAN_BYTES = 2 << 30
_MOST_DAMPING = 1e3


def expert_hessians(
    inputs: LayerInputs,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Each expert with sum x x^T of its block inputs ``[D, D]`` and of ``down_proj``'s ``[F, F]``.

    Experts that no token was routed to are left out.
    """
    experts = inputs.experts
    wide, narrow = experts.gate_proj[0].shape
    at_once = max(1, HESSIAN_BYTES // (4 * (wide**2 + narrow**2)))
    for start in range(0, len(experts), at_once):
        chosen = range(start, min(start + at_once, len(experts)))
        sums = _sums(inputs, chosen, (narrow, wide))
        for expert in chosen:
            if expert in sums:
                yield (expert, *sums.pop(expert))


def _sums(
    inputs: LayerInputs, chosen: Sequence[int], sizes: tuple[int, int]
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    experts, sums = inputs.experts, {}
    for x_TD, routing in inputs.routed():
        for expert in chosen:
            x_nD = x_TD[(routing.ids_TK == expert).any(-1)]
            if len(x_nD) == 0:
                continue
            if expert not in sums:
                sums[expert] = (torch.zeros(sizes[0], sizes[0]), torch.zeros(sizes[1], sizes[1]))
            hidden_nF = experts.hidden(expert, x_nD).float()
            for total, rows in zip(sums[expert], (x_nD, hidden_nF), strict=True):
                total.addmm_(rows.t(), rows)
    return sums


@dataclass(frozen=True)
class Curvature:
    """What the inputs of a matrix say of it: the upper Cholesky factor of H^-1, dead columns."""

    factor: torch.Tensor
    silent: torch.Tensor

    @classmethod
    def of(cls, hessian: torch.Tensor, where: str) -> Curvature:
        """From second moments ``[columns, columns]``, which are used up."""
        silent = hessian.diagonal() == 0
        hessian.diagonal()[silent] = 1.0
        return cls(_inverse_factor(hessian, where), silent)


def _inverse_factor(hessian: torch.Tensor, where: str) -> torch.Tensor:
    """Damped more where float32 cannot take it as published."""
    mean, damping = float(hessian.diagonal().mean()), DAMPING
    while damping < _MOST_DAMPING:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper: torch.Tensor
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return upper
        damping *= 10
    raise CheckpointError(
        f"the activations of {where} are not finite or too large for float32, so SparseGPT cannot "
        "invert their moments; try --compute float32 or fetch the model again"
    )


def prune_matrix(weight: torch.Tensor, curvature: Curvature, pattern: Pattern) -> torch.Tensor:
    """The pruned and corrected matrix, float32 ``[rows, columns]``."""
    # Row by row, whatever the order in memory of the file's: some families store the transpose.
    weight = weight.float().clone(memory_format=torch.contiguous_format)
    factor = curvature.factor
    weight[:, curvature.silent] = 0.0
    for start in range(0, weight.shape[1], _block(pattern)):
        stop = min(start + _block(pattern), weight.shape[1])
        error = _prune_block_(weight[:, start:stop], factor[start:stop, start:stop], pattern)
        weight[:, stop:] -= error @ factor[start:stop, stop:]
    return weight


def _block(pattern: Pattern) -> int:
    group = pattern.group if isinstance(pattern, OfEvery) else 1
    return max(group, BLOCK - BLOCK % group)


def _prune_block_(block: torch.Tensor, factor: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Prune a block of columns in place; the errors ``[rows, columns]`` over their pivots."""
    pivots = factor.diagonal()
    drop = _lowest(block, pivots, pattern) if isinstance(pattern, Unstructured) else None
    errors = torch.empty_like(block)
    for column in range(block.shape[1]):
        if isinstance(pattern, OfEvery) and column % pattern.group == 0:
            group = slice(column, column + pattern.group)
            size = block[:, group].abs()
            drop = ~pattern.keep(size / pivots[group], size)
        assert drop is not None
        place = column % pattern.group if isinstance(pattern, OfEvery) else column
        pruned = drop[:, place]
        errors[:, column] = torch.where(pruned, block[:, column], 0.0) / pivots[column]
        block[:, column:] -= errors[:, column, None] * factor[column, column:]
        block[:, column].masked_fill_(pruned, 0.0)
    return errors


def _lowest(block: torch.Tensor, pivots: torch.Tensor, pattern: Unstructured) -> torch.Tensor:
    """As published, a block's weights are compared across its rows."""
    size = block.abs()
    whole = pattern.keep((size / pivots).reshape(1, -1), size.reshape(1, -1))
    return ~whole.view_as(block)
