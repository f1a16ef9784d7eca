"""How far two runs' distributions over the same tokens lie apart, from their top tokens alone.

vLLM gives, for each token of a prompt, the log probabilities of the k most likely tokens and of
the token that stands there. What is known of both runs is kept, all the rest is one lump:

    KLD >= sum over tokens x known in both: p(x) log(p(x) / q(x))  +  P log(P / Q)

with p exact, q served, and P, Q what is left of each. Lumping never raises a divergence (the
data processing inequality), so the estimate is biased downwards, the less the more mass the top
tokens have; with k as large as the vocabulary it is the divergence itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

TopLogprobs = Mapping[int, float]
# A lump below this is rounding: its logarithm says nothing.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Distance:
    """Mean over an answer's tokens: KLD in nats, and how often the most likely token is the same.

    ``covered`` is the exact run's mean probability of the tokens that were known of both.
    """

    kld: float
    top1: float
    covered: float
    tokens: int


def distance(exact: Sequence[TopLogprobs], served: Sequence[TopLogprobs]) -> Distance:
    """Of two runs over the same tokens; ``ValueError`` where they are not."""
    pairs = list(zip(exact, served, strict=True))
    if not pairs:
        raise ValueError("there is no token to compare")
    lumped = [_lumped(p, q) for p, q in pairs]
    return Distance(
        kld=fmean(kld for kld, _ in lumped),
        top1=fmean(_first(p) == _first(q) for p, q in pairs),
        covered=fmean(covered for _, covered in lumped),
        tokens=len(pairs),
    )


def _lumped(exact: TopLogprobs, served: TopLogprobs) -> tuple[float, float]:
    known = exact.keys() & served.keys()
    kld = sum(math.exp(exact[x]) * (exact[x] - served[x]) for x in known)
    covered = sum(math.exp(exact[x]) for x in known)
    left = max(1.0 - covered, 0.0)
    other = max(1.0 - sum(math.exp(served[x]) for x in known), _NOTHING)
    if left > _NOTHING:
        kld += left * math.log(left / other)
    return max(kld, 0.0), min(covered, 1.0)


def _first(top: TopLogprobs) -> int:
    """The most likely token; of equal ones that with the smallest id."""
    return max(sorted(top), key=lambda token: top[token])
