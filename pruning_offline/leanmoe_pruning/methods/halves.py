"""Whether the windows are enough: would two halves of them decide the same?

Every second window is in one half, the others in the second. Each method that decides from a
bundle alone chooses the
experts to keep from either; how many they share says how much of the choice is the windows' luck.
T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from leanmoe.families import MoEShape
from leanmoe_pruning.budgets.budget import allowed_counts
from leanmoe_pruning.data import batch_of_tokens
from leanmoe_pruning.methods.naee.naee_options import DEFAULT_BATCH, NaeeOptions, search_of
from leanmoe_pruning.methods.naee.subsets import chooser_of, subset_losses
from leanmoe_pruning.methods.saliency import SALIENCIES, highest
from leanmoe_pruning.methods.selection import complement
from leanmoe_pruning.scores.halves_record import HalfAgreement, Halves
from leanmoe_pruning.scores.layer_scores import LayerScores
from leanmoe_pruning.scores.sampling import evenly_spaced
from leanmoe_pruning.scores.threads import in_order

Kept = tuple[int, ...]
_MOST_LAYERS = 4  # in memory at a time


@dataclass(frozen=True)
class _Layer:
    """What the halves of one layer's tokens decide: kept experts by method, NAEE's losses."""

    kept: dict[str, tuple[Kept, Kept]]
    own_loss: float
    other_loss: float


def compare_halves(
    layers: Iterable[LayerScores],
    layout: list[tuple[int, int]],
    gram_tokens: int,
    shape: MoEShape,
) -> Halves | None:
    """How far the halves agree on keeping half of the experts.

    ``None`` where a half would be empty, or nothing could be removed.
    """
    keep = middle_count(shape)
    half_T = half_of_tokens(layout)
    sampled_S = half_T[evenly_spaced(len(half_T), gram_tokens)]
    if keep is None or sampled_S.all() or not sampled_S.any():
        return None
    found = list(
        in_order(lambda scores: _decide(scores, half_T, layout, keep, shape), layers, _MOST_LAYERS)
    )
    shared = {name: _shared([one.kept[name] for one in found], keep) for name in found[0].kept}
    own = sum(one.own_loss for one in found)
    excess = sum(one.other_loss for one in found) / own - 1.0 if own else 0.0
    return Halves(
        keep=keep,
        chance=keep / shape.n_routed_experts,
        methods={
            name: HalfAgreement(shared=share, excess_loss=excess if name == "naee" else None)
            for name, share in shared.items()
        },
    )


def middle_count(shape: MoEShape) -> int | None:
    """Half of the experts, or the count next to it that the router can serve."""
    counts = [count for count in allowed_counts(shape) if count < shape.n_routed_experts]
    half = shape.n_routed_experts / 2
    return min(counts, key=lambda count: abs(count - half)) if counts else None


def half_of_tokens(layout: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Whether each token's window is one of the second half's, every second one, bool ``[T]``."""
    lengths = [length for windows, length in layout for _ in range(windows)]
    second_N = torch.arange(len(lengths)) % 2 == 1
    return second_N.repeat_interleave(torch.tensor(lengths))


def _decide(
    scores: LayerScores,
    half_T: torch.Tensor,
    layout: list[tuple[int, int]],
    keep: int,
    shape: MoEShape,
) -> _Layer:
    rows = (~half_T, half_T)
    kept = {name: _ranked(scores, rows, name, keep, shape.n_groups) for name in SALIENCIES}
    batch_T = batch_of_tokens(layout, DEFAULT_BATCH)
    parts = [sampled_part(scores, row_T, batch_T) for row_T in rows]
    search = search_of(NaeeOptions(), shape, [keep])
    one, other = (chooser_of(*part, search)(keep).kept for part in parts)
    pruned = [complement(kept, scores.n_experts) for kept in (one, other)]
    losses = [subset_losses(part[0], pruned, part[1]).tolist() for part in parts]
    return _Layer(
        {"naee": (one, other), **kept},
        own_loss=losses[0][0] + losses[1][1],
        other_loss=losses[0][1] + losses[1][0],
    )


def _ranked(
    scores: LayerScores, rows: Sequence[torch.Tensor], name: str, keep: int, n_groups: int
) -> tuple[Kept, Kept]:
    def chosen(row_T: torch.Tensor) -> Kept:
        part = replace(
            scores,
            router_logits_TE=scores.router_logits_TE[row_T],
            output_norm_TK=scores.output_norm_TK[row_T],
        )
        return highest(SALIENCIES[name](part, "model").tolist(), keep, n_groups)

    return chosen(rows[0]), chosen(rows[1])


def sampled_part(
    scores: LayerScores, row_T: torch.Tensor, batch_T: torch.Tensor
) -> tuple[LayerScores, torch.Tensor]:
    """The tokens of ``row_T`` that have a Gram matrix, as all there are, and their batches."""
    sampled = scores.gram_tokens
    own = row_T[sampled]
    rows = sampled[own]
    effects_SE = scores.effects_SE
    part = replace(
        scores,
        router_logits_TE=scores.router_logits_TE[rows],
        output_gram_TP=scores.output_gram_TP[own],
        output_norm_TK=scores.output_norm_TK[rows],
        effects_SE=None if effects_SE is None else effects_SE[own],
    )
    return part, batch_T[rows]


def _shared(kept: Iterable[tuple[Kept, Kept]], keep: int) -> float:
    """The mean share of kept experts that both halves keep."""
    shares = [len({*one} & {*other}) / keep for one, other in kept]
    return sum(shares) / len(shares)
