"""One pair of engines on one model, and what the parts ask of it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from leanmoe.errors import LeanMoEError
from leanmoe_bench.engines.cases import Case
from leanmoe_bench.engines.control import Betas, PairControl
from leanmoe_bench.engines.measures import Counted, Measure
from leanmoe_bench.engines.pair import Pair, RemoteArm
from leanmoe_bench.gpu import gpu_arm_process
from leanmoe_bench.gpu.models import PACKED_SHARE, GpuModel
from leanmoe_bench.gpu.settings import ENVIRONMENT, Settings

_GRACE_SECONDS = 8.0
_BANDWIDTH_BYTES, _SMALL_BYTES = 1 << 29, 1 << 20
_GATE_TOKENS = 256
_GATE_SHARES = [0.25, 0.4]
NO_PYTHON = "no router was called from Python, as where the whole model is compiled"

Row = dict[str, Any]


class Session:
    """A running pair; thresholds found once are kept."""

    def __init__(
        self, model: GpuModel, settings: Settings, pair: Pair, *, packed: bool = False
    ) -> None:
        self.model, self.settings, self.pair = model, settings, pair
        # Of a dense expert's bytes, what ours reads.
        self.expert_share = PACKED_SHARE if packed else 1.0
        self.control = PairControl(pair)
        self._betas: dict[str, Betas] = {}
        self._bandwidth: float | None = None

    def policy(self, case: Case) -> Betas:
        """Put a case in force; its betas."""
        if case.name not in self._betas:
            self._betas[case.name] = self.control.betas_of(case)
        self.control.set_policy(self._betas[case.name], case)
        return self._betas[case.name]

    def run(self, plugin: bool, measure: Measure, turn: int) -> float:
        """Tokens per second of one operation, the other engine stopped."""
        arm = self.pair.ours if plugin else self.pair.stock
        answer = self.pair.alone(arm, measure.operation, turn=turn, **measure.arguments)
        return float(answer["tokens_per_second"])

    def run_counted(self, measure: Measure, turn: int) -> tuple[float, Counted]:
        """The same of ours, with what it added to the counters."""
        counted = Counted()
        counted.add(self.control.counted(), sign=-1)
        speed = self.run(True, measure, turn)
        counted.add(self.control.counted())
        return speed, counted

    def kernels(self, plugin: bool, measure: Measure, turn: int) -> list[tuple[str, float, int]]:
        """Kernels of one operation: name, microseconds in all, launches; none on a CPU."""
        arm = self.pair.ours if plugin else self.pair.stock
        answer = self.pair.alone(
            arm, "profile", what=measure.operation, turn=turn, **measure.arguments
        )
        return [(str(name), float(us), int(count)) for name, us, count in answer["kernels"]]

    def compute(self) -> None:
        """Let both engines' devices compute something small."""
        for arm in (self.pair.stock, self.pair.ours):
            self.pair.alone(arm, "bandwidth", size=_SMALL_BYTES)

    def bandwidth(self) -> Row:
        """What the device's memory gives; the larger of a copy and a sum is what counts."""
        found = self.pair.alone(self.pair.stock, "bandwidth", size=_BANDWIDTH_BYTES)
        self._bandwidth = max(found["copy"], found["read"])
        gigabytes = {name: round(found[name] / 1e9, 1) for name in ("copy", "read")}
        return {"row": "bandwidth", "device": found["device"], "GB_per_second": gigabytes}

    def bytes_share(self, distinct: float | None, seconds: float) -> float | None:
        """Weight bytes of a step over what memory could have brought in its time."""
        if distinct is None or self._bandwidth is None:
            return None
        return round(self.model.step_bytes(distinct) / seconds / self._bandwidth, 3)

    def gates(self) -> Row:
        """How far apart the routers' choices lie, and whether both engines agree on it."""
        top_k, found = self.model.shape.top_k, []
        for arm in (self.pair.stock, self.pair.ours):
            self.pair.alone(arm, "listen", top_k=top_k)
            self.pair.alone(arm, "prefill", length=_GATE_TOKENS, turn=0)
            found.append(self.pair.alone(arm, "gates", shares=_GATE_SHARES))
        if not found[0]["tokens"]:
            return {"row": "gates", "status": "cannot run", "reason": NO_PYTHON}
        return {"row": "gates", **found[0], "same_in_both": found[0] == found[1]}

    def handshake(self) -> Row:
        """What ours says of its layers."""
        report = self.control.report
        kinds = {(layer.experts_class, layer.mode.value) for layer in report.layers}
        return {
            "row": "handshake",
            "layers": len(report.layers),
            "experts_and_mode": sorted(kinds),
            "weight_bytes": report.weight_bytes,
            "request_levels_unavailable": report.request_levels_unavailable,
        }


class Engines:
    """The pair that runs; the next part on the same model and flags takes it over."""

    def __init__(self, settings: Settings, put: Callable[[Row], None]) -> None:
        self._settings, self._put = settings, put
        self._key: tuple[str, int | None, bool] | None = None
        self._session: Session | None = None
        self._stack = ExitStack()

    def session(self, model: GpuModel, *, budget: bool = False, packed: bool = False) -> Session:
        """Engines of ``model``, started unless they run.

        ``budget``: ours could bound experts. ``packed``: ours has half of the weights, packed.
        """
        # A CPU takes a budget at any time; on a GPU it has to be in the captured graphs.
        experts = model.budget if budget and not self._settings.rehearses else None
        if self._session is None or self._key != (model.name, experts, packed):
            self.close()
            self._start(model, experts, packed)
            self._key = (model.name, experts, packed)
        assert self._session is not None
        return self._session

    def close_if_broken(self) -> None:
        """End a pair of which an engine ended, or has a device that computes nothing any more."""
        try:
            if self._session is not None:
                self._session.compute()
        except LeanMoEError:
            self.close()

    def close(self) -> None:
        """End what runs, also in the middle of something."""
        stack, self._stack = self._stack, ExitStack()
        self._key = self._session = None
        stack.close()

    def _start(self, model: GpuModel, budget: int | None, packed: bool) -> None:
        start = time.monotonic()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="leanmoe-gpu-")))
        for name in ("stock", "ours"):
            (folder / name).mkdir()
            config = model.packed_config() if packed and name == "ours" else model.config()
            (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
        stock, ours = (self._arm(name, model, folder, budget) for name in ("stock", "ours"))
        for arm in (stock, ours):
            arm.answer()
        session = Session(model, self._settings, Pair(stock, ours), packed=packed)
        seconds = round(time.monotonic() - start, 1)
        about = {
            "model": model.name,
            "layers": model.shape.layers,
            "union_budget": budget,
            "packed": packed,
        }
        self._put({"row": "engines", **about, "seconds": seconds})
        for row in (session.handshake(), session.gates(), session.bandwidth()):
            self._put({**row, "model": model.name})
        self._session = session

    def _arm(self, name: str, model: GpuModel, folder: Path, budget: int | None) -> RemoteArm:
        """One engine, told to start: both load at the same time."""
        plugin = name == "ours"
        log = folder / f"{name}.log"
        arm = RemoteArm(name, plugin=plugin, log=log, module=gpu_arm_process, settings=ENVIRONMENT)
        self._stack.callback(arm.close, _GRACE_SECONDS)
        own: dict[str, Any] = {"plugin": True}
        if budget is not None:
            own["union_budget"] = budget
        extra = {"additional_config": {"leanmoe": own}} if plugin else {}
        arm.send(
            "start",
            model=str(folder / name),
            engine={**self._settings.flags(model), **extra},
            vocabulary=model.shape.vocabulary,
            seed=self._settings.seed,
            spread=model.spread,
        )
        return arm
