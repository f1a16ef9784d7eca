"""The offline stage from Python: each function does what the command of its name does.

Options are frozen dataclasses whose fields are the command's options; results are the objects
that ``--json`` prints. Where a command ends with exit code 2 or 1, a ``LeanMoEError`` is raised
with the same sentence, and nothing is left half-written.
"""

from __future__ import annotations

from leanmoe.command import Result
from leanmoe_pruning.commands import curve as _curve
from leanmoe_pruning.commands import distill as _distill
from leanmoe_pruning.commands import evaluate as _evaluate
from leanmoe_pruning.commands import plan as _plan
from leanmoe_pruning.commands import score as _score
from leanmoe_pruning.commands.curve import CurveOptions
from leanmoe_pruning.commands.distill import DistillOptions
from leanmoe_pruning.commands.evaluate import EvalOptions
from leanmoe_pruning.commands.plan import PlanOptions
from leanmoe_pruning.commands.prune import PruneOptions, prune
from leanmoe_pruning.commands.score import ScoreOptions

__all__ = [
    "CurveOptions",
    "DistillOptions",
    "EvalOptions",
    "PlanOptions",
    "PruneOptions",
    "ScoreOptions",
    "curve",
    "distill",
    "evaluate",
    "plan",
    "prune",
    "score",
]


def plan(options: PlanOptions) -> Result:
    """What each method and budget would take and leave, from headers alone (``leanmoe plan``)."""
    return _plan.COMMAND.do(options)


def score(options: ScoreOptions) -> Result:
    """Statistics of one pass of text, for every method, in a bundle (``leanmoe score``)."""
    return _score.COMMAND.do(options)


def distill(options: DistillOptions) -> Result:
    """Train a pruned model towards the one it came from (``leanmoe distill``)."""
    return _distill.COMMAND.do(options)


def curve(options: CurveOptions) -> Result:
    """What each skip level costs, in nats per token, into the manifest (``leanmoe curve``)."""
    return _curve.COMMAND.do(options)


def evaluate(options: EvalOptions) -> Result:
    """Perplexity per domain, alone or beside another model (``leanmoe eval``)."""
    return _evaluate.COMMAND.do(options)
