"""The policy and the counters of an engine of ours, alone or in a running pair."""

from __future__ import annotations

from leanmoe.errors import LeanMoEError
from leanmoe.messages import HandshakeReport, LayerCounts, PolicyUpdate, SkipSnapshot
from leanmoe_bench.engines.cases import Case
from leanmoe_bench.engines.measures import Counted
from leanmoe_bench.engines.pair import Pair, RemoteArm

_CALIBRATION_TOKENS = 256
_CALIBRATION_ROUNDS = 7

Betas = dict[int, float]


class Control:
    """What is asked of ours beside the work that is timed."""

    def __init__(self, ours: RemoteArm) -> None:
        self._ours = ours
        self.report = HandshakeReport.model_validate_json(self.tell("leanmoe_handshake"))
        if self.report.problems:
            raise LeanMoEError(f"ours would not skip: {self.report.problems[0]}")
        self.layers = [layer.layer for layer in self.report.layers]
        self._version = 0

    def set_policy(self, betas: Betas, case: Case | None = None) -> None:
        """Put betas in force, and the budget of ``case`` where it has one."""
        self.tell("leanmoe_set_policy", self.update(betas, case).model_dump_json())

    def update(self, betas: Betas, case: Case | None = None) -> PolicyUpdate:
        """The policy that ``set_policy`` puts in force, a version further."""
        self._version += 1
        return PolicyUpdate(
            level=max(betas.values()),
            betas=betas,
            version=self._version,
            union=None if case is None else case.union,
        )

    def tell(self, method: str, *args: str) -> str:
        """The answer of a worker's method, as JSON."""
        results = self._ours.call("rpc", method=method, args=list(args))["results"]
        return str(results[0])

    def counts(self) -> list[LayerCounts]:
        """What each layer ran since the start."""
        return SkipSnapshot.model_validate_json(self.tell("leanmoe_snapshot")).layers

    def counted(self) -> Counted:
        """The sums over all layers."""
        counts = self.counts()
        return Counted(
            routed=sum(c.routed for c in counts),
            skipped=sum(c.skipped for c in counts),
            steps=sum(c.steps for c in counts),
            distinct=sum(c.distinct_experts for c in counts),
        )


class PairControl(Control):
    """Of ours beside stock: betas can be found on it while the other stands still."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair.ours)
        self.pair = pair

    def betas_of(self, case: Case) -> Betas:
        """One beta everywhere, or each layer's found on the running engine."""
        if case.skipped is not None:
            return self._betas_skipping(case.skipped)
        return dict.fromkeys(self.layers, case.beta)

    def _betas_skipping(self, share: float) -> Betas:
        """Bisect every layer's beta at once until that share of its assignments is skipped."""
        low, high = dict.fromkeys(self.layers, 0.0), dict.fromkeys(self.layers, 1.0)
        for turn in range(_CALIBRATION_ROUNDS):
            betas = {layer: (low[layer] + high[layer]) / 2 for layer in self.layers}
            self.set_policy(betas)
            before = {c.layer: c for c in self.counts()}
            self.pair.alone(self.pair.ours, "prefill", length=_CALIBRATION_TOKENS, turn=turn)
            for after in self.counts():
                routed = after.routed - before[after.layer].routed
                skipped = after.skipped - before[after.layer].skipped
                side = high if skipped > routed * share else low
                side[after.layer] = betas[after.layer]
        return {layer: (low[layer] + high[layer]) / 2 for layer in self.layers}
