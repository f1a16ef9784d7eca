"""Which tokens have a Gram matrix: all with few experts, an even sample with many or when asked.

A token's Gram grows with the square of the number of experts and needs the output of every
expert, routed or not. Everything else in a bundle is of all tokens.
"""

from __future__ import annotations

from leanmoe.errors import InputError
from leanmoe_pruning.later import torch
from leanmoe_pruning.scores.gram import packed_size

ALL_TOKENS_UP_TO = 16  # experts
MOST_TOKENS = 4096
LEAST_TOKENS = 512
MOST_BYTES = 1 << 27  # of one layer's Gram matrices


def gram_sample(n_experts: int, tokens: int, asked: int | None = None) -> int:
    """How many of ``tokens`` get a Gram matrix; ``asked`` is the user's ``--gram-tokens``."""
    if asked is not None and not 1 <= asked <= tokens:
        raise InputError(
            f"--gram-tokens is {asked}, expected a number from 1 to the {tokens} tokens of --data"
        )
    if asked is not None:
        return asked
    if n_experts <= ALL_TOKENS_UP_TO:
        return tokens
    affordable = MOST_BYTES // (packed_size(n_experts) * 8)
    return min(tokens, max(LEAST_TOKENS, min(MOST_TOKENS, affordable)))


def evenly_spaced(tokens: int, sample: int) -> torch.Tensor:
    """The sampled tokens, int64 ``[sample]``: floor(i * tokens / sample) for i from 0."""
    return torch.arange(sample) * tokens // sample
