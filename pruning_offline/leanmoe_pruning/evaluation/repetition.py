"""How much of an answer says again what it has said, and whether it ends in a loop.

Tokens are whatever a model's own are, as ids or as texts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

NGRAM = 4
_LEAST_PHRASE, _LEAST_TIMES = 2, 3


def repeated_share(tokens: Sequence[Hashable], n: int = NGRAM) -> float:
    """seq-rep-n: the share of n-grams that stood there before, 0 to 1.

    One less (different n-grams) / (n-grams), as Welleck et al., "Neural Text Generation with
    Unlikelihood Training" (ICLR 2020), section 6; 0 for fewer than n tokens.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def ends_in_loop(tokens: Sequence[Hashable]) -> bool:
    """Whether the end is a phrase of two tokens or more, three times or more in a row.

    As Holtzman et al., "The Curious Case of Neural Text Degeneration" (ICLR 2020), count
    repetition; an end inside the fourth time is the end of the phrase turned round, so it counts.
    """
    longest = len(tokens) // _LEAST_TIMES
    return any(_repeats(tokens, size) for size in range(_LEAST_PHRASE, longest + 1))


def _repeats(tokens: Sequence[Hashable], size: int) -> bool:
    """Whether each of the last tokens is the one ``size`` before it."""
    end = len(tokens)
    first = end - size * (_LEAST_TIMES - 1)
    return all(tokens[i] == tokens[i - size] for i in range(end - 1, first - 1, -1))
