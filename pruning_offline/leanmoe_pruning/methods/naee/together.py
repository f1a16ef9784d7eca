"""Experts of all layers chosen together by what their removal does to the model's predictions.

A layer's choice moves the predictions of token t by d_t, to first order (``scores.effects``); what
all layers do adds up, with signs. With effects of drawn next tokens half the mean square of the sum
is the KL divergence that the cut is expected to cost. With effects of the text's, the mean of
d + d^2 / 2 is what its log loss is expected to grow by, which is half the mean of (d + 1)^2 and a
constant: the same problem with a ``pull`` of 1 to begin with. So the same tokens do not pay in
every layer, whatever expert numbers or domains stand for. Layers take turns: each chooses the set
that adds least to what the others do, until none changes or ten turns are over. For one layer that
is NAEE's problem with outputs of one number, whose target is moved by the others, and NAEE's
search solves it. S tokens with effects, E experts, K top-k, C candidates for removal, N routings
that change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.methods.naee.greedy import Elimination, refined
from leanmoe_pruning.methods.naee.removal import Removals
from leanmoe_pruning.scores.layer_scores import LayerScores
from leanmoe_pruning.scores.sampling import evenly_spaced

# Tokens that choices are compared on, and turns of all layers at most; each turn costs as much as
# NAEE for each layer alone, and few are needed.
MOST_TOKENS = 1 << 17
MOST_TURNS = 10

Kept = tuple[int, ...]


class LayerEffects:
    """What the choices of one layer do to the predictions of some tokens.

    ``pinned`` experts stay, as many as fit: the first order says little where outputs are huge.
    """

    def __init__(self, scores: LayerScores, tokens: int) -> None:
        self.pinned: tuple[int, ...] = ()
        assert scores.effects_SE is not None, "the bundle was checked"
        some_S = evenly_spaced(len(scores.effects_SE), tokens)
        self.effects_SE = scores.effects_SE[some_S]
        logits_SE = scores.router_logits_TE[scores.gram_tokens[some_S]]
        # Logits of the tokens with effects alone, and no outputs, which are large.
        nothing_S0 = torch.empty(tokens, 0, dtype=torch.float64)
        self._scores = replace(scores, router_logits_TE=logits_SE, output_gram_TP=nothing_S0)
        self._whole_S = self._given(None)

    @property
    def layer(self) -> int:
        return self._scores.layer

    def change(self, kept: Kept) -> torch.Tensor:
        """How far keeping only these moves each token's predictions, float64 ``[S]``."""
        return self._given(kept) - self._whole_S

    def best(self, keep: int, pull: float = 0.0) -> Kept:
        """The choice that brings them closest to nothing while other layers do nothing."""
        removals = self._removals(torch.full_like(self._whole_S, pull))
        n_groups = self._scores.rule.n_groups
        return refined(removals, Elimination(removals, n_groups, 1).best(keep), n_groups)[0]

    def better(self, kept: Kept, others_S: torch.Tensor) -> Kept:
        """``kept`` after every swap that brings it and what other layers do closer to nothing."""
        return refined(self._removals(others_S), kept, self._scores.rule.n_groups)[0]

    def _given(self, kept: Kept | None) -> torch.Tensor:
        routing = self._scores.routing(kept)
        return _given(routing, self.effects_SE.gather(1, routing.ids_TK))

    def _removals(self, others_S: torch.Tensor) -> Removals:
        target_S = self._whole_S - others_S
        return _EffectRemovals(self._scores, self.effects_SE, target_S, self.pinned)


class _EffectRemovals(Removals):
    """Removals judged by one number per token and expert instead of whole outputs."""

    def __init__(
        self,
        scores: LayerScores,
        effects_SE: torch.Tensor,
        target_S: torch.Tensor,
        pinned: Sequence[int],
    ) -> None:
        super().__init__(scores, torch.zeros(len(target_S), dtype=torch.int64))
        self._effects_SE, self._target_S = effects_SE, target_S
        self._pinned = pinned

    def losses(self, kept: Sequence[int], candidates: Sequence[int]) -> torch.Tensor:
        losses_C = super().losses(kept, candidates)
        stays_C = torch.tensor([one in self._pinned for one in candidates], dtype=torch.bool)
        return losses_C.masked_fill(stays_C, float("inf"))

    def _distance(self, token_N: torch.Tensor, routing: Routing) -> torch.Tensor:
        effects_NK = self._effects_SE[token_N[:, None], routing.ids_TK]
        return (_given(routing, effects_NK) - self._target_S[token_N]).square()

    def _grown(self, routing: Routing, factor_CT: torch.Tensor) -> torch.Tensor:
        given_S = _given(routing, self._effects_SE.gather(1, routing.ids_TK))
        return (factor_CT * given_S - self._target_S).square()


def _given(routing: Routing, effects_NK: torch.Tensor) -> torch.Tensor:
    """What the chosen experts do together, float64 ``[N]``."""
    return (routing.applied().double() * effects_NK).sum(1)


def choose_together(
    layers: Sequence[LayerEffects], keep: int, pull: float = 0.0
) -> Iterator[list[Kept]]:
    """The layers' own choices, then what every turn made of them, until one changes nothing.

    The mean square of what all change, and ``pull``, becomes least.
    """
    kept = [layer.best(keep, pull) for layer in layers]
    yield list(kept)
    total_S = changes(layers, kept) + pull
    for _ in range(MOST_TURNS):
        before = list(kept)
        for place, layer in enumerate(layers):
            others_S = total_S - layer.change(kept[place])
            kept[place] = layer.better(kept[place], others_S)
            total_S = others_S + layer.change(kept[place])
        if kept == before:
            return
        yield list(kept)


def changes(layers: Sequence[LayerEffects], kept: Sequence[Kept]) -> torch.Tensor:
    """How far the choices of all layers move each token's predictions, float64 ``[S]``."""
    moved = [layer.change(own) for layer, own in zip(layers, kept, strict=True)]
    return torch.stack(moved).sum(0)


def expected_divergence(
    layers: Iterable[LayerScores], kept: Mapping[int, Kept], tokens: int
) -> float:
    """The divergence to expect of any cut of experts; one layer's scores are held at a time.

    ``tokens`` is how many have effects; at most ``MOST_TOKENS`` of them are looked at.
    """
    total_S = torch.zeros(min(MOST_TOKENS, tokens), dtype=torch.float64)
    for scores in layers:
        total_S += LayerEffects(scores, len(total_S)).change(kept[scores.layer])
    return divergence(total_S)


def divergence(change_S: torch.Tensor) -> float:
    """The KL divergence to expect of it, nats per token."""
    return float(change_S.square().mean()) / 2


def log_loss(change_S: torch.Tensor) -> float:
    """What the log loss of the text is expected to grow by, of the text's own effects."""
    return float(change_S.mean()) + divergence(change_S)
