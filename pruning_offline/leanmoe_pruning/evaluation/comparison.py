"""What a changed model costs, token by token, against an exact one on the same text.

Teacher-forced: KL(exact || changed) in nats over the vocabulary at every position,
whether both name the same next token, and the log loss of the text itself (at all
but a window's last position, whose next token is unknown). T tokens, D model,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from leanmoe.errors import CheckpointError
from leanmoe_pruning.evaluation.bounds import WindowMean
from leanmoe_pruning.forward.stream import DecoderStream

# Logits of this many tokens stay small enough for the allocator to reuse their memory.
CHUNK = 128
_MAX_LOG_LOSS = 700.0  # beyond it exp leaves float64


def perplexity_of(log_loss: float) -> float:
    """exp of a mean log loss; ``CheckpointError`` where the model predicts nothing finite."""
    if not log_loss < _MAX_LOG_LOSS:
        raise CheckpointError(
            f"the model's log loss is {log_loss} nats per token, which is no perplexity: its "
            "weights are not sound; fetch or make the model again"
        )
    return math.exp(log_loss)


@dataclass
class WindowSums:
    """Per-window sums of one model, one entry per window."""

    tokens: list[int] = field(default_factory=list)
    log_loss: list[float] = field(default_factory=list)
    kld: list[float] = field(default_factory=list)
    agreed: list[int] = field(default_factory=list)

    def open_window(self, tokens: int, compared: bool) -> None:
        """Begin a window; figures added next belong to it."""
        self.tokens.append(tokens)
        self.log_loss.append(0.0)
        if compared:
            self.kld.append(0.0)
            self.agreed.append(0)

    def add_text(self, log_p_TV: torch.Tensor, next_ids: torch.Tensor) -> None:
        """Add the log loss of the known next tokens."""
        rows = log_p_TV[: len(next_ids)]
        self.log_loss[-1] -= float(rows.gather(1, next_ids[:, None]).double().sum())

    def add_comparison(self, kld_T: torch.Tensor, agreed_T: torch.Tensor) -> None:
        self.kld[-1] += float(kld_T.double().sum())
        self.agreed[-1] += int(agreed_T.sum())

    def mean_log_loss(self) -> WindowMean:
        return WindowMean.of(self.log_loss, [count - 1 for count in self.tokens])

    def perplexity(self) -> float:
        return perplexity_of(self.mean_log_loss().mean)

    def mean_kld(self) -> WindowMean:
        return WindowMean.of(self.kld, self.tokens)

    def top1_agreement(self) -> float:
        return sum(self.agreed) / sum(self.tokens)


class Exact:
    """The exact model's predictions on a few tokens, ready to be compared with."""

    def __init__(self, log_p_TV: torch.Tensor) -> None:
        self.log_p_TV = log_p_TV
        self._p_TV = log_p_TV.exp()
        self._best_T = log_p_TV.argmax(-1)

    def compare(self, log_q_TV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(exact || changed) in nats and whether the best token is the same, both ``[T]``."""
        same_T = log_q_TV.argmax(-1) == self._best_T
        gap_TV = self.log_p_TV - log_q_TV
        kld_T = torch.bmm(self._p_TV[:, None], gap_TV[:, :, None]).flatten()
        return kld_T.clamp_min_(0.0), same_T


def compare_window(
    stream: DecoderStream,
    by_level: torch.Tensor,
    ids_T: torch.Tensor,
    sums: Sequence[WindowSums],
) -> None:
    """Add one window; ``by_level`` [L, T, D] are final hidden states, the exact model's first."""
    for found in sums:
        found.open_window(len(ids_T), compared=True)
    for start in range(0, len(ids_T), CHUNK):
        rows = slice(start, start + CHUNK)
        next_ids = ids_T[start + 1 : start + 1 + CHUNK]
        exact = Exact(stream.log_probabilities(by_level[0, rows]))
        sums[0].add_text(exact.log_p_TV, next_ids)
        sums[0].agreed[-1] += len(exact.log_p_TV)
        for hidden_TD, found in zip(by_level[1:, rows], sums[1:], strict=True):
            log_q_TV = stream.log_probabilities(hidden_TD)
            found.add_text(log_q_TV, next_ids)
            found.add_comparison(*exact.compare(log_q_TV))


@dataclass(frozen=True)
class Other:
    """The model compared with: its final hidden states of one window, and sums of its own."""

    stream: DecoderStream
    hidden_TD: torch.Tensor
    sums: WindowSums


def measure_window(
    stream: DecoderStream,
    hidden_TD: torch.Tensor,
    ids_T: torch.Tensor,
    sums: WindowSums,
    against: Other | None,
) -> None:
    """Add one window of one model, compared with another where given."""
    sums.open_window(len(ids_T), compared=against is not None)
    if against is not None:
        against.sums.open_window(len(ids_T), compared=False)
    for start in range(0, len(ids_T), CHUNK):
        rows = slice(start, start + CHUNK)
        log_q_TV = stream.log_probabilities(hidden_TD[rows])
        next_ids = ids_T[start + 1 : start + 1 + CHUNK]
        sums.add_text(log_q_TV, next_ids)
        if against is not None:
            exact = Exact(against.stream.log_probabilities(against.hidden_TD[rows]))
            against.sums.add_text(exact.log_p_TV, next_ids)
            sums.add_comparison(*exact.compare(log_q_TV))
