"""Made-up text of a given length: common short words in a random order.

Most tokenisers take each of these words with the space before it as one token. How many tokens
the server counts stands in its usage; nothing here is taken for that.
"""

from __future__ import annotations

import random

_WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there use an each which she do "
    "how their if will up other about out many then them these so some her would make like him "
    "into time has look two more write go see number no way could people my than first water been "
    "call who now find long down day did get come made may part"
)
_POOL_WORDS = 1 << 16


class Words:
    """A long random text, of which each request is sent a slice from another place."""

    def __init__(self, seed: int) -> None:
        words = random.Random(f"{seed}:words").choices(_WORDS.split(), k=_POOL_WORDS)
        self._text = " ".join(words)
        self._starts = [0]
        for word in words:
            self._starts.append(self._starts[-1] + len(word) + 1)

    def text(self, count: int, source: random.Random) -> str:
        """``count`` words in a row, from a place that ``source`` draws."""
        parts = []
        while count > 0:
            taken = min(count, _POOL_WORDS)
            start = source.randrange(_POOL_WORDS - taken + 1)
            parts.append(self._text[self._starts[start] : self._starts[start + taken] - 1])
            count -= taken
        return " ".join(parts)
