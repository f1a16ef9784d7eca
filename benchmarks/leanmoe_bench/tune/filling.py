"""A whole table out of a few measured batch sizes.

vLLM takes the row whose number of tokens is nearest, however far: a table of decode sizes alone
would set the tiles of long prompts. Outside what was measured a table therefore says what vLLM
would choose itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from leanmoe.tuned_tables import Table, Tiles

OwnChoice = Callable[[int], Tiles]
# vLLM's rule changes last where an expert gets more than 128 tokens.
_TOKENS_PER_EXPERT = 129
_LONGEST = 16384


def whole_table(measured: Mapping[int, Tiles], own: OwnChoice, experts: int) -> Table:
    """``measured`` between its smallest and largest batch, vLLM's own choice everywhere else."""
    first, last = min(measured), max(measured)
    longest = max(_LONGEST, _TOKENS_PER_EXPERT * experts, last) + 1
    return {
        **dict(_ends_of_runs(own, range(1, first))),
        **measured,
        **dict(_ends_of_runs(own, range(last + 1, longest + 1))),
    }


def _ends_of_runs(own: OwnChoice, batches: range) -> Iterator[tuple[int, Tiles]]:
    """First and last batch of every stretch of one choice: the nearest row is then its own."""
    chosen = [(batch, own(batch)) for batch in batches]
    for place, (batch, tiles) in enumerate(chosen):
        inside = 0 < place < len(chosen) - 1
        if not inside or chosen[place - 1][1] != tiles or chosen[place + 1][1] != tiles:
            yield batch, tiles
