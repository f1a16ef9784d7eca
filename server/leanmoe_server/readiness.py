"""Whether the server may answer: every MoE layer wrapped on every worker, one policy in force.

An unready server stays up instead of exiting: restarting would not mend the model,
``/ready`` can say which layer and why, and no orchestrator sends it traffic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from leanmoe import __version__
from leanmoe.layout import LayerLayout
from leanmoe.messages import HandshakeReport, LayerReport
from leanmoe_server.model import SkipModel
from leanmoe_server.pulse import Pulse

logger = logging.getLogger(__name__)


class Readiness:
    """Ready only while ``reasons`` is empty; starts unready.

    Silent workers make it unready for as long as they are silent, by themselves.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._refused: list[str] = ["the workers have not reported yet"]
        self._silent = False
        # Why else nothing may be answered, as it is found each time.
        self.besides: Callable[[], list[str]] = list

    @property
    def reasons(self) -> list[str]:
        """Why nothing may be answered; empty when it may."""
        silence = self._pulse.problem
        return self._refused or [*([] if silence is None else [silence]), *self.besides()]

    @property
    def refused(self) -> bool:
        """True where more is wrong than silence."""
        return bool(self._refused)

    @property
    def ready(self) -> bool:
        return not self.reasons

    def refuse(self, reasons: list[str]) -> None:
        """Stop answering, and say why in the log and in ``/ready``."""
        self._refused = reasons
        for reason in reasons:
            logger.error("not ready: %s", reason)

    def accept(self) -> None:
        self._refused = []

    def say_silence(self) -> None:
        """Log when the workers fall silent, and when they answer again."""
        problem = self._pulse.problem
        if problem is not None and not self._silent:
            logger.error("not ready: %s", problem)
        elif problem is None and self._silent:
            logger.warning("the workers answer again")
        self._silent = problem is not None


def _layer_problems(
    report: HandshakeReport, expected: Iterable[int], model: SkipModel
) -> list[str]:
    layers = {layer.layer: layer for layer in report.layers}
    problems = list(report.problems)
    if len(layers) < len(report.layers):
        problems.append("two MoE layers have one number, so one would never skip")
    for index in expected:
        found = layers.get(index)
        if found is None:
            problems.append(f"layer {index}: the plugin found no MoE layer there")
        elif not found.wrapped and not found.problem:
            problems.append(f"layer {index} ({found.name}): it is not wrapped and would not skip")
        elif not found.modular and not found.problem:
            problems.append(
                f"layer {index} ({found.name}): its kernel routes by itself, past the skip rule; "
                "choose another --moe-backend"
            )
        elif not found.ran and not found.problem:
            problems.append(
                f"layer {index} ({found.name}): its skip seam never ran, so it would not skip: a "
                "graph compiled without the plugin was loaded, or something goes around it"
            )
        elif difference := _difference(found, model.layers.get(index), model.renormalize):
            problems.append(f"layer {index} ({found.name}): {difference}")
    return [f"worker {report.worker}: {problem}" for problem in problems]


def _difference(
    found: LayerReport, said: LayerLayout | None, renormalize: bool | None
) -> str | None:
    """How a loaded layer differs from the checkpoint whose curve is promised."""
    if said is None:
        return None
    pairs = {
        "experts": (found.n_routed_experts, said.n_experts),
        "top-k": (found.top_k, said.top_k),
        "condensed": (found.condensed, said.condensed),
        "renormalising": (found.renormalize, renormalize),
    }
    wrong = [
        f"{name} {has}, the model's config {says}"
        for name, (has, says) in pairs.items()
        if has != says
    ]
    return f"it was loaded with {wrong[0]}" if wrong else None


def handshake_problems(
    reports: list[HandshakeReport], model: SkipModel, every_worker: bool = True
) -> list[str]:
    """One sentence per worker and layer that would silently not skip; empty when all is well.

    ``every_worker=False`` is for pipeline parallelism, where a worker holds some layers only.
    """
    if not reports:
        return ["no worker answered the handshake"]
    problems, moe_layers = [], model.moe_layers
    for report in reports:
        if report.plugin_version != __version__:
            problems.append(
                f"worker {report.worker} runs plugin {report.plugin_version}, the server "
                f"{__version__}: install one version"
            )
        held = {layer.layer for layer in report.layers}
        expected = moe_layers if every_worker else tuple(i for i in moe_layers if i in held)
        problems += _layer_problems(report, expected, model)
    everywhere = {layer.layer for report in reports for layer in report.layers}
    if not every_worker:
        absent = [i for i in moe_layers if i not in everywhere]
        problems += [f"layer {i}: no worker reported a MoE layer there" for i in absent]
    return problems
