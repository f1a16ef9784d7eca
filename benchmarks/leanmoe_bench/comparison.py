"""Interleaved measurements of a running pair of engines."""

from __future__ import annotations

from leanmoe_bench.engines.control import Control
from leanmoe_bench.engines.measures import Measure, Sample
from leanmoe_bench.engines.pair import Pair


class Comparison(Control):
    """Stock and ours on one shape."""

    def __init__(self, pair: Pair, stock_bytes: int) -> None:
        super().__init__(pair)
        self._bytes_ratio = self.report.weight_bytes / stock_bytes

    def take(self, measure: Measure, rounds: int, sample: Sample) -> None:
        """Add interleaved pairs of one measure under the policy already set."""
        sample.counted.add(self.counted(), sign=-1)
        stock, ours = self.pair.ratios(
            measure.operation, measure.rounds(rounds), **measure.arguments
        )
        sample.counted.add(self.counted())
        sample.stock += stock
        sample.ours += ours
        sample.weight_bytes_ratio = self._bytes_ratio
