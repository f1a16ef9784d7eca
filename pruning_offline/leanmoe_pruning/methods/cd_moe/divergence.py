"""How far a hidden state moved: the Jensen-Shannon divergence both searches go by.

Each token's hidden vector becomes a distribution by a softmax over its channels (not over
the vocabulary). Divergences are averaged over the tokens of a document first, then over
documents; a document is one window of ``--data``. N documents, T tokens, D model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

EPSILON = 1e-10
# A wave is looked at before the next begins: the finer, the earlier a bad candidate is given up.
WAVES = 16
BLOCK_TOKENS = 4096


def channel_shares(hidden_TD: torch.Tensor) -> torch.Tensor:
    """Softmax over the channels of each token's vector, float32, ``EPSILON`` added."""
    return hidden_TD.float().softmax(-1).add_(EPSILON)


def divergence(p_TD: torch.Tensor, q_TD: torch.Tensor) -> torch.Tensor:
    """0.5 KL(p, m) + 0.5 KL(q, m) in nats with m = (p + q) / 2, float64 ``[T]``.

    It cannot be negative; what rounding leaves below zero is zero, so that a sum over tokens
    never falls. Where a vector overflowed it is the largest there is, ln 2.
    """
    log_m_TD = (p_TD + q_TD).mul_(0.5).log_()
    p_part_TD = (p_TD.log() - log_m_TD).mul_(p_TD)
    q_part_TD = (q_TD.log() - log_m_TD).mul_(q_TD)
    found_T = p_part_TD.add_(q_part_TD).sum(-1).double().mul_(0.5)
    return found_T.nan_to_num_(nan=math.log(2)).clamp_min_(0.0)


@dataclass(frozen=True)
class Block:
    """Documents of one length; ``ids_NT`` are token ids."""

    ids_NT: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.ids_NT.numel()

    def sum_of_means(self, of_token_T: torch.Tensor) -> float:
        """The sum over documents of the mean over their tokens."""
        return float(of_token_T.view(self.ids_NT.shape).mean(-1).sum())


@dataclass(frozen=True)
class Documents:
    """All documents, block by block; a wave is a few blocks that are looked at together."""

    blocks: tuple[Block, ...]
    waves: tuple[range, ...]

    @property
    def count(self) -> int:
        return sum(len(block.ids_NT) for block in self.blocks)

    @property
    def tokens(self) -> int:
        return sum(block.tokens for block in self.blocks)

    @property
    def everything(self) -> range:
        return range(len(self.blocks))


def documents_of(ids: Sequence[torch.Tensor]) -> Documents:
    """Windows ``[N, T]`` of several sources, those of one length put together."""
    by_length: dict[int, list[torch.Tensor]] = {}
    for ids_NT in ids:
        by_length.setdefault(ids_NT.shape[1], []).append(ids_NT)
    share = max(1, sum(ids_NT.numel() for ids_NT in ids) // WAVES)
    blocks = [
        Block(part)
        for length, held in by_length.items()
        for part in torch.split(torch.cat(held), max(1, min(share, BLOCK_TOKENS) // length))
    ]
    return Documents(tuple(blocks), tuple(_waves(blocks, share)))


def _waves(blocks: Sequence[Block], share: int) -> Iterator[range]:
    first, tokens = 0, 0
    for index, block in enumerate(blocks):
        tokens += block.tokens
        if tokens >= share or index + 1 == len(blocks):
            yield range(first, index + 1)
            first, tokens = index + 1, 0
