"""Experts that no token of the data was routed to: nothing is known of them, and that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leanmoe_pruning.scores.layer_scores import LayerScores


class Unreached:
    """Gathered while the layers pass."""

    def __init__(self) -> None:
        self.by_layer: dict[int, list[int]] = {}

    def add(self, scores: LayerScores) -> None:
        idle = (scores.token_counts() == 0).nonzero().flatten().tolist()
        if idle:
            self.by_layer[scores.layer] = idle

    def notes(self, consequence: str = "count for nothing and go first") -> tuple[str, ...]:
        """What to tell the user, where there is something to tell."""
        return unreached_notes(self.by_layer, consequence)


def unreached_notes(
    by_layer: Mapping[int, Sequence[int]], consequence: str, more: str = "judge"
) -> tuple[str, ...]:
    """The sentence about experts that were never reached, by layer; none where all were."""
    if not by_layer:
        return ()
    count = sum(map(len, by_layer.values()))
    layer, idle = next(iter(by_layer.items()))
    return (
        f"no token reached {count} experts (layer {layer}: {', '.join(map(str, idle))}), so "
        f"they {consequence}; more or other --data would {more} them",
    )
