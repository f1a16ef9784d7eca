"""A running pair of engines: the policy of ours, its counters, interleaved measurements."""

from __future__ import annotations

from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe.messages import HandshakeReport, LayerCounts, PolicyUpdate, SkipSnapshot
from leanmoe_bench.cases import Case
from leanmoe_bench.measures import Counted, Measure, Sample
from leanmoe_bench.pair import Pair

_CALIBRATION_TOKENS = 256
_CALIBRATION_ROUNDS = 7

Betas = dict[int, float]


class Comparison:
    """Stock and ours on one shape."""

    def __init__(self, pair: Pair, stock_bytes: int) -> None:
        self._pair = pair
        answer = pair.ours.call("rpc", method="leanmoe_handshake", args=[])["results"]
        reports = [HandshakeReport.model_validate_json(text) for text in answer]
        if reports[0].problems:
            raise LeanMoEError(f"ours would not skip: {reports[0].problems[0]}")
        self._layers = [layer.layer for layer in reports[0].layers]
        self._bytes_ratio = reports[0].weight_bytes / stock_bytes
        self._version = 0

    def set_policy(self, betas: Betas, case: Case | None = None) -> SkipSnapshot:
        """Put betas in force, and the budget of ``case`` where it has one."""
        self._version += 1
        update = PolicyUpdate(
            level=max(betas.values()),
            betas=betas,
            version=self._version,
            union=None if case is None else case.union,
        )
        return self._snapshot("leanmoe_set_policy", update.model_dump_json())

    def betas_of(self, case: Case) -> Betas:
        """One beta everywhere, or each layer's found on the running engine."""
        if case.skipped is not None:
            return self._betas_skipping(case.skipped)
        return dict.fromkeys(self._layers, case.beta)

    def take(self, measure: Measure, rounds: int, sample: Sample) -> None:
        """Add interleaved pairs of one measure under the policy already set."""
        sample.counted.add(self._counted(), sign=-1)
        stock, ours = self._pair.ratios(
            measure.operation, measure.rounds(rounds), **measure.arguments
        )
        sample.counted.add(self._counted())
        sample.stock += stock
        sample.ours += ours
        sample.weight_bytes_ratio = self._bytes_ratio

    def _betas_skipping(self, share: float) -> Betas:
        """Bisect every layer's beta at once until that share of its assignments is skipped."""
        low, high = dict.fromkeys(self._layers, 0.0), dict.fromkeys(self._layers, 1.0)
        for turn in range(_CALIBRATION_ROUNDS):
            betas = {layer: (low[layer] + high[layer]) / 2 for layer in self._layers}
            before = {c.layer: c for c in self.set_policy(betas).layers}
            self._pair.alone(self._pair.ours, "prefill", length=_CALIBRATION_TOKENS, turn=turn)
            for after in self._counts():
                routed = after.routed - before[after.layer].routed
                skipped = after.skipped - before[after.layer].skipped
                side = high if skipped > routed * share else low
                side[after.layer] = betas[after.layer]
        return {layer: (low[layer] + high[layer]) / 2 for layer in self._layers}

    def _snapshot(self, method: str, *args: str) -> SkipSnapshot:
        results = self._pair.ours.call("rpc", method=method, args=list(args))["results"]
        return SkipSnapshot.model_validate_json(results[0])

    def _counts(self) -> list[LayerCounts]:
        return self._snapshot("leanmoe_snapshot").layers

    def _counted(self) -> Counted:
        counts: list[Any] = self._counts()
        return Counted(
            routed=sum(c.routed for c in counts),
            skipped=sum(c.skipped for c in counts),
            steps=sum(c.steps for c in counts),
            distinct=sum(c.distinct_experts for c in counts),
        )
